package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// part is one running process of a cluster.
type part struct {
	pid  int
	args []string
}

// part finds a process by what local calls it: "coordinator", "node-1", …
func (c *cluster) part(t testing.TB, name string) part {
	t.Helper()
	var p part
	eventually(t, name+" runs", func() bool {
		b, err := os.ReadFile(filepath.Join(c.runDir(), name+".pid"))
		if err != nil {
			return false
		}
		text, _, _ := strings.Cut(string(b), " ")
		if p.pid, err = strconv.Atoi(text); err != nil {
			return false
		}
		cmd, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p.pid))
		p.args = strings.Split(string(cmd), "\x00")
		return err == nil && len(p.args) > 1
	})
	return p
}

// runDir is where a local cluster keeps its sockets and pids.
func (c *cluster) runDir() string {
	sum := sha256.Sum256([]byte(c.State()))
	return filepath.Join("/run/faasd-sec", hex.EncodeToString(sum[:4]))
}

// flag is the value of a flag that the process was started with.
func (p part) flag(name string) string {
	for i, a := range p.args {
		if strings.TrimLeft(a, "-") == name && i+1 < len(p.args) {
			return p.args[i+1]
		}
	}
	return ""
}
