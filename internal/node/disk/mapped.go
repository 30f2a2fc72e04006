package disk

import (
	"fmt"
	"os"
	"runtime/debug"

	"golang.org/x/sys/unix"
)

// mapped gives a part of a file to visit, as it lies in the page cache: nothing is copied, and others can write to the file meanwhile. at is a
// multiple of the page size; both are in bytes. What another process cuts off, or the disk does not give, faults when it is touched: that is an error
// here and not the end of the process. visit must touch the content in the goroutine that it is called in.
func mapped(f *os.File, at, length int64, visit func(content []byte) error) (err error) {
	content, err := unix.Mmap(int(f.Fd()), at, int(length), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map: %w", err)
	}
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		_ = unix.Munmap(content)
		switch fault := recover().(type) {
		case nil:
		case interface{ Addr() uintptr }: // the runtime's, of touching what is not there
			err = fmt.Errorf("read what is mapped: %v", fault)
		default:
			panic(fault)
		}
	}()
	return visit(content)
}
