// Command mapfiles maps files into memory and prints the length and the last character of each.
package main

import (
	"fmt"
	"os"
	"syscall"
)

func main() {
	for _, name := range os.Args[1:] {
		if err := show(name); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
}

func show(name string) error {
	file, err := os.Open(name)
	if err != nil {
		return err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	data, err := syscall.Mmap(int(file.Fd()), 0, int(info.Size()), syscall.PROT_READ, syscall.MAP_PRIVATE)
	if err != nil {
		return fmt.Errorf("mapping %s: %w", name, err)
	}
	fmt.Println(len(data), string(data[len(data)-1]))
	return syscall.Munmap(data)
}
