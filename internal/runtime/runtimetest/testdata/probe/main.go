// Command probe is process 1 of the sandboxes in runtime tests.
package main

import (
	"crypto/rand"
	"errors"
	"hash/crc32"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"carrel.dev/carrel/internal/runtime/runtimetest/probe"
)

type state struct {
	mu      sync.Mutex
	nonce   string
	counter int64
	hog     [][]byte
}

func main() {
	listener, err := net.Listen("tcp", ":1")
	if err != nil {
		println("listening:", err.Error())
		os.Exit(1)
	}
	s := &state{nonce: rand.Text()}
	for {
		conn, err := listener.Accept()
		if err != nil {
			println("accepting:", err.Error())
			os.Exit(1)
		}
		go probe.Serve(conn, s)
	}
}

func (s *state) Do(req probe.Request) (probe.Response, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch req.Op {
	case "nonce":
		return probe.Response{Data: []byte(s.nonce)}, nil
	case "next":
		s.counter++
		return probe.Response{N: s.counter}, nil
	case "read":
		data, err := os.ReadFile(req.Path)
		return probe.Response{Data: data}, err
	case "write":
		if err := os.MkdirAll(filepath.Dir(req.Path), 0o755); err != nil {
			return probe.Response{}, err
		}
		return probe.Response{}, os.WriteFile(req.Path, req.Data, 0o644)
	case "remove":
		return probe.Response{}, os.Remove(req.Path)
	case "memory":
		var info syscall.Sysinfo_t
		err := syscall.Sysinfo(&info)
		return probe.Response{N: int64(info.Totalram)}, err
	case "hog":
		block := make([]byte, req.N)
		if _, err := rand.Read(block); err != nil {
			return probe.Response{}, err
		}
		s.hog = append(s.hog, block)
		return probe.Response{N: s.checksum()}, nil
	case "checksum":
		return probe.Response{N: s.checksum()}, nil
	case "exit":
		os.Exit(int(req.N))
	}
	return probe.Response{}, errors.New("unknown request " + req.Op)
}

func (s *state) checksum() int64 {
	hash := crc32.NewIEEE()
	for _, block := range s.hog {
		_, _ = hash.Write(block)
	}
	return int64(hash.Sum32())
}
