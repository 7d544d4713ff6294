package containerd

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// shims lists the shims of this namespace by sandbox. containerd 1.6 loses one
// that it was starting when the caller of the create went away: its task is
// unknown and its directory gone, but the process stays for ever.
func (r *Runtime) shims() (map[string][]int, error) {
	found, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return nil, fmt.Errorf("look for shims: %w", err)
	}
	out := make(map[string][]int)
	for _, path := range found {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		id, ok := r.shimOf(strings.Split(string(b), "\x00"))
		if !ok {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err != nil {
			return nil, fmt.Errorf("look for shims: %w", err)
		}
		out[id] = append(out[id], pid)
	}
	return out, nil
}

// shimOf is the sandbox that a command line serves, if it is that of a shim of
// our containerd and namespace. Shims of other actions ("start", "delete") end
// by themselves.
func (r *Runtime) shimOf(args []string) (id string, ok bool) {
	if len(args) == 0 || !strings.HasPrefix(filepath.Base(args[0]), "containerd-shim") {
		return "", false
	}
	var namespace, address string
	for i := 1; i+1 < len(args); i++ {
		switch args[i] {
		case "-namespace":
			namespace = args[i+1]
		case "-address":
			address = args[i+1]
		case "-id":
			id = args[i+1]
		case "start", "delete":
			return "", false
		}
	}
	return id, namespace == r.cfg.Namespace && address == r.cfg.Address && idForm.MatchString(id)
}

// killShims ends the shims of a sandbox whose task is gone.
func (r *Runtime) killShims(id string) error {
	all, err := r.shims()
	if err != nil {
		return err
	}
	for _, pid := range all[id] {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("kill shim %d: %w", pid, err)
		}
	}
	return nil
}
