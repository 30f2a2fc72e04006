package fake

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
)

// Machine is what the fake keeps of one sandbox, for an AgentHandler that wants to show files and memory. Each
// method is one change of its own, written through to files.
type Machine struct {
	r   *Runtime
	run string
}

// Machine of a sandbox, which need not exist yet.
func (r *Runtime) Machine(run string) *Machine { return &Machine{r, run} }

type files map[string][]byte

// homePrefix is what lies in the home image; everything else is in the root file system.
const homePrefix = "/home/carrel/"

// ReadFile returns a file, or an error that is fs.ErrNotExist.
func (m *Machine) ReadFile(path string) (data []byte, err error) {
	err = m.change(path, func(f files) (bool, error) {
		var ok bool
		if data, ok = f[path]; !ok {
			return false, fmt.Errorf("%s: %w", path, fs.ErrNotExist)
		}
		return false, nil
	})
	return data, err
}

// WriteFile makes or overwrites a file.
func (m *Machine) WriteFile(path string, data []byte) error {
	return m.change(path, func(f files) (bool, error) {
		f[path] = data
		return true, nil
	})
}

// Remove removes a file.
func (m *Machine) Remove(path string) error {
	return m.change(path, func(f files) (bool, error) {
		if _, ok := f[path]; !ok {
			return false, fmt.Errorf("%s: %w", path, fs.ErrNotExist)
		}
		delete(f, path)
		return true, nil
	})
}

// Memory changes what survives only in a capture with memory: change gets the value of key, nil at first, and
// returns the new one.
func (m *Machine) Memory(key string, change func(old []byte) []byte) ([]byte, error) {
	m.r.mu.Lock()
	defer m.r.mu.Unlock()
	if _, err := m.r.live(m.run); err != nil {
		return nil, err
	}
	memory := files{}
	if err := readJSON(m.r.path(m.run, "memory.json"), &memory); err != nil {
		return nil, err
	}
	if memory == nil {
		memory = files{}
	}
	memory[key] = change(memory[key])
	return memory[key], writeJSON(m.r.path(m.run, "memory.json"), memory)
}

// change reads the files where path lies, and writes them if f says so.
func (m *Machine) change(path string, f func(files) (bool, error)) error {
	m.r.mu.Lock()
	defer m.r.mu.Unlock()
	rec, err := m.r.live(m.run)
	if err != nil {
		return err
	}
	var all files
	inHome := strings.HasPrefix(path, homePrefix)
	if inHome {
		all, err = ReadHome(rec.Spec.Home)
	} else {
		err = readJSON(m.r.path(m.run, "root.json"), &all)
	}
	if err != nil {
		return err
	}
	if all == nil {
		all = files{}
	}
	dirty, err := f(all)
	if err != nil || !dirty {
		return err
	}
	if inHome {
		return WriteHome(rec.Spec.Home, all)
	}
	return writeJSON(m.r.path(m.run, "root.json"), all)
}

// homeMagic begins a home image that the fake has written; any other image is an empty home to it.
const homeMagic = "carrel fake home\n"

// ReadHome returns the files in a home image, by their paths in the sandbox.
func ReadHome(image string) (map[string][]byte, error) {
	f, err := os.Open(image)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	head := make([]byte, len(homeMagic)+8)
	if _, err := io.ReadFull(f, head); errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return map[string][]byte{}, nil
	} else if err != nil {
		return nil, err
	}
	out := map[string][]byte{}
	if string(head[:len(homeMagic)]) != homeMagic {
		return out, nil
	}
	size := binary.BigEndian.Uint64(head[len(homeMagic):])
	err = json.NewDecoder(io.LimitReader(f, int64(size))).Decode(&out)
	return out, err
}

// WriteHome makes files the whole content of a home image, which keeps its size.
func WriteHome(image string, all map[string][]byte) error {
	data, err := json.Marshal(all)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(image, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	block := binary.BigEndian.AppendUint64([]byte(homeMagic), uint64(len(data)))
	block = append(block, data...)
	if int64(len(block)) > info.Size() {
		return errors.New("no space left on device")
	}
	_, err = f.WriteAt(block, 0)
	return err
}

func readJSON(path string, v any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return json.Unmarshal(data, v)
}

// writeJSON replaces a file at once, so that a reader and a restart see the old or the new.
func writeJSON(path string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if err := os.WriteFile(path+".new", data, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}
