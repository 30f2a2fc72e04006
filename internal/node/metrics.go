package node

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics of a node daemon.
type metrics struct {
	steps *prometheus.HistogramVec
}

func newMetrics(registry prometheus.Registerer) (*metrics, error) {
	m := &metrics{steps: prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "carrel_node_step_seconds", Help: "How long steps of runs took, by what became of them.",
		Buckets: []float64{.005, .01, .025, .05, .1, .2, .4, .8, 1.6, 3.2, 6.4, 12.8, 60},
	}, []string{"step", "result"})}
	if registry == nil {
		return m, nil
	}
	return m, registry.Register(m.steps)
}

func (m *metrics) step(s step, took time.Duration, err error) {
	result := "ok"
	if err != nil {
		result = "error"
	}
	m.steps.WithLabelValues(string(s), result).Observe(took.Seconds())
}
