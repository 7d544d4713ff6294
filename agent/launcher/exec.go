package launcher

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// defaultPath is where programs are looked for when the environment names no
// PATH, as container runtimes do.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// ListenFD is the descriptor at which a function finds its listening socket.
const ListenFD = 3

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
