package gateway

import (
	"github.com/prometheus/client_golang/prometheus"

	"carrel.dev/carrel/internal/carrel"
)

type metrics struct {
	tunnels   prometheus.Gauge
	streams   prometheus.Gauge
	terminals prometheus.Gauge
	dialled   prometheus.Gauge
	dials     *prometheus.CounterVec
	exchanges *prometheus.CounterVec
	cuts      *prometheus.CounterVec

	sshConns  prometheus.Gauge
	sshLogins *prometheus.CounterVec

	auditDropped prometheus.Counter

	refusedStreams prometheus.Counter
	streamSockets  *prometheus.GaugeVec
	streamLag      prometheus.Histogram
	streamDropped  prometheus.Counter
}

func newMetrics(registry prometheus.Registerer) *metrics {
	m := &metrics{
		tunnels:   prometheus.NewGauge(prometheus.GaugeOpts{Name: "carrel_gateway_tunnels", Help: "Open tunnels into boxes."}),
		streams:   prometheus.NewGauge(prometheus.GaugeOpts{Name: "carrel_gateway_process_streams", Help: "Process output streams being passed on."}),
		terminals: prometheus.NewGauge(prometheus.GaugeOpts{Name: "carrel_gateway_terminals", Help: "Open WebSockets of terminals."}),
		dialled:   prometheus.NewGauge(prometheus.GaugeOpts{Name: "carrel_gateway_dialled", Help: "Open WebSockets that carry one connection."}),
		dials:     prometheus.NewCounterVec(prometheus.CounterOpts{Name: "carrel_gateway_dials_total", Help: "Tunnels asked for, by outcome."}, []string{"reason"}),
		exchanges: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "carrel_gateway_exchanges_total", Help: "API tokens exchanged at control, by outcome."}, []string{"result"}),
		cuts:      prometheus.NewCounterVec(prometheus.CounterOpts{Name: "carrel_gateway_cuts_total", Help: "Open streams that were cut because their user's right ended, by reason."}, []string{"reason"}),

		sshConns:  prometheus.NewGauge(prometheus.GaugeOpts{Name: "carrel_gateway_ssh_connections", Help: "Open SSH connections of users who have logged in."}),
		sshLogins: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "carrel_gateway_ssh_logins_total", Help: "SSH connections, by what became of them."}, []string{"result"}),

		auditDropped: prometheus.NewCounter(prometheus.CounterOpts{Name: "carrel_gateway_audit_dropped_total", Help: "Audit entries lost because control was away for too long."}),
	}
	m.refusedStreams = prometheus.NewCounter(prometheus.CounterOpts{Name: "carrel_gateway_refused_streams_total", Help: "Streams and requests refused because a user or organisation had as many under way as there is room for."})
	m.streamSockets = prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "carrel_stream_sockets", Help: "Open streams of boxes, by kind."}, []string{"kind"})
	m.streamLag = prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "carrel_stream_lag_seconds", Help: "From when something happened in a notebook, by its box's clock brought to the gateway's, to when it was written to a viewer who was up to date.",
		Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60},
	})
	m.streamDropped = prometheus.NewCounter(prometheus.CounterOpts{Name: "carrel_stream_dropped_events_total", Help: "Events of notebooks that viewers did not get because they asked for them when they were no longer kept."})
	if registry != nil {
		registry.MustRegister(m.streamSockets, m.streamLag, m.streamDropped)
		registry.MustRegister(m.tunnels, m.streams, m.terminals, m.dialled, m.dials, m.exchanges, m.cuts, m.sshConns, m.sshLogins, m.auditDropped, m.refusedStreams)
	}
	return m
}

func (m *metrics) dialed(err error) {
	reason := "ok"
	if err != nil {
		if reason = carrel.ReasonOf(err); reason == "" {
			reason = "other"
		}
	}
	m.dials.WithLabelValues(reason).Inc()
}

func (m *metrics) exchanged(err error) {
	result := "ok"
	if err != nil {
		result = "refused"
	}
	m.exchanges.WithLabelValues(result).Inc()
}
