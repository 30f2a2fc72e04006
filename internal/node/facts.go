package node

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	goruntime "runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	linkv1 "carrel.dev/carrel/api/carrel/link/v1"
)

// cpuIdentity says on which processors a memory snapshot goes on.
type cpuIdentity struct {
	Vendor      string `json:"vendor"`
	Model       string `json:"model"`
	FlagsSHA256 string `json:"flags_sha256"`
}

// thisCPU reads the first processor of /proc/cpuinfo.
func thisCPU() (cpuIdentity, error) {
	data, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return cpuIdentity{}, fmt.Errorf("look at the processor: %w", err)
	}
	var id cpuIdentity
	var flags []string
	for line := range strings.Lines(string(data)) {
		if strings.TrimSpace(line) == "" {
			break
		}
		key, value, _ := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		switch strings.TrimSpace(key) {
		case "vendor_id", "CPU implementer":
			id.Vendor = value
		case "model name", "CPU part":
			id.Model = value
		case "flags", "Features":
			flags = strings.Fields(value)
		}
	}
	slices.Sort(flags)
	sum := sha256.Sum256([]byte(strings.Join(flags, " ")))
	id.FlagsSHA256 = hex.EncodeToString(sum[:])
	return id, nil
}

// facts are what control is told of the machine.
func (d *Daemon) facts() *linkv1.NodeFacts {
	caps := d.runtime.Capabilities()
	f := &linkv1.NodeFacts{
		Version: d.cfg.Version, RuntimeVersion: caps.Name + " " + caps.Version, Kernel: kernelRelease(),
		CpuMillis: int64(goruntime.NumCPU()) * 1000, MemoryBytes: memoryTotal(),
		Enforced: slices.Clone(caps.Enforced), Limitations: slices.Clone(caps.Limitations),
		SnapshotIds: d.snapshots.ids(), QuarantinedRuns: d.manager.quarantined(), ProxyAddress: d.cfg.ProxyAddress,
		AgentSha256: d.agentSHA256,
	}
	if err := d.nets.Filtered(); err == nil {
		f.Enforced = append(f.Enforced, "network")
	} else {
		f.Limitations = append(f.Limitations, "There is no firewall between boxes and this machine: "+err.Error())
	}
	if !caps.Memory {
		f.Limitations = append(f.Limitations, "The runtime cannot save memory, so boxes can be stopped but not paused.")
	}
	if space, err := d.pool.Space(); err != nil {
		d.log.Error("the pool's space is not known", "error", err)
	} else {
		f.DiskBytes = space.Total - d.pool.Reserve()
		f.DiskFreeBytes = max(0, space.Free-d.pool.Reserve())
	}
	images, err := d.pool.Images()
	if err != nil {
		d.log.Error("the node's images are not known", "error", err)
	}
	f.ImageDigests = images
	slices.Sort(f.Enforced)
	f.Enforced = slices.Compact(f.Enforced)
	return f
}

func kernelRelease() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}

// memoryTotal is the machine's memory, in bytes.
func memoryTotal() int64 {
	data, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(data)) {
		if value, ok := strings.CutPrefix(line, "MemTotal:"); ok {
			kb, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(value), "kB")), 10, 64)
			if err == nil {
				return kb << 10
			}
		}
	}
	return 0
}
