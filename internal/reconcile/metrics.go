package reconcile

import (
	"github.com/prometheus/client_golang/prometheus"
)

// metrics of one reconciler.
type metrics struct {
	ticks    *prometheus.CounterVec   // duty, result
	duration *prometheus.HistogramVec // duty
	steps    *prometheus.CounterVec   // step, result
	lag      prometheus.Histogram
	held     prometheus.Gauge
	silent   prometheus.Gauge
	mass     prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	buckets := []float64{.0005, .001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10, 30}
	m := &metrics{
		ticks:    prometheus.NewCounterVec(prometheus.CounterOpts{Name: "carrel_reconcile_ticks_total", Help: "Ticks of each duty, by result."}, []string{"duty", "result"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "carrel_reconcile_tick_seconds", Help: "How long a tick of each duty took.", Buckets: buckets}, []string{"duty"}),
		steps:    prometheus.NewCounterVec(prometheus.CounterOpts{Name: "carrel_reconcile_steps_total", Help: "Steps taken for boxes and chores, by result."}, []string{"step", "result"}),
		lag:      prometheus.NewHistogram(prometheus.HistogramOpts{Name: "carrel_reconcile_assign_lag_seconds", Help: "From the change of a box's intent to the commit of its first run for it.", Buckets: buckets}),
		held:     prometheus.NewGauge(prometheus.GaugeOpts{Name: "carrel_reconcile_leases_held", Help: "Leases that this process holds."}),
		silent:   prometheus.NewGauge(prometheus.GaugeOpts{Name: "carrel_reconcile_silent_nodes", Help: "Nodes that have not been heard from."}),
		mass:     prometheus.NewGauge(prometheus.GaugeOpts{Name: "carrel_reconcile_silence_suspicious", Help: "1 while so many nodes are silent at once that nothing is concluded from it."}),
	}
	if reg == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.ticks, m.duration, m.steps, m.lag, m.held, m.silent, m.mass} {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}
