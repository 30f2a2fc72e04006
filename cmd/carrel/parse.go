package main

import (
	"math"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
)

// resourceFlags are --cpu, --memory, --home and --root.
type resourceFlags struct{ cpu, memory, home, root, processes string }

func (f *resourceFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.cpu, "cpu", "", "cores, such as 2 or 0.5")
	flags.StringVar(&f.memory, "memory", "", "memory, such as 512M or 4G (powers of 1024)")
	flags.StringVar(&f.home, "home", "", "size of the home directory's disk, such as 10G")
	flags.StringVar(&f.root, "root", "", "how much may be written outside of home, such as 2G")
	flags.StringVar(&f.processes, "processes", "", "number of processes and threads")
}

func (f *resourceFlags) parse(cmd *cobra.Command) (*carrelv1.Resources, error) {
	r := &carrelv1.Resources{}
	if f.cpu != "" {
		v, err := strconv.ParseFloat(f.cpu, 64)
		if err != nil || v <= 0 || v > 1e6 {
			return nil, usageError(cmd, "--cpu is %q; it is a number of cores such as 2 or 0.5", f.cpu)
		}
		r.CpuMillis = int64(math.Round(v * 1000))
	}
	if f.processes != "" {
		v, err := strconv.ParseInt(f.processes, 10, 64)
		if err != nil || v <= 0 {
			return nil, usageError(cmd, "--processes is %q; it is a number such as 4096", f.processes)
		}
		r.Processes = v
	}
	for _, s := range []struct {
		name, text string
		into       *int64
	}{{"memory", f.memory, &r.MemoryBytes}, {"home", f.home, &r.HomeBytes}, {"root", f.root, &r.RootBytes}} {
		if s.text == "" {
			continue
		}
		n, ok := parseSize(s.text)
		if !ok {
			return nil, usageError(cmd, "--%s is %q; it is a size such as 512M or 4G", s.name, s.text)
		}
		*s.into = n
	}
	return r, nil
}

// parseSize reads a size in bytes with K, M, G or T (powers of 1024; an i and a B after it are
// allowed).
func parseSize(s string) (int64, bool) {
	t := strings.TrimSuffix(strings.TrimSuffix(strings.ToUpper(strings.TrimSpace(s)), "B"), "I")
	shift := 0
	for i, unit := range "KMGT" {
		if number, ok := strings.CutSuffix(t, string(unit)); ok {
			t, shift = number, 10*(i+1)
			break
		}
	}
	v, err := strconv.ParseFloat(t, 64)
	if err != nil || v <= 0 || v*math.Pow(2, float64(shift)) > math.MaxInt64/2 {
		return 0, false
	}
	return int64(math.Round(v * math.Pow(2, float64(shift)))), true
}

// keyValues reads K=V flags.
func keyValues(cmd *cobra.Command, flag string, list []string) (map[string]string, error) {
	if len(list) == 0 {
		return nil, nil
	}
	m := map[string]string{}
	for _, s := range list {
		key, value, ok := strings.Cut(s, "=")
		if !ok || key == "" {
			return nil, usageError(cmd, "--%s is %q; it is KEY=VALUE", flag, s)
		}
		m[key] = value
	}
	return m, nil
}

// states reads names of states such as RUNNING.
func states(cmd *cobra.Command, names []string) ([]carrelv1.State, error) {
	var list []carrelv1.State
	for _, name := range names {
		v, ok := carrelv1.State_value["STATE_"+strings.ToUpper(name)]
		if !ok || v == 0 {
			return nil, usageError(cmd, "%q is no state; use one of %s", name, strings.Join(stateNames(), ", "))
		}
		list = append(list, carrelv1.State(v))
	}
	return list, nil
}

func stateNames() []string {
	var names []string
	for v := int32(1); v < int32(len(carrelv1.State_name)); v++ {
		names = append(names, stateWord(carrelv1.State(v)))
	}
	return names
}
