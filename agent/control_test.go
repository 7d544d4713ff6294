package agent

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/sealed/unseal"
)

func TestHelloCarriesTheLauncher(t *testing.T) {
	w := newWorld(t, nil).start()
	h := w.node.hellos[0]
	if h.Protocol != api.ControlProtocol || h.Bound || h.Version != "test" || w.node.pids[0] <= 0 {
		t.Fatalf("%+v pid %d", h, w.node.pids[0])
	}
	var st syscall.Stat_t
	if err := syscall.Stat(procPath(w.node.pids[0], "task"), &st); err != nil {
		t.Fatal(err)
	}
}

func TestNodeRestartFindsTheSandboxServing(t *testing.T) {
	w := newWorld(t, nil).start()
	w.node.close()
	if _, body := w.get("/echo", "while the node is away"); body != "while the node is away" {
		t.Fatal(body)
	}
	w.get("/print", "")
	w.invoke(call{head: sealed.RequestHead{Method: "GET", Path: "/print", Query: "said-meanwhile"}})
	w.node = newTestNode(w)
	w.node.wait("a new hello", func(n *testNode) bool { return len(n.hellos) > 0 })
	if h := w.node.hellos[0]; !h.Bound || !h.Ready || h.Revision != w.revision.String() || w.node.pids[0] != 0 {
		t.Errorf("%+v", h)
	}
	w.node.wait("what was printed meanwhile", func(n *testNode) bool { return n.logged(streamOut, "said-meanwhile") })
}

func TestNodeLostBeforeTheKeysIsAskedAgain(t *testing.T) {
	w := newWorld(t, nil)
	// This node takes the binding and dies.
	ln := must[*net.UnixListener](t)(net.ListenUnix("unix", &net.UnixAddr{Name: w.cfg.nodeSocket(), Net: "unix"}))
	first := make(chan error, 1)
	go func() {
		c, err := ln.AcceptUnix()
		if err != nil {
			first <- err
			return
		}
		defer c.Close()
		if _, err := api.ReadControl(c); err != nil {
			first <- err
			return
		}
		err = api.WriteControl(c, api.Control{Bind: &api.Bind{Descriptor: w.signed}})
		if err == nil {
			err = api.WriteControl(c, api.Control{Mounted: &api.Mounted{UID: testUID, GID: testGID}})
		}
		if err == nil {
			err = api.WriteControl(c, api.Control{Attest: &api.Empty{}})
		}
		if err == nil { // the answer shows that Bind was read
			var f api.Control
			if f, err = api.ReadControl(c); err == nil && f.Statement == nil {
				err = fmt.Errorf("%+v", f)
			}
		}
		ln.Close()
		first <- err
	}()
	w.node = &testNode{w: w}
	done := make(chan error, 1)
	ctx := t.Context()
	go func() { done <- Run(ctx, w.cfg) }()
	if err := <-first; err != nil {
		t.Fatal(err)
	}
	w.node = newTestNode(w)
	t.Cleanup(w.node.close)
	w.node.wait("ready", func(n *testNode) bool { return n.ready })
	if h := w.node.hellos[0]; !h.Bound || h.Ready {
		t.Errorf("%+v", h)
	}
	w.node.send(api.Control{Stop: &api.Stop{GraceMs: 1000}})
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestStopTermsThenKills(t *testing.T) {
	w := newWorld(t, func(w *world) { w.desc.Config.Argv = []string{testBinary, "fn", "http", "-", "stubborn"} }).start()
	if _, body := w.get("/echo", "x"); body != "x" { // it ignores SIGTERM by now
		t.Fatal(body)
	}
	begin := time.Now()
	w.node.send(api.Control{Stop: &api.Stop{GraceMs: 300}})
	select {
	case err := <-w.done:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("it does not stop")
	}
	w.stopped.Do(func() {})
	if d := time.Since(begin); d < 300*time.Millisecond {
		t.Errorf("a stubborn function was killed after %v", d)
	}
}

func TestStopOfAWillingFunctionDoesNotTakeTheGrace(t *testing.T) {
	w := newWorld(t, func(w *world) { w.cfg.StopGrace = time.Hour }).start()
	if err := w.stop(); err != nil {
		t.Fatal(err)
	}
}

func TestKeysThatAreNotTheFunctionsAreRefused(t *testing.T) {
	other := must[*unseal.Identity](t)(unseal.NewIdentity(rand.Reader))
	for name, edit := range map[string]func(*world){
		"refused by the broker": func(w *world) {
			p := api.ProblemOf(api.Errorf(api.CodeKeyRefused, "no"), "")
			w.refuse = &p
		},
		"another owner":          func(w *world) { w.release = func(r *unseal.Release) { r.Owner = other.SigningKey() } },
		"another signing key":    func(w *world) { w.release = func(r *unseal.Release) { r.Signing = scalar(other.Signer()) } },
		"another decryption key": func(w *world) { w.release = func(r *unseal.Release) { r.Decryption[0] = scalar(other.Decrypter()) } },
		"another broker":         func(w *world) { w.broker = other },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			edit(w)
			w.run()
			w.node.wait("failure", func(n *testNode) bool { return n.failed != nil })
			if w.node.failed.Code != api.CodeKeyRefused {
				t.Errorf("%+v", w.node.failed)
			}
			if err := w.stop(); api.CodeOf(err) != api.CodeKeyRefused {
				t.Error(err)
			}
		})
	}
}

