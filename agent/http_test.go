package agent

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed"
)

func TestHTTPFunctionOnHandedSocketAnswers(t *testing.T) {
	w := newWorld(t, nil).start()
	a, body := w.get("/echo", "hi there")
	if a.problem != nil || a.head.Status != 200 || body != "hi there" {
		t.Fatalf("%+v %q", a, body)
	}
	if v := a.header("x-private"); v != "" {
		t.Errorf("a header named by Connection came through: %q", v)
	}
	// The second call goes over the kept connection.
	if _, body := w.get("/echo", "again"); body != "again" {
		t.Fatalf("%q", body)
	}
}

func TestHTTPFunctionOnAPortAnswers(t *testing.T) {
	addr := freeAddr(t)
	w := newWorld(t, func(w *world) {
		w.desc.Config.Upstream = "http://" + addr
		w.desc.Config.Argv = []string{testBinary, "fn", "http", addr}
	}).start()
	a, body := w.get("/echo", "over tcp")
	if a.head.Status != 200 || body != "over tcp" {
		t.Fatalf("%+v %q", a, body)
	}
}

func TestRequestAndReplyHeadersPass(t *testing.T) {
	w := newWorld(t, nil).start()
	a, body := w.invoke(call{
		head: sealed.RequestHead{Method: "PUT", Path: "/show", Query: "a=1&b=%20", Header: []sealed.Field{
			{Name: "accept", Value: "x"}, {Name: "accept", Value: "y"}, {Name: "expect", Value: "100-continue"},
			{Name: "transfer-encoding", Value: "chunked"}, {Name: "connection", Value: "close"}}},
		body:   strings.NewReader("12345"),
		header: http.Header{api.HeaderCallID: {"call-1"}},
	})
	want := fmt.Sprintf(`PUT /show?a=1&b=%%20 length=5 uid=%d te=[] call=call-1 accept=["x" "y"] expect=""`, testUID)
	if body != want {
		t.Errorf("function saw %s\nwant         %s", body, want)
	}
	var two []string
	for _, h := range a.head.Header {
		if h.Name == "x-two" {
			two = append(two, h.Value)
		}
	}
	if a.head.Status != 203 || fmt.Sprint(two) != "[a b]" {
		t.Errorf("status %d, x-two %v", a.head.Status, two)
	}
	if a, _ := w.invoke(call{head: sealed.RequestHead{Method: "HEAD", Path: "/show"}}); a.head.Status != 203 {
		t.Errorf("HEAD: status %d", a.head.Status)
	}
}

func TestFunctionCannotReachTheAgent(t *testing.T) {
	w := newWorld(t, nil).start()
	if _, body := w.get("/inet", ""); body != "address family not supported by protocol operation not permitted" {
		t.Errorf("AF_INET and ptrace: %s", body)
	}
	if _, body := w.invoke(call{head: sealed.RequestHead{Method: "GET", Path: "/file",
		Query: fmt.Sprintf("/proc/%d/mem", w.node.pids[0])}}); !strings.Contains(body, "permission denied") {
		t.Errorf("the launcher's memory: %s", body)
	}
	_, body := w.invoke(call{head: sealed.RequestHead{Method: "GET", Path: "/file", Query: "/proc/self/status"}})
	for _, line := range []string{"CapInh:\t0000000000000000", "CapPrm:\t0000000000000000", "CapEff:\t0000000000000000",
		"CapAmb:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"} {
		if !strings.Contains(body, line) {
			t.Errorf("no %q in the function's status", line)
		}
	}
}

func TestBigBodyStreamsBothWaysInFlatMemory(t *testing.T) {
	w := newWorld(t, nil).start()
	const size = 64 << 20
	pr, pw := io.Pipe()
	ready := make(chan struct{})
	var sw *sealed.Writer
	c := call{head: sealed.RequestHead{Method: "POST", Path: "/upper"}, flags: sealed.FlagEarlyInput}
	sw, pending, err := w.request(c, pw)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		<-ready
		block := bytes.Repeat([]byte("abcdefgh"), 8<<10)
		for range size / len(block) {
			if _, err := sw.Write(block); err != nil {
				pw.CloseWithError(err)
				return
			}
		}
		pw.CloseWithError(sw.Close())
	}()
	close(ready)
	a := w.post(context.Background(), pr, pending, nil)
	defer a.close()
	var peak uint64
	total, buf := 0, make([]byte, 64<<10)
	for {
		n, err := a.body.Read(buf)
		if i := bytes.IndexFunc(buf[:n], func(r rune) bool { return r < 'A' || r > 'H' }); i >= 0 {
			t.Fatalf("byte %d is %q", total+i, buf[i])
		}
		total += n
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatalf("after %d bytes: %v", total, err)
		}
		if total%(8<<20) < n {
			var m runtime.MemStats
			runtime.GC() // what is live counts, not what earlier tests left
			runtime.ReadMemStats(&m)
			peak = max(peak, m.HeapAlloc)
		}
	}
	if total != size {
		t.Fatalf("%d bytes came back of %d", total, size)
	}
	if peak > 8<<20 {
		t.Errorf("caller and agent together had %d KiB of live heap", peak>>10)
	}
}

