package agent

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strconv"
)

const procDir = "/proc"

// processIDs gives the numbers of the box's processes, rising. With an error it gives those that were read.
func processIDs() ([]int, error) {
	dir, err := os.Open(procDir)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	var result []int
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil {
			result = append(result, pid)
		}
	}
	slices.Sort(result)
	return result, err
}

// statFields gives the fields of /proc/PID/stat from the third on; firstField is what proc(5) numbers the first of them.
func statFields(pid int) ([][]byte, error) {
	data, err := os.ReadFile(filepath.Join(procDir, strconv.Itoa(pid), "stat"))
	if err != nil {
		return nil, err
	}
	return splitStat(data), nil
}

const firstField = 3

// splitStat splits what is in /proc/PID/stat. The name in parentheses may have anything in it, parentheses included.
func splitStat(data []byte) [][]byte { return bytes.Fields(data[bytes.LastIndexByte(data, ')')+1:]) }
