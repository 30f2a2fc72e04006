package control

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are what operators watch of a replica.
type metrics struct {
	requests *prometheus.CounterVec
	duration *prometheus.HistogramVec
}

// newMetrics registers them; a nil registerer keeps them to ourselves.
func newMetrics(s *Server, registerer prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "carrel_control_requests_total", Help: "Requests that ended, by method and how (ok, or the reason of the error).",
		}, []string{"method", "reason"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "carrel_control_request_seconds", Help: "How long requests took, streams and waits left out.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30},
		}, []string{"method"}),
	}
	watchers := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "carrel_control_watchers", Help: "Who watches boxes or waits for one.",
	}, func() float64 { return float64(s.hub.count()) })
	if registerer == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.requests, m.duration, watchers} {
		if err := registerer.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// ended counts a request. Only methods of the policy table are counted by name: others are a client's invention.
func (m *metrics) ended(method, reason string, took time.Duration, stream bool) {
	m.requests.WithLabelValues(method, reason).Inc()
	if !stream {
		m.duration.WithLabelValues(method).Observe(took.Seconds())
	}
}
