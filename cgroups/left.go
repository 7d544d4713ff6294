package cgroups

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/faasd-sec/faasd-sec/api"
)

// Left is the memory and the pids of Machine's Free alone, read in half the time:
// for who asks before each start.
func (f FS) Left() (api.Resources, error) {
	path := filepath.Join(f.proc, "meminfo")
	b, err := os.ReadFile(path)
	if err != nil {
		return api.Resources{}, fmt.Errorf("read the machine's memory: %w", err)
	}
	_, rest, ok := bytes.Cut(b, []byte("\nMemAvailable:"))
	line, _, _ := bytes.Cut(rest, []byte(" kB\n"))
	kib, err := strconv.ParseInt(string(bytes.TrimSpace(line)), 10, 64)
	if !ok || err != nil {
		return api.Resources{}, fmt.Errorf("read the machine's memory: %s lacks MemAvailable (Linux 3.14)", path)
	}
	tasks, err := f.tasks()
	if err != nil {
		return api.Resources{}, err
	}
	most, err := f.maxTasks()
	if err != nil {
		return api.Resources{}, err
	}
	return api.Resources{Memory: kib << 10, PIDs: max(most-tasks, 0)}, nil
}