func TestStreamAnswersBeforeItsInputEnds(t *testing.T) {
	w := newWorld(t, nil).start()
	pr, pw := io.Pipe()
	sw, pending, err := w.request(call{head: sealed.RequestHead{Method: "POST", Path: "/upper"}, flags: sealed.FlagEarlyInput}, pw)
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
		say("one ")
		<-answered
		say("two")
		pw.CloseWithError(sw.Close())
	}()
	a := w.post(context.Background(), pr, pending, nil)
	defer a.close()
	buf := make([]byte, 64)
	n, err := io.ReadAtLeast(a.body, buf, 4)
	close(answered)
	if err != nil || string(buf[:n]) != "ONE " {
		t.Fatalf("%q %v", buf[:n], err)
	}
	rest, err := io.ReadAll(a.body)
	if err != nil || string(rest) != "TWO" {
		t.Fatalf("%q %v", rest, err)
	}
}

func TestStreamWhoseInputIsCutHasNoEnd(t *testing.T) {
	w := newWorld(t, nil).start()
	pr, pw := io.Pipe()
	sw, pending, err := w.request(call{head: sealed.RequestHead{Method: "POST", Path: "/upper"}, flags: sealed.FlagEarlyInput}, pw)
	if err != nil {
		t.Fatal(err)
	}
	answered := make(chan struct{})
	go func() {
		_, err := sw.Write([]byte("part"))
		if err == nil {
			err = sw.Flush()
		}
		if err != nil {
			t.Error(err)
		}
		<-answered
		sw.Abort()
		pw.Close() // the transport ends well, the message does not
	}()
	a := w.post(context.Background(), pr, pending, nil)
	defer a.close()
	buf := make([]byte, 4)
	_, err = io.ReadFull(a.body, buf)
	close(answered)
	if err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(a.body); err == nil {
		t.Fatalf("the reply ended well although the request was cut: %q", rest)
	}
}

func TestLargeHeldBodyArrivesWhole(t *testing.T) {
	w := newWorld(t, nil).start()
	body := strings.Repeat("0123456789abcdef", 5<<20/16) // over what is held decrypted
	a, got := w.get("/echo", body)
	if a.problem != nil || a.head.Status != 200 || got != body {
		i := 0
		for i < len(got) && got[i] == body[i] {
			i++
		}
		t.Fatalf("%v status %d, %d bytes of %d, different from byte %d", a.problem, a.head.Status, len(got), len(body), i)
	}
}

func TestVerifiedBodyHasALength(t *testing.T) {
	w := newWorld(t, nil).start()
	for _, n := range []int{0, 1, 64 << 10, 64<<10 + 1, 200 << 10, 1 << 20} {
		if _, body := w.get("/show", strings.Repeat("x", n)); !strings.Contains(body, fmt.Sprintf(" length=%d ", n)) {
			t.Errorf("%d bytes: %s", n, body)
		}
	}
}

func TestBodyOverTheSpoolIsRefused(t *testing.T) {
	w := newWorld(t, func(w *world) { w.cfg.SpoolBytes = 1 << 20 }).start()
	a, _ := w.get("/echo", strings.Repeat("x", 4<<20))
	if a.problem == nil || a.problem.Code != api.CodeTooLarge || a.problem.Remedy == "" {
		t.Fatalf("%+v", a)
	}
	if a, body := w.get("/echo", "small"); body != "small" {
		t.Fatalf("%+v %q", a, body)
	}
}

func TestExecTimeoutIsSealedBeforeTheHeadAndCutsAfterIt(t *testing.T) {
	w := newWorld(t, func(w *world) { w.desc.Config.ExecMS = 2000 }).start()
	a, body := w.invoke(call{head: sealed.RequestHead{Method: "GET", Path: "/slow", Query: "30s"}})
	wantCode(t, a, api.CodeDeadline)
	if a.head.Status != http.StatusGatewayTimeout || !strings.Contains(body, `"code":"deadline"`) {
		t.Errorf("status %d: %s", a.head.Status, body)
	}
	b, pending := w.sealedRequest(call{head: sealed.RequestHead{Method: "GET", Path: "/half"}})
	a = w.post(context.Background(), bytes.NewReader(b), pending, nil)
	defer a.close()
	if got, err := io.ReadAll(a.body); err == nil {
		t.Errorf("a reply that was cut ended well after %d bytes", len(got))
	}
	if _, body := w.get("/echo", "alive"); body != "alive" {
		t.Errorf("after the timeouts: %q", body)
	}
}

func TestSlowRequestBodyIsRefused(t *testing.T) {
	w := newWorld(t, func(w *world) { w.desc.Config.ReadMS = 200 }).start()
	b, pending := w.sealedRequest(call{head: sealed.RequestHead{Method: "POST", Path: "/echo"}, body: strings.NewReader(strings.Repeat("x", 100<<10))})
	pr, pw := io.Pipe()
	defer pw.Close()
	go func() { _, _ = pw.Write(b[:len(b)/2]) }()
	a := w.post(context.Background(), pr, pending, nil)
	if a.problem == nil || a.problem.Code != api.CodeDeadline {
		t.Fatalf("%+v", a)
	}
}

