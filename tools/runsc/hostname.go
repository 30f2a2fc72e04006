package main

import (
	"gvisor.dev/gvisor/pkg/errors/linuxerr"
	"gvisor.dev/gvisor/pkg/sentry/arch"
	"gvisor.dev/gvisor/pkg/sentry/kernel"
	"gvisor.dev/gvisor/pkg/sentry/kernel/auth"
	"gvisor.dev/gvisor/pkg/sentry/syscalls/linux"
)

// letInitSetHostname lets process 1 of a sandbox, as root, set the sandbox's host name. A prepared box becomes a user's while it runs, and has
// another name from then on; the name of the bundle is read at the start alone. For everybody else it takes CAP_SYS_ADMIN as before,
// which no process in a box has.
func letInitSetHostname(tables ...*kernel.SyscallTable) {
	for _, table := range tables {
		for number, call := range table.Table {
			if call.Name == "sethostname" {
				call.Fn = setHostname
				table.Table[number] = call
			}
		}
		table.Init()
	}
}

func setHostname(t *kernel.Task, number uintptr, args arch.SyscallArguments) (uintptr, *kernel.SyscallControl, error) {
	if t.ThreadGroup() != t.Kernel().GlobalInit() || t.Credentials().EffectiveKUID != auth.RootKUID {
		return linux.Sethostname(t, number, args)
	}
	const longest = 64 // as in Linux
	size := args[1].Int()
	if size < 0 || size > longest {
		return 0, nil, linuxerr.EINVAL
	}
	name := make([]byte, size)
	if _, err := t.CopyInBytes(args[0].Pointer(), name); err != nil {
		return 0, nil, err
	}
	t.UTSNamespace().SetHostName(t, string(name))
	return 0, nil, nil
}
