package main

import (
	"encoding/json"
	"path/filepath"
	"strconv"
	"strings"
)

// advertise returns args with the sizes of memory and CPU that the processes in the sandbox are to see,
// where args start the sandbox's own process ("boot") and name none.
//
// runsc takes these sizes from the cgroup that it makes. Carrel makes the cgroups itself and runs runsc in
// them with --ignore-cgroups: that saves some 45 ms of waiting per start on cgroup v1 (runsc joins and leaves a
// dozen hierarchies one after the other), and the hard limit can lie above what is advertised, by what the
// sandbox needs for itself. So the sizes come from linux.resources of the bundle. Anything that does not
// fit changes nothing: runsc then says what is wrong in its own words.
func advertise(args []string, hostCPUs int, readFile func(string) ([]byte, error)) []string {
	boot, bundle, memory := -1, "", -1
	for i, arg := range args {
		switch {
		case arg == "boot" && boot < 0:
			boot = i
		case boot < 0:
		case strings.HasPrefix(arg, "--bundle="):
			bundle = strings.TrimPrefix(arg, "--bundle=")
		case arg == "--total-memory" && i+2 < len(args):
			memory = i + 1
		case arg == "--cpu-num":
			return args // runsc knows a cgroup
		}
	}
	if args[0] != "runsc-sandbox" || boot < 0 || bundle == "" || memory < 0 {
		return args
	}
	data, err := readFile(filepath.Join(bundle, "config.json"))
	if err != nil {
		return args
	}
	var spec struct {
		Linux struct {
			Resources struct {
				Memory struct {
					Limit uint64 `json:"limit"`
				} `json:"memory"`
				CPU struct {
					Quota  int64 `json:"quota"`
					Period int64 `json:"period"`
				} `json:"cpu"`
			} `json:"resources"`
		} `json:"linux"`
	}
	if err := json.Unmarshal(data, &spec); err != nil {
		return args
	}
	last := len(args) - 1 // the container's id
	out := append([]string(nil), args[:last]...)
	if limit, host := spec.Linux.Resources.Memory.Limit, parseMemory(args[memory]); limit > 0 && (host == 0 || limit < host) {
		out[memory] = strconv.FormatUint(limit, 10)
	}
	if cpu := spec.Linux.Resources.CPU; cpu.Quota > 0 && cpu.Period > 0 {
		// Never fewer than two, as runsc itself does it: programs that see one CPU leave out locks.
		n := max(2, (cpu.Quota+cpu.Period-1)/cpu.Period)
		out = append(out,
			"--cpu-num", strconv.FormatInt(min(n, int64(hostCPUs)), 10),
			"--cpu-quota", strconv.FormatInt(cpu.Quota, 10),
			"--cpu-period", strconv.FormatInt(cpu.Period, 10))
	}
	return append(out, args[last])
}

func parseMemory(s string) uint64 {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0
	}
	return n
}
