package agent

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed"
)

// shell makes a function of a shell script.
func shell(mode sealed.Mode, script string) func(*world) {
	return func(w *world) {
		w.desc.Config.Mode = mode
		w.desc.Config.Argv = []string{"/bin/sh", "-c", script}
	}
}

func TestSerializingRunsAProcessPerRequest(t *testing.T) {
	w := newWorld(t, shell(sealed.ModeSerializing, `cat; echo " $Http_Method $Http_Path $Http_Query $Http_Content_Type $Http_X_Call_Id $LD_PRELOAD"; echo noted >&2`)).start()
	a, body := w.invoke(call{head: sealed.RequestHead{Method: "POST", Path: "/a/b", Query: "q=1", Header: []sealed.Field{
		{Name: "content-type", Value: "text/x"}, {Name: "x-call-id", Value: "7"}, {Name: "method", Value: "EVIL"}, {Name: "path", Value: "EVIL"}}},
		body: strings.NewReader("input")})
	if body != "input POST /a/b q=1 text/x 7 \n" || a.head.Status != 200 || a.header("content-type") != "text/x" {
		t.Fatalf("%+v %q", a, body)
	}
	w.node.wait("its standard error", func(n *testNode) bool { return n.logged(streamErr, "noted") })
}

func TestSerializingOutputBeyondMemoryIsSpooled(t *testing.T) {
	w := newWorld(t, shell(sealed.ModeSerializing, `cat; cat /dev/zero | head -c 3000000`)).start()
	_, body := w.get("/", "begin")
	if len(body) != 3000005 || !strings.HasPrefix(body, "begin") || strings.Trim(body[5:], "\x00") != "" {
		t.Fatalf("%d bytes", len(body))
	}
}

func TestSerializingExitCodeIsAFailureWithoutOutput(t *testing.T) {
	w := newWorld(t, shell(sealed.ModeSerializing, `echo secret output; exit 3`)).start()
	a, body := w.get("/", "")
	wantCode(t, a, api.CodeFunctionCrashed)
	if a.head.Status < 500 || strings.Contains(body, "secret") || !strings.Contains(body, "exit code 3") {
		t.Fatalf("%+v %s", a, body)
	}
}

func TestProcessKilledForMemoryIsTold(t *testing.T) {
	w := newWorld(t, shell(sealed.ModeSerializing, `kill -9 $$`))
	kills := int64(0)
	w.kills = func() int64 { return kills }
	w.start()
	a, _ := w.get("/", "")
	wantCode(t, a, api.CodeFunctionCrashed)
	w.node.mu.Lock()
	kills = 1
	w.node.mu.Unlock()
	a, _ = w.get("/", "")
	wantCode(t, a, api.CodeOOMKilled)
	a, _ = w.get("/", "") // the one kill was accounted for
	wantCode(t, a, api.CodeFunctionCrashed)
}

func TestProcessGroupIsKilledAtTheTimeout(t *testing.T) {
	for _, mode := range []sealed.Mode{sealed.ModeSerializing, sealed.ModeStreaming} {
		t.Run(string(mode), func(t *testing.T) {
			w := newWorld(t, func(w *world) {
				shell(mode, `echo $$ >&2; sleep 60 & sleep 60`)(w)
				w.desc.Config.ExecMS = 2000 // enough for the shell to begin
			}).start()
			begin := time.Now()
			a, _ := w.get("/", "")
			wantCode(t, a, api.CodeDeadline)
			if a.head.Status != 504 || time.Since(begin) > 30*time.Second {
				t.Errorf("status %d after %v", a.head.Status, time.Since(begin))
			}
			pid := 0
			w.node.wait("the pid", func(n *testNode) bool {
				for _, r := range n.logs {
					if r.Stream == streamErr {
						for _, c := range r.Text {
							pid = pid*10 + int(c-'0')
						}
						return true
					}
				}
				return false
			})
			eventually(t, "the group is gone", func() bool { return syscall.Kill(-pid, 0) == syscall.ESRCH })
		})
	}
}

func TestNothingOfARequestRunsOn(t *testing.T) {
	w := newWorld(t, shell(sealed.ModeSerializing, `sleep 60 & echo $!`)).start()
	_, body := w.get("/", "")
	pid := 0
	for _, c := range strings.TrimSpace(body) {
		pid = pid*10 + int(c-'0')
	}
	eventually(t, "the background process is gone", func() bool { return pid > 1 && syscall.Kill(pid, 0) == syscall.ESRCH })
}

// The process of a caller who left, before a byte of its output or within it, is
// killed, and its slot serves the next.
func TestProcessOfACallerWhoLeftIsKilled(t *testing.T) {
	for mode, script := range map[sealed.Mode]string{
		sealed.ModeStreaming:   `read line; if [ "$line" = quick ]; then echo done; else echo first; sleep 60; fi`,
		sealed.ModeSerializing: `read line; if [ "$line" = quick ]; then echo done; else sleep 60; fi`,
	} {
		w := newWorld(t, func(w *world) {
			shell(mode, script)(w)
			w.desc.Config.MaxInFlight = 1
		}).start()
		ctx, leave := context.WithTimeout(t.Context(), 300*time.Millisecond)
		b, _ := w.sealedRequest(call{head: sealed.RequestHead{Method: "POST", Path: "/"}, body: strings.NewReader("wait\n")})
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://agent"+api.AgentPathInvoke, bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", api.ContentTypeSealed)
		resp, err := w.http.RoundTrip(req)
		if err == nil {
			_, err = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
		leave()
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("mode %v: the caller did not leave: %v", mode, err)
		}
		var a answer
		var body string
		eventually(t, "the slot serves the next", func() bool {
			a, body = w.get("/", "quick\n")
			return a.problem == nil || a.problem.Code != api.CodeBusy
		})
		if body != "done\n" {
			t.Errorf("mode %v: %+v %q", mode, a, body)
		}
	}
}

