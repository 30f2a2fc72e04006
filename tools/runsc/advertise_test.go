package main

import (
	"errors"
	"slices"
	"testing"
)

func TestAdvertiseTakesSizesFromTheBundle(t *testing.T) {
	bundle := `{"linux":{"resources":{"memory":{"limit":1000},"cpu":{"quota":250000,"period":100000}}}}`
	base := []string{"runsc-sandbox", "--root=/r", "boot", "--bundle=/b", "--total-host-memory", "5000", "--total-memory", "5000", "id"}
	with := func(args ...string) []string { return append([]string{"runsc-sandbox", "--root=/r", "boot"}, args...) }
	for _, c := range []struct {
		name   string
		args   []string
		bundle string
		err    error
		want   []string
	}{
		{"both", base, bundle, nil, with("--bundle=/b", "--total-host-memory", "5000", "--total-memory", "1000", "--cpu-num", "3", "--cpu-quota", "250000", "--cpu-period", "100000", "id")},
		{"never more memory than the host", base, `{"linux":{"resources":{"memory":{"limit":9000}}}}`, nil, base},
		{"a cgroup is known", with("--bundle=/b", "--cpu-num", "1", "--total-memory", "5000", "id"), bundle, nil, with("--bundle=/b", "--cpu-num", "1", "--total-memory", "5000", "id")},
		{"no bundle", base, "", errors.New("gone"), base},
		{"not JSON", base, "{", nil, base},
		{"another command", []string{"runsc", "run", "boot"}, bundle, nil, []string{"runsc", "run", "boot"}},
		{"a box called boot", []string{"runsc", "boot"}, bundle, nil, []string{"runsc", "boot"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := slices.Clone(c.args)
			got := advertise(c.args, 8, func(path string) ([]byte, error) {
				if path != "/b/config.json" {
					t.Fatalf("read %s", path)
				}
				return []byte(c.bundle), c.err
			})
			if !slices.Equal(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
			if !slices.Equal(c.args, before) {
				t.Errorf("the given arguments were changed to %q", c.args)
			}
		})
	}
}
