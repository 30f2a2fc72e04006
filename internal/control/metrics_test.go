package control

import (
	"errors"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"carrel.dev/carrel/internal/carrel"
)

func TestRequestsAreCountedByTheirOutcome(t *testing.T) {
	s, _ := bare(t)
	registry := prometheus.NewRegistry()
	var err error
	s.metrics, err = newMetrics(s, registry)
	require.NoError(t, err)
	s.note(t.Context(), "/m", time.Now(), nil)
	s.note(t.Context(), "/m", time.Now(), carrel.NotFound("box", "x"))
	s.note(t.Context(), "/m", time.Now(), errors.New("x"))
	families, err := registry.Gather()
	require.NoError(t, err)
	got := map[string]float64{}
	for _, f := range families {
		if f.GetName() == "carrel_control_requests_total" {
			for _, m := range f.GetMetric() {
				got[m.GetLabel()[1].GetValue()] = m.GetCounter().GetValue()
			}
		}
	}
	require.Equal(t, map[string]float64{"ok": 1, "box_not_found": 1, "internal": 1}, got)
}
