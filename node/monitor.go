package node

import (
	"bufio"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/valyala/fasthttp"
	"golang.org/x/sys/unix"

	"github.com/faasd-sec/faasd-sec/anomaly"
	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/cgroups"
	"github.com/faasd-sec/faasd-sec/monitor"
	"github.com/faasd-sec/faasd-sec/runtime"
	"github.com/faasd-sec/faasd-sec/sealed"
)

// Watching is what a node needs to be watched. Its zero value is a node that
// nobody watches.
type Watching struct {
	Monitor *monitor.Config // nil for none; Tasks, Anomalies and State are the node's to set
	Cgroups cgroups.FS
	Dir     string             // of the anomaly log, "" for none to read
	Key     func() *api.LogKey // who signs it, nil for nobody
}

// historyPoints are the samples that a status carries along.
const historyPoints = 60

// newMonitor makes the monitor, if there is to be one.
func (n *Node) newMonitor() (err error) {
	w := &n.dep.Watching
	if n.dep.Anomaly == nil {
		n.dep.Anomaly = anomaly.Discard{}
	}
	if w.Monitor == nil {
		return nil
	}
	cfg := *w.Monitor
	cfg.Anomalies, cfg.State = n.dep.Anomaly, n.cfg.StateDir
	cfg.Skip = append(slices.Clone(cfg.Skip), secretsPath)
	known := map[string]monitor.Task{}
	cfg.Tasks = func() []monitor.Task { return n.watched(known) }
	if n.monitor, err = monitor.New(cfg, w.Cgroups, n.log); err != nil {
		return err
	}
	if n.dep.Registerer != nil {
		n.dep.Registerer.MustRegister(n.monitor.Collector())
	}
	return nil
}

// watchTasks is the goroutine of the monitor.
func (n *Node) watchTasks() {
	if err := n.monitor.Run(n.life); err != nil {
		n.log.Error("monitor", "err", err)
	}
}

// grouped is a sandbox that runs in cgroups of this machine.
type grouped interface {
	Cgroups() (sandbox, function cgroups.Group)
}

// watched lists what the monitor is to watch. known is its own: what was found
// out before about those that still run.
func (n *Node) watched(known map[string]monitor.Task) []monitor.Task {
	type pair struct {
		s *sandbox
		b *box
	}
	n.mu.Lock()
	live := make(map[string]pair, len(n.fleet))
	for id, s := range n.fleet {
		if s.box != nil && (s.state == ready || s.state == frozen || s.state == starting) {
			live[id] = pair{s, s.box}
		}
	}
	n.mu.Unlock()
	for id := range known {
		if _, ok := live[id]; !ok {
			delete(known, id)
		}
	}
	out := make([]monitor.Task, 0, len(live))
	for id, p := range live {
		t, ok := known[id]
		if !ok {
			// Its mutex may be held for as long as an agent does not read: another look
			// comes soon.
			if !p.b.mu.TryLock() {
				continue
			}
			rt := p.b.rt
			p.b.mu.Unlock()
			if t, ok = taskOf(id, p.s.rev, rt); !ok {
				continue
			}
			known[id] = t
		}
		out = append(out, t)
	}
	return out
}

func taskOf(id string, rev *revision, rt runtime.Sandbox) (monitor.Task, bool) {
	g, ok := rt.(grouped)
	if !ok {
		return monitor.Task{}, false
	}
	if rt.Info().Blank {
		return monitor.Task{}, false // its root comes with its function
	}
	outer, inner := g.Cgroups()
	return monitor.Task{ID: id, Function: rev.name, Revision: rev.digest, Limits: rev.limits, Sealed: rev.asked != nil,
		Group: outer, Inner: []cgroups.Group{inner}}, true
}

// serveStatus tells what this node has, runs and uses.
func (n *Node) serveStatus(ctx *fasthttp.RequestCtx) *api.NodeStatus {
	want := string(ctx.QueryArgs().Peek(api.QueryFunction))
	history := ctx.QueryArgs().Has(api.QueryHistory)
	st := &api.NodeStatus{Node: n.cfg.ID, At: time.Now().UnixMilli(), Tasks: []api.TaskStatus{}}
	n.mu.Lock()
	st.Reserved, st.Capacity = n.ledger.reserved.UpToHundredths(n.ledger.capacity), n.ledger.capacity
	st.Running, st.Pooled, st.Draining = len(n.fleet), len(n.pool.idle), n.draining
	for _, s := range n.fleet {
		st.InFlight += s.inFlight
		if want == "" || want == string(s.rev.name) {
			t := api.TaskStatus{ID: s.id, Node: n.cfg.ID, Function: s.rev.name, Revision: s.rev.digest,
				State: s.state.String(), InFlight: s.inFlight, StartedAt: s.began.UnixMilli(), Limits: s.rev.limits}
			if s.rev.asked != nil { // anybody may ask, and a manifest is nobody's to read
				t.Limits, t.Sealed = api.Resources{}, true
			}
			st.Tasks = append(st.Tasks, t)
		}
	}
	n.mu.Unlock()
	slices.SortFunc(st.Tasks, func(a, b api.TaskStatus) int { return strings.Compare(a.ID, b.ID) })
	if key := n.dep.Watching.Key; key != nil {
		st.LogKey = key()
	}
	if n.monitor == nil {
		return st
	}
	if u, at := n.monitor.Machine(); at > 0 {
		st.Machine, st.At = u, at
	}
	for i := range st.Tasks {
		t := &st.Tasks[i]
		t.Usage, _ = n.monitor.Usage(t.ID)
		if t.Sealed {
			t.Usage.StorageSize = 0 // it is a limit
		}
		if history {
			t.History = n.monitor.TaskHistory(t.ID, historyPoints, false)
		}
	}
	if history {
		st.History = n.monitor.MachineHistory(historyPoints, false)
	}
	return st
}

