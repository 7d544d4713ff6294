package node

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
)

// A daemon that is killed before the runtime has heard of a sandbox leaves the
// directory of its sockets, which is all there is of it.
func TestACrashLeavesNoSocketDirectories(t *testing.T) {
	w := newWorld(t, pooled(1, 1))
	w.filled(1)
	b := newBox(newSandboxID(), "")
	b.dir = w.n.boxDir(b.id)
	if err := b.listen(); err != nil {
		t.Fatal(err)
	}
	defer b.hangUp()
	foreign := filepath.Join(w.cfg.RunDir, "s-notes")
	if err := os.Mkdir(foreign, 0o700); err != nil {
		t.Fatal(err)
	}
	f := w.known("fn")
	if status, _, body := w.invoke(f); status != 200 {
		t.Fatalf("%d %s", status, body)
	}
	w.crash()
	if _, err := os.Lstat(b.dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is left: %v", b.dir, err)
	}
	if _, err := os.Lstat(foreign); err != nil {
		t.Errorf("what is not a sandbox's: %v", err)
	}
	if status, _, body := w.invoke(f); status != 200 { // adopted, with its sockets
		t.Errorf("after the crash: %d %s", status, body)
	}
}

// An agent may dial at the very moment in which its node ends.
func TestAConnectionTakenAsItsBoxIsHungUpDoesNotOutliveIt(t *testing.T) {
	w := newWorld(t)
	b := newBox(newSandboxID(), "")
	b.dir = w.n.boxDir(b.id)
	if err := b.listen(); err != nil {
		t.Fatal(err)
	}
	b.owner.Store(&sandbox{rev: &revision{digest: "d"}})
	ended := make(chan struct{})
	go func() { defer close(ended); w.n.serveControl(b) }()
	within := func(what string) bool {
		all := make([]byte, 1<<20)
		for g := range strings.SplitSeq(string(all[:runtime.Stack(all, true)]), "\n\n") {
			if strings.Contains(g, ".serveControl(") && strings.Contains(g, what) {
				return true
			}
		}
		return false
	}
	w.eventually("it waits for an agent", func() bool { return within("AcceptUnix") })
	b.mu.Lock()
	conn, err := net.Dial("unix", filepath.Join(b.dir, filepath.Base(api.AgentNodeSocket)))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	frame, err := api.AppendControl(nil, api.Control{Hello: &api.Hello{Protocol: api.ControlProtocol, Bound: true, Ready: true, Revision: "d"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write(frame); err != nil {
		t.Fatal(err)
	}
	w.eventually("the connection is taken", func() bool { return within("Mutex).Lock") })
	b.ln.Close() // what hangUp does
	b.hung = true
	b.mu.Unlock()
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		t.Error("it still listens to an agent")
		conn.Close()
		<-ended
	}
}
