package node

import (
	"encoding/json"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/faasd-sec/faasd-sec/anomaly"
	"github.com/faasd-sec/faasd-sec/anomaly/anomalytest"
	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/cgroups"
	"github.com/faasd-sec/faasd-sec/monitor"
)

// noted keeps events, and judges each as the log would.
type noted struct {
	t    *testing.T
	mu   sync.Mutex
	list []anomaly.Event
}

func (n *noted) Append(e anomaly.Event) {
	if err := e.Validate(); err != nil {
		n.t.Errorf("%+v: %v", e, err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.list = append(n.list, e)
}

func (n *noted) of(kind anomaly.Kind) (out []anomaly.Event) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, e := range n.list {
		if e.Kind == kind {
			out = append(out, e)
		}
	}
	return out
}

func TestStartsThatFailAreNoted(t *testing.T) {
	log := &noted{t: t}
	refuse := true
	w := newWorld(t, func(w *world) {
		w.anomalies = log
		w.release = func(api.ReleaseRequest) error {
			if refuse {
				return api.Errorf(api.CodeKeyRefused, "evidence with a secret word")
			}
			return nil
		}
		w.hello = func(api.FunctionName) error { return api.Errorf(api.CodeStartFailed, "it printed a secret word") }
	})
	w.invoke(w.known("refused"))
	w.eventually("refused evidence to be noted", func() bool { return len(log.of(anomaly.EvidenceRefused)) == 1 })
	refuse = false
	w.invoke(w.known("failing"))
	w.eventually("a failed start to be noted", func() bool { return len(log.of(anomaly.StartFailed)) == 1 })
	for _, e := range []anomaly.Event{log.of(anomaly.EvidenceRefused)[0], log.of(anomaly.StartFailed)[0]} {
		if !strings.HasSuffix(e.Function, ".ns") || e.Revision.IsZero() || e.Sandbox == "" || !slices.Contains([]string{"key_refused", "start_failed"}, e.Code) {
			t.Errorf("%+v", e)
		}
	}
}

func TestAFunctionsEndIsNotedOnce(t *testing.T) {
	log := &noted{t: t}
	w := newWorld(t, func(w *world) { w.anomalies = log })
	f := w.known("hello")
	w.invoke(f)
	w.n.mu.Lock()
	var s *sandbox
	for _, s = range w.n.fleet {
	}
	w.n.mu.Unlock()
	if s == nil {
		t.Fatal("no sandbox")
	}
	for range 5 {
		w.n.noteExit(s, &api.Exited{ExitCode: 0, Signal: "SIGSEGV"})
	}
	if e := log.of(anomaly.AbnormalStop); len(e) != 1 || e[0].Numbers["signal"] != 11 || e[0].Code != "function" {
		t.Errorf("%+v", e)
	}
	if n := signalNumber("a word of somebody's"); n != 0 {
		t.Errorf("it is signal %d", n)
	}
}

func TestStatusAndAnomaliesAreServed(t *testing.T) {
	fs, err := cgroups.Open()
	if err != nil {
		t.Fatal(err)
	}
	log, dir := anomalytest.Open(t, "node-1")
	watch := monitor.DefaultConfig()
	w := newWorld(t, func(w *world) {
		w.log, w.anomalies = slog.DiscardHandler, log
		w.watching = Watching{Monitor: &watch, Cgroups: fs, Dir: dir, Key: func() *api.LogKey { return &api.LogKey{Member: "node-1"} }}
	})
	f := w.known("hello")
	w.invoke(f)
	log.Append(anomaly.Event{Kind: anomaly.OOM, Function: "hello.ns", Code: "function"})
	log.Append(anomaly.Event{Kind: anomaly.Drained, Code: "requested"})
	var st api.NodeStatus
	w.eventually("a sample of the machine", func() bool {
		code, _, body := w.do("GET", api.NodePathStatus+"?history=1", nil)
		if err := json.Unmarshal([]byte(body), &st); code != 200 || err != nil {
			t.Fatalf("%d %s: %v", code, body, err)
		}
		return st.Machine.MemoryTotal > 0 && st.History != nil && len(st.History.CPU) > 0
	})
	if st.Node != "node-1" || st.Running != 1 || len(st.Tasks) != 1 || st.Tasks[0].Function != "hello.ns" || st.Tasks[0].Limits.Memory == 0 ||
		st.Capacity.CPU != 2000 || st.Reserved.CPU == 0 || st.LogKey == nil {
		t.Errorf("%+v", st)
	}
	if _, _, body := w.do("GET", api.NodePathStatus+"?function=other.ns", nil); !strings.Contains(body, `"tasks":[]`) {
		t.Errorf("of another function: %s", body)
	}
	w.eventually("the event", func() bool {
		code, _, body := w.do("GET", api.NodePathAnomalies+"?kind=oom", nil)
		return code == 200 && strings.Count(body, "\n") == 1 && strings.HasPrefix(body, `{"log":"node-1",`) && strings.Contains(body, `"kind":"oom"`)
	})
	if code, _, _ := w.do("GET", api.NodePathAnomalies+"?kind=nothing", nil); code != 400 {
		t.Errorf("a kind that is none: %d", code)
	}
}