func TestInFlightBeyondTheLimitIsBusyUntilACallerGoesAway(t *testing.T) {
	w := newWorld(t, func(w *world) { w.desc.Config.MaxInFlight = 2 }).start()
	var held []answer
	for range 2 {
		b, pending := w.sealedRequest(call{head: sealed.RequestHead{Method: "GET", Path: "/half"}})
		held = append(held, w.post(context.Background(), bytes.NewReader(b), pending, nil))
	}
	a, _ := w.get("/echo", "x")
	if a.problem == nil || a.problem.Code != api.CodeBusy || a.status != http.StatusTooManyRequests {
		t.Fatalf("%+v", a)
	}
	for _, h := range held { // nobody waits for them any more
		h.close()
	}
	eventually(t, "the slots of callers who left are free", func() bool {
		a, body := w.get("/echo", "x")
		if body != "x" && (a.problem == nil || a.problem.Code != api.CodeBusy) {
			t.Fatalf("%+v", a)
		}
		return body == "x"
	})
}

// However many invocations an owner allows at once, their bodies take no more memory than
// the agent has: who comes beyond that is told to come again, and small ones pass.
func TestBodiesOfManyInvocationsAreBoundedTogether(t *testing.T) {
	w := newWorld(t, func(w *world) { w.desc.Config.MaxInFlight, w.cfg.ReadBytes = 1000, 150<<10 }).start()
	large := strings.Repeat("x", 60<<10)
	var held []answer
	for range 2 {
		b, pending := w.sealedRequest(call{head: sealed.RequestHead{Method: "POST", Path: "/half"}, body: strings.NewReader(large)})
		held = append(held, w.post(context.Background(), bytes.NewReader(b), pending, nil))
	}
	if a, _ := w.get("/echo", large); a.problem == nil || a.problem.Code != api.CodeBusy {
		t.Fatalf("a third large one: %+v", a)
	}
	if a, body := w.get("/echo", "small"); body != "small" {
		t.Errorf("a small one: %+v", a)
	}
	for _, h := range held {
		h.close()
	}
	eventually(t, "there is room again", func() bool {
		_, body := w.get("/echo", large)
		return body == large
	})
}

func TestDyingFunctionAnswersAndIsReported(t *testing.T) {
	for name, tc := range map[string]struct {
		path  string
		kills int64
		slow  time.Duration // of the node, until it says how many
		code  api.Code
		exit  api.Exited
	}{
		"exit code":  {"/die", 0, 0, api.CodeFunctionCrashed, api.Exited{ExitCode: 7}},
		"killed":     {"/killed", 0, 0, api.CodeFunctionCrashed, api.Exited{ExitCode: -1, Signal: "SIGKILL"}},
		"OOM killed": {"/killed", 1, 0, api.CodeOOMKilled, api.Exited{ExitCode: -1, Signal: "SIGKILL", OOM: true}},
		"slow node":  {"/killed", 0, 2 * deathNotice, api.CodeFunctionCrashed, api.Exited{ExitCode: -1, Signal: "SIGKILL"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			w.kills = func() int64 { time.Sleep(tc.slow); return tc.kills }
			w.cfg.Linger = time.Minute
			w.start()
			a, _ := w.get(tc.path, "")
			wantCode(t, a, tc.code)
			w.node.wait("exit", func(n *testNode) bool { return n.exited != nil })
			if *w.node.exited != tc.exit {
				t.Errorf("exited %+v, want %+v", *w.node.exited, tc.exit)
			}
			if a, _ := w.get("/echo", ""); a.problem == nil || a.problem.Code != tc.code {
				t.Errorf("afterwards: %+v", a)
			}
			w.node.wait("the owner's log", func(n *testNode) bool { return n.logged(streamPlatform, string(tc.code)) })
			if err := w.stop(); api.CodeOf(err) != tc.code {
				t.Errorf("Run returned %v", err)
			}
		})
	}
}

func TestBrokenRepliesOfTheFunction(t *testing.T) {
	w := newWorld(t, nil).start()
	a, body := w.get("/manyheaders", "")
	wantCode(t, a, api.CodeFunctionIO)
	if !strings.Contains(body, "fields") {
		t.Errorf("%s", body)
	}
	b, pending := w.sealedRequest(call{head: sealed.RequestHead{Method: "GET", Path: "/abort"}})
	a = w.post(context.Background(), bytes.NewReader(b), pending, nil)
	defer a.close()
	if a.header("x-faasd-sec-error") == "" {
		if _, err := io.ReadAll(a.body); err == nil {
			t.Error("a reply that broke ended well")
		}
	}
	if a, _ := w.get("/early", strings.Repeat("x", 3<<20)); a.head.Status != http.StatusTeapot {
		t.Errorf("a reply without reading: %+v", a)
	}
	if a, body := w.invoke(call{head: sealed.RequestHead{Method: "GET", Path: "/size", Query: "5000000"}}); len(body) != 5000000 {
		t.Errorf("%d bytes, %+v", len(body), a)
	}
}
