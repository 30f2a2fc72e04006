package gvisor

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"carrel.dev/carrel/internal/runtime"
)

// The part of an OCI bundle's config.json that is used (github.com/opencontainers/runtime-spec). What a restore
// compares with the memory that it continues: process (except its environment), mounts except their sources, the
// kinds of namespaces, and annotations that begin with dev.gvisor. So none of these may depend on where Carrel keeps its files.
type ociSpec struct {
	Version     string            `json:"ociVersion"`
	Process     ociProcess        `json:"process"`
	Root        ociRoot           `json:"root"`
	Hostname    string            `json:"hostname"`
	Mounts      []ociMount        `json:"mounts"`
	Annotations map[string]string `json:"annotations"`
	Linux       ociLinux          `json:"linux"`
}

type ociProcess struct {
	User         ociUser             `json:"user"`
	Args         []string            `json:"args"`
	Env          []string            `json:"env"`
	Cwd          string              `json:"cwd"`
	Capabilities map[string][]string `json:"capabilities"`
	Rlimits      []ociRlimit         `json:"rlimits"`
}

type ociUser struct {
	UID uint32 `json:"uid"`
	GID uint32 `json:"gid"`
}

type ociRlimit struct {
	Type string `json:"type"`
	Hard uint64 `json:"hard"`
	Soft uint64 `json:"soft"`
}

type ociRoot struct {
	Path string `json:"path"`
}

type ociMount struct {
	Destination string   `json:"destination"`
	Type        string   `json:"type"`
	Source      string   `json:"source"`
	Options     []string `json:"options,omitempty"`
}

type ociLinux struct {
	Namespaces []ociNamespace `json:"namespaces"`
	Resources  ociResources   `json:"resources"`
}

type ociNamespace struct {
	Type string `json:"type"`
	Path string `json:"path,omitempty"`
}

// ociResources are those that the sandbox advertises (tools/runsc/advertise.go); the cgroups hold the limits.
type ociResources struct {
	Memory struct {
		Limit int64 `json:"limit"`
	} `json:"memory"`
	CPU struct {
		Quota  int64 `json:"quota"`
		Period int64 `json:"period"`
	} `json:"cpu"`
}

// Paths inside a sandbox, part of what agents and images rely on.
const (
	agentInside    = "/.carrel/bin/carrel-agent"
	identityInside = "/.carrel/identity"
	homeInside     = "/home/carrel"
)

// dockerCapabilities are those that Docker gives to a container by default. runsc takes CAP_NET_RAW away again.
var dockerCapabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID", "CAP_SETUID",
	"CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
}

// tarFD is the file descriptor in runsc with the changes of the root file system, or nothing. Its name is a
// part of the annotations that a restore compares, so it is always the same and always there.
const tarFD = "/proc/self/fd/3"

// bundle returns config.json for spec.
func (r *Runtime) bundle(spec runtime.Spec) ociSpec {
	size := func(n int64) string { return "size=" + strconv.FormatInt(n, 10) }
	network := ociNamespace{Type: "network", Path: spec.Network.Namespace}
	oci := ociSpec{
		Version: "1.2.0",
		Process: ociProcess{
			Args: []string{agentInside}, Env: spec.Env, Cwd: "/",
			Capabilities: map[string][]string{"bounding": dockerCapabilities, "effective": dockerCapabilities, "permitted": dockerCapabilities},
			Rlimits:      []ociRlimit{{Type: "RLIMIT_NOFILE", Soft: 65536, Hard: 1 << 20}},
		},
		Root:     ociRoot{Path: "rootfs"},
		Hostname: spec.Hostname,
		Mounts: []ociMount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
			{Destination: "/dev/shm", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "nodev", "mode=1777", size(spec.Limits.Shm)}},
			{Destination: "/tmp", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "nodev", "mode=1777", size(spec.Limits.Tmp)}},
			{Destination: homeInside, Type: "bind", Source: filepath.Join(r.path(spec.Run, dirHome), homeSubdir), Options: []string{"bind", "rw"}},
			{Destination: agentInside, Type: "bind", Source: spec.Agent, Options: []string{"bind", "ro"}},
			{Destination: identityInside, Type: "bind", Source: spec.Identity, Options: []string{"bind", "ro"}},
		},
		Annotations: map[string]string{
			"dev.gvisor.spec.rootfs.source": spec.Image,
			"dev.gvisor.spec.rootfs.type":   "erofs",
			// Where the file lies is said by the flag --overlay2; here only that it is one counts.
			"dev.gvisor.spec.rootfs.overlay": "dir=/run/carrel/overlay",
			"dev.gvisor.spec.rootfs.options": size(spec.Limits.Root),
			"dev.gvisor.tar.rootfs.upper":    tarFD,
		},
		Linux: ociLinux{Namespaces: []ociNamespace{{Type: "pid"}, {Type: "ipc"}, {Type: "uts"}, {Type: "mount"}, network}},
	}
	oci.Linux.Resources.Memory.Limit = spec.Limits.Memory
	oci.Linux.Resources.CPU.Quota, oci.Linux.Resources.CPU.Period = cpuQuota(spec.Limits), cpuPeriod
	return oci
}

func (r *Runtime) writeBundle(spec runtime.Spec) error {
	dir := r.path(spec.Run, dirBundle)
	if err := os.MkdirAll(filepath.Join(dir, "rootfs"), 0o711); err != nil {
		return fmt.Errorf("making the bundle: %w", err)
	}
	data, err := json.Marshal(r.bundle(spec))
	if err != nil {
		return fmt.Errorf("encoding the bundle: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), data, 0o600); err != nil {
		return fmt.Errorf("writing the bundle: %w", err)
	}
	return nil
}

// sandboxArgs is the command that begins the sandbox, without the binary.
func (r *Runtime) sandboxArgs(spec runtime.Spec) []string {
	network := "sandbox"
	if spec.Network.Namespace == "" {
		network = "none"
	}
	args := append(r.globalArgs(spec.Run),
		"--network="+network,
		"--overlay2=root:dir="+r.overlayDir,
		"--allow-rootfs-tar-annotation",
	)
	if spec.Sudo {
		args = append(args, "--allow-suid")
	}
	if spec.From != "" && spec.WithMemory {
		args = append(args, "restore", "-image-path="+filepath.Join(spec.From, captureMemory))
	} else {
		args = append(args, "run")
	}
	return append(args, "-detach", "-bundle="+r.path(spec.Run, dirBundle), spec.Run)
}