func TestDescriptorsThatCannotRunAreRefused(t *testing.T) {
	for name, tc := range map[string]struct {
		edit  func(*world)
		after func(*world)
		field string
	}{
		"no program":    {edit: func(w *world) { w.desc.Config.Argv = nil }, field: "fprocess"},
		"forged":        {after: func(w *world) { w.signed[len(w.signed)-1] ^= 1 }},
		"not a CBOR":    {after: func(w *world) { w.signed = []byte("x") }},
		"no key broker": {edit: func(w *world) { w.desc.Config.Policy.Broker = sealed.PublicKey{} }},
		"another suite": {edit: func(w *world) { w.desc.Suites = []uint16{2, 3} }},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, tc.edit)
			if tc.after != nil {
				tc.after(w)
			}
			w.run()
			w.node.wait("failure", func(n *testNode) bool { return n.failed != nil })
			if f := w.node.failed; f.Code != api.CodeStartFailed || f.Field != tc.field {
				t.Errorf("%+v", f)
			}
		})
	}
}

func TestLogsAreSplitBoundedAndCounted(t *testing.T) {
	w := newWorld(t, func(w *world) { w.cfg.LogBuffer = 4 << 10 }).start()
	w.invoke(call{head: sealed.RequestHead{Method: "GET", Path: "/print", Query: strings.Repeat("a", 2*logLine)}})
	w.node.wait("the rest of a long line", func(n *testNode) bool { return n.logged(streamErr, "aaaa") || n.logged(streamPlatform, "dropped") })
	w.node.close()
	for i := range 200 {
		w.invoke(call{head: sealed.RequestHead{Method: "GET", Path: "/print", Query: fmt.Sprintf("line-%d-%s", i, strings.Repeat("b", 80))}})
	}
	w.node = newTestNode(w)
	w.node.wait("a note of what was dropped", func(n *testNode) bool { return n.logged(streamPlatform, "log lines were dropped") })
	var total int
	w.node.mu.Lock()
	for _, r := range w.node.logs {
		total += len(r.Text)
	}
	w.node.mu.Unlock()
	if total > 8<<10 {
		t.Errorf("%d bytes were kept", total)
	}
}

func TestFramesOfForbiddenLengthEndTheConnectionOnly(t *testing.T) {
	w := newWorld(t, nil).start()
	w.node.mu.Lock()
	var head [4]byte
	binary.BigEndian.PutUint32(head[:], 1<<30)
	_, err := w.node.conn.Write(head[:])
	w.node.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	w.node.wait("another hello", func(n *testNode) bool { return len(n.hellos) > 1 })
	if _, body := w.get("/echo", "still here"); body != "still here" {
		t.Fatal(body)
	}
}

func TestLauncherThatDiesEndsTheSandbox(t *testing.T) {
	w := newWorld(t, func(w *world) { w.cfg.Linger = time.Minute }).start()
	var st string
	_, st = w.invoke(call{head: sealed.RequestHead{Method: "GET", Path: "/file", Query: "/proc/self/stat"}})
	pid, err := strconv.Atoi(strings.Fields(st)[0])
	if err != nil {
		t.Fatal(err)
	}
	// In a sandbox the end of PID 1 ends it; here nobody else would.
	t.Cleanup(func() { _ = syscall.Kill(pid, syscall.SIGKILL) })
	if err := syscall.Kill(w.node.pids[0], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	w.node.wait("the end", func(n *testNode) bool { return n.failed != nil || n.exited != nil })
	if a, _ := w.get("/echo", ""); a.problem == nil || a.problem.Code != api.CodeFunctionCrashed {
		t.Errorf("%+v", a)
	}
}

func TestStopIsTakenAtEveryStage(t *testing.T) {
	t.Run("without a node", func(t *testing.T) {
		w := newWorld(t, nil)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- Run(ctx, w.cfg) }()
		eventually(t, "it listens", func() bool { _, err := os.Stat(w.cfg.httpSocket()); return err == nil })
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Run("while it waits for its bundle", func(t *testing.T) {
		w := bundled(t, []entry{{name: "code/a", body: "x"}}, nil)
		w.holdBundle = make(chan struct{})
		w.run()
		w.node.wait("the question for the bundle", func(n *testNode) bool { return n.wantsBundle })
		w.node.send(api.Control{Stop: &api.Stop{GraceMs: 100}})
		select {
		case err := <-w.done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("it does not stop")
		}
		w.stopped.Do(func() {})
		close(w.holdBundle)
	})
}

func TestFunctionThatDiesAtStartIsExplained(t *testing.T) {
	addr := freeAddr(t)
	for name, tc := range map[string]struct {
		script  string
		startMS uint64 // much more than the shell needs
		code    api.Code
	}{
		"ends":  {"echo dying words >&2; exit 5", 60_000, api.CodeFunctionCrashed},
		"hangs": {"echo dying words >&2; exec sleep 60", 3000, api.CodeFunctionNotReady},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, func(w *world) {
				w.desc.Config.Upstream, w.desc.Config.StartMS = "http://"+addr, tc.startMS
				w.desc.Config.Argv = []string{"/bin/sh", "-c", tc.script}
			}).run()
			w.node.wait("the outcome", func(n *testNode) bool { return n.failed != nil || n.exited != nil })
			w.node.wait("its words", func(n *testNode) bool { return n.logged(streamErr, "dying words") })
			if err := w.stop(); api.CodeOf(err) != tc.code {
				t.Errorf("%v, want %s", err, tc.code)
			}
		})
	}
}
