package store

import (
	"context"
	"fmt"
	"math"
	"strings"

	"carrel.dev/carrel/internal/carrel"
)

// CheckFits refuses sizes that no node has in all, with CodePrecondition, reason too_large: such a box could never run. A node that joined
// and did not say yet how large it is may be large enough, and so may the first one while there is none; what is free now is not looked at, since
// a box waits for room.
func (s *Store) CheckFits(ctx context.Context, r carrel.Resources) error {
	return s.read(ctx, "CheckFits", SystemScope(), func(t *tx) error {
		over := s.cfg.CPUOvercommit
		holds, err := t.AnyNodeHolds(ctx, int64(math.Ceil(float64(r.CPUMillis)/over)), r.MemoryBytes, r.DiskBytes())
		if err != nil {
			return fmt.Errorf("look for a node that is large enough: %w", err)
		}
		if holds {
			return nil
		}
		most, err := t.LargestNodes(ctx)
		if err != nil {
			return fmt.Errorf("look for the largest node: %w", err)
		}
		if most.Silent > 0 || most.Known == 0 {
			return nil
		}
		var lacks []string
		for _, l := range []struct {
			what       string
			need, most int64
			unit       func(int64) string
		}{
			{"CPU", r.CPUMillis, int64(float64(most.CpuMillis) * over), carrel.Cores},
			{"memory", r.MemoryBytes, most.MemoryBytes, carrel.Size},
			{"disk", r.DiskBytes(), most.DiskBytes, carrel.Size},
		} {
			if l.need > l.most {
				lacks = append(lacks, fmt.Sprintf("%s of %s, and the largest node gives %s", l.unit(l.need), l.what, l.unit(l.most)))
			}
		}
		if len(lacks) == 0 {
			lacks = []string{"more of CPU, memory and disk together than any one node gives"}
		}
		return carrel.Errorf(carrel.CodePrecondition, carrel.ReasonTooLarge, "no node could ever hold the box: it needs %s; make it smaller, or add a larger node", strings.Join(lacks, "; "))
	})
}