func TestOutputThatAStrayHoldsOpenStillEnds(t *testing.T) {
	w := newWorld(t, shell(sealed.ModeSerializing, `setsid sleep 60 & echo done`)).start()
	begin := time.Now()
	if a, body := w.get("/", ""); body != "done\n" || time.Since(begin) > 30*time.Second {
		t.Fatalf("%+v %q after %v", a, body, time.Since(begin))
	}
}

func TestStreamingPipesLive(t *testing.T) {
	w := newWorld(t, shell(sealed.ModeStreaming, `while read line; do echo "got $line"; done`)).start()
	pr, pw := io.Pipe()
	sw, pending, err := w.request(call{head: sealed.RequestHead{Method: "POST"}, flags: sealed.FlagEarlyInput}, pw)
	if err != nil {
		t.Fatal(err)
	}
	say := func(s string) {
		_, err := sw.Write([]byte(s))
		if err == nil {
			err = sw.Flush()
		}
		if err != nil {
			t.Error(err)
		}
	}
	answered := make(chan struct{})
	go func() {
		say("one\n")
		<-answered
		say("two\n")
		pw.CloseWithError(sw.Close())
	}()
	a := w.post(context.Background(), pr, pending, nil)
	defer a.close()
	buf := make([]byte, 8)
	_, err = io.ReadFull(a.body, buf)
	close(answered)
	if err != nil || string(buf) != "got one\n" {
		t.Fatalf("%q %v", buf, err)
	}
	if rest, err := io.ReadAll(a.body); err != nil || string(rest) != "got two\n" {
		t.Fatalf("%q %v", rest, err)
	}
}

func TestStreamingBigBody(t *testing.T) {
	w := newWorld(t, shell(sealed.ModeStreaming, `tr a-z A-Z`)).start()
	body := strings.Repeat("abcdefghijklmnop", 6<<20/16)
	b, pending := w.sealedRequest(call{head: sealed.RequestHead{Method: "POST"}, flags: sealed.FlagEarlyInput, body: strings.NewReader(body)})
	a := w.post(context.Background(), bytes.NewReader(b), pending, nil)
	defer a.close()
	if got, err := io.ReadAll(a.body); err != nil || string(got) != strings.ToUpper(body) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
}

func TestStreamingFailureBeforeAndAfterTheFirstByte(t *testing.T) {
	w := newWorld(t, shell(sealed.ModeStreaming, `if [ "$Http_Query" = early ]; then exit 4; fi; echo part; sleep 0.2; exit 4`)).start()
	a, _ := w.invoke(call{head: sealed.RequestHead{Method: "GET", Query: "early"}})
	wantCode(t, a, api.CodeFunctionCrashed)
	b, pending := w.sealedRequest(call{head: sealed.RequestHead{Method: "GET"}})
	a = w.post(context.Background(), bytes.NewReader(b), pending, nil)
	defer a.close()
	if got, err := io.ReadAll(a.body); err == nil {
		t.Fatalf("a failed process's output ended well: %q", got)
	}
}

func TestProcessesAreReaped(t *testing.T) {
	w := newWorld(t, shell(sealed.ModeSerializing, `true`)).start()
	for range 20 {
		if a, _ := w.get("/", ""); a.head.Status != 200 {
			t.Fatalf("%+v", a)
		}
	}
	launcher := w.node.pids[0]
	eventually(t, "the launcher has no children", func() bool {
		tasks, err := os.ReadDir(procPath(launcher, "task"))
		if err != nil {
			t.Fatal(err)
		}
		for _, task := range tasks {
			b, err := os.ReadFile(procPath(launcher, "task", task.Name(), "children"))
			if err == nil && len(bytes.TrimSpace(b)) > 0 {
				return false
			}
		}
		return true
	})
	w.stop()
	eventually(t, "the launcher is reaped", func() bool {
		_, err := os.Stat(procPath(launcher))
		return os.IsNotExist(err)
	})
}

func TestProgramThatIsNotThereIsExplained(t *testing.T) {
	w := newWorld(t, func(w *world) { w.desc.Config.Argv = []string{"/no/such/program"} })
	w.run()
	w.node.wait("failure", func(n *testNode) bool { return n.failed != nil })
	if f := w.node.failed; f.Code != api.CodeStartFailed || f.Field != "fprocess" || f.Remedy == "" || !strings.Contains(f.Detail, "/no/such/program") {
		t.Errorf("%+v", f)
	}
	w = newWorld(t, func(w *world) {
		w.desc.Config.Mode, w.desc.Config.Argv = sealed.ModeSerializing, []string{"nowhere-in-path"}
	}).start()
	a, body := w.get("/", "")
	wantCode(t, a, api.CodeStartFailed)
	if !strings.Contains(body, "fprocess") {
		t.Errorf("%s", body)
	}
}
