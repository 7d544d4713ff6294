package launcher

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// defaultPath is where programs are looked for when the environment names no
// PATH, as container runtimes do.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// ListenFD is the descriptor at which a function finds its listening socket.
const ListenFD = 3

// reportFD is where the shim says why it could not execute the function; it
// closes by itself when it could.
const reportFD = 4

// ShimArg is the argument that makes the agent's binary a shim; see Shim.
const ShimArg = "launcher-exec"

// lookPath finds the program as execvp would: as it is when it has a slash
// (relative to dir), else in the directories of the environment's PATH.
func lookPath(name, dir string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	path := defaultPath
	for _, kv := range env {
		if v, ok := strings.CutPrefix(kv, "PATH="); ok {
			path = v // the last one counts, as in a shell
		}
	}
	found := error(syscall.ENOENT)
	for _, d := range filepath.SplitList(path) {
		if !filepath.IsAbs(d) {
			d = filepath.Join(dir, d)
		}
		p := filepath.Join(d, name)
		st, err := os.Stat(p)
		switch {
		case err != nil || st.IsDir():
		case st.Mode()&0o111 == 0:
			found = syscall.EACCES
		default:
			return p, nil
		}
	}
	// Not where it was looked for: the node sees this error, and PATH may come
	// from the sealed bundle.
	return "", fmt.Errorf("find %s in PATH: %w", name, found)
}

// forkListener starts a function that is handed a listening socket. The
// protocol wants LISTEN_PID, which is known only to the new process: so the
// agent's binary runs for a moment in its place, sets it and becomes the function.
func (c *child) forkListener(path string, argv, env []string, dir string, files []uintptr) (int, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return 0, fmt.Errorf("pipe: %w", err)
	}
	defer r.Close()
	files = append(files, w.Fd())
	pid, err := syscall.ForkExec(c.self, append([]string{c.self, ShimArg, path}, argv...), &syscall.ProcAttr{
		Dir: dir, Env: env, Files: files, Sys: &syscall.SysProcAttr{Setsid: true}})
	_ = w.Close()
	if err != nil {
		return 0, fmt.Errorf("execute %s in %s: %w", c.self, dir, err)
	}
	report, err := io.ReadAll(io.LimitReader(r, 32))
	if err != nil || len(report) > 0 {
		_, _ = syscall.Wait4(pid, nil, 0, nil)
		errno, convErr := strconv.Atoi(string(report))
		if convErr != nil {
			return 0, fmt.Errorf("execute %s: the shim failed", argv[0])
		}
		return 0, fmt.Errorf("execute %s in %s: %w", argv[0], dir, syscall.Errno(errno))
	}
	return pid, nil
}

// Shim becomes the program args[0] with the arguments args[1:], after it has
// put its own process id into LISTEN_PID. It returns only if that fails.
func Shim(args []string) error {
	if len(args) < 2 {
		return errors.New("shim: only the launcher starts it")
	}
	syscall.CloseOnExec(reportFD)
	env := append(os.Environ(), "LISTEN_PID="+strconv.Itoa(os.Getpid()))
	err := syscall.Exec(args[0], args[1:], env)
	var errno syscall.Errno
	if errors.As(err, &errno) {
		_, _ = syscall.Write(reportFD, []byte(strconv.Itoa(int(errno))))
	}
	return err
}