// serveAnomalies streams the events of the anomaly log, one JSON object to a line.
func (n *Node) serveAnomalies(ctx *fasthttp.RequestCtx) error {
	dir := n.dep.Watching.Dir
	if dir == "" {
		return api.Errorf(api.CodeNotFound, "this node keeps no anomaly log")
	}
	q, err := url.ParseQuery(string(ctx.QueryArgs().QueryString()))
	if err != nil {
		return api.Invalid("query", "encode it as a URL's", "it does not parse")
	}
	f, err := anomaly.ParseQuery(q)
	if err != nil {
		return err
	}
	follow := q.Get(api.QueryFollow) == "1"
	ctx.SetContentType(api.ContentTypeLines)
	conn := ctx.Conn()
	ctx.SetBodyStreamWriter(func(w *bufio.Writer) {
		err := anomaly.Stream(n.life, dir, n.cfg.ID, f, follow, func(line []byte) error {
			_ = conn.SetWriteDeadline(time.Now().Add(30 * time.Second))
			if _, err := w.Write(line); err != nil || !follow {
				return err
			}
			return w.Flush()
		})
		if err != nil && n.life.Err() == nil {
			n.log.Debug("anomalies", "err", err) // mostly a reader that left
		}
	})
	return nil
}

// note appends an event about a sandbox, or about the node where s is nil, to the
// anomaly log. It waits for nothing. Codes and names of numbers are those of
// package anomaly.
func (n *Node) note(s *sandbox, kind anomaly.Kind, code string, numbers map[string]int64) {
	e := anomaly.Event{Kind: kind, Code: code, Numbers: numbers}
	if s != nil {
		n.mu.Lock()
		e.Sandbox = s.id
		n.mu.Unlock()
		e.Function = string(s.rev.name)
		if d, err := sealed.ParseDigest(s.rev.digest); err == nil {
			e.Revision = d
		}
	}
	n.dep.Anomaly.Append(e)
}

// noteStartFailed notes why a sandbox did not come up.
func (n *Node) noteStartFailed(s *sandbox, err error, took time.Duration) {
	kind, code := anomaly.StartFailed, api.CodeOf(err)
	if code == api.CodeKeyRefused {
		kind = anomaly.EvidenceRefused
	}
	n.note(s, kind, code.Label(), map[string]int64{"duration_ms": took.Milliseconds()})
}

// noteExit notes how the process of a function ended.
func (n *Node) noteExit(s *sandbox, e *api.Exited) {
	n.mu.Lock()
	again := s.exited || s.state >= stopping
	s.exited = true
	n.mu.Unlock()
	if again {
		return // an agent that says it over and over must not fill the log
	}
	n.note(s, anomaly.AbnormalStop, "function", map[string]int64{"exit_code": int64(e.ExitCode), "signal": signalNumber(e.Signal)})
}

// noteEvent notes what the runtime reported.
func (n *Node) noteEvent(s *sandbox, e runtime.Event, unasked bool) {
	switch {
	case e.Kind == runtime.EventOOM:
		numbers := map[string]int64{"limit": s.rev.limits.Memory}
		if s.rev.asked != nil { // the manifest's
			numbers = nil
		}
		n.note(s, anomaly.OOM, "function", numbers)
	case e.Kind == runtime.EventPIDsLimit:
		at := s.rev.limits.PIDs
		if s.rev.asked != nil {
			at = 100 // percent
		}
		n.note(s, anomaly.OverThreshold, "pids", map[string]int64{"threshold": at, "value": at, "limit": at, "duration_ms": 0})
	case e.Kind == runtime.EventExit && unasked:
		// As a shell tells it: 128 and the number of the signal.
		code, signal := int64(e.ExitCode), int64(0)
		if code > 128 && code < 128+65 {
			signal = code - 128
		}
		n.note(s, anomaly.AbnormalStop, "agent", map[string]int64{"exit_code": code, "signal": signal})
	}
}

// signalNumber reads a signal's name, as an agent says it; 0 for none.
func signalNumber(name string) int64 {
	if name == "" {
		return 0
	}
	return int64(unix.SignalNum(name))
}
