package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
)

// fitter is a Fitting that keeps account of what it gave, on a machine that
// outlives the daemon.
type fitter struct {
	parts []string

	mu      sync.Mutex
	on      map[string]Fitted
	refuse  error // of the next Attach
	stuck   error // of the next Detach
	calls   []string
	adopted []string
}

func newFitter(parts ...string) *fitter { return &fitter{parts: parts, on: map[string]Fitted{}} }

func (f *fitter) Parts() []string { return f.parts }

func (f *fitter) Attach(_ context.Context, s Fitted) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, "attach "+s.ID)
	f.on[s.ID] = s // also where it fails: half-way
	err := f.refuse
	f.refuse = nil
	return err
}

func (f *fitter) Detach(_ context.Context, id string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.stuck; err != nil {
		f.stuck = nil
		return err
	}
	delete(f.on, id)
	return nil
}

func (f *fitter) Recover(_ context.Context, live []Fitted) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.on)
	for _, s := range live {
		f.on[s.ID] = s
		f.adopted = append(f.adopted, s.ID)
	}
	return nil
}

// fail has the next Attach and the next Detach return errors.
func (f *fitter) fail(attach, detach error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.refuse, f.stuck = attach, detach
}

func (f *fitter) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.on)
}

func onePort(number int) api.Needs {
	return api.Needs{Ports: []api.PortNeed{{Protocol: "tcp", Number: number, Count: 1}}}
}

func TestPortsAreLentToOneAndComeBack(t *testing.T) {
	w := newWorld(t, lends)
	f, g := w.known("f"), w.known("g")
	// Another program of the host is on the first of the range.
	l, err := net.Listen("tcp", fmt.Sprintf(":%d", w.cfg.Ports.Low))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if code, _ := w.ask(f, onePort(0)); code != "ok" {
		t.Fatal(code)
	}
	if code, refused := w.ask(g, onePort(w.cfg.Ports.Low)); code != "no_room" || !refused {
		t.Errorf("a port that another program has: %s", code)
	}
	if code, _ := w.ask(g, onePort(w.cfg.Ports.High+1)); code != "no_room" {
		t.Errorf("a port that is not of the range: %s", code)
	}
	fleet := w.fleet()
	if len(fleet) != 1 || len(fleet[0].ports) != 1 || fleet[0].ports[0].Number != w.cfg.Ports.Low+1 {
		t.Fatalf("got %v", fleet[0].ports)
	}
	if got := w.net.on[fleet[0].id].Ports; !slices.Equal(got, fleet[0].ports) {
		t.Errorf("the network was told of %v", got)
	}
	// No other program of the host comes to it while it is lent.
	free := func() error {
		l, err := net.Listen("tcp", fmt.Sprintf(":%d", w.cfg.Ports.Low+1))
		if err == nil {
			l.Close()
		}
		return err
	}
	if free() == nil {
		t.Error("another program took a port that a sandbox has")
	}
	// It is idle: whoever names its port by number has it, and it has to go.
	if code, _ := w.ask(g, onePort(w.cfg.Ports.Low+1)); code != "ok" {
		t.Errorf("a port that an idle sandbox has: %s", code)
	}
	// After a crash it is still that sandbox's.
	w.crash()
	fleet = w.fleet()
	if len(fleet) != 1 || len(fleet[0].ports) != 1 || fleet[0].ports[0] != (Port{"tcp", w.cfg.Ports.Low + 1}) {
		t.Fatalf("after a crash: %v", fleet)
	}
	if r, needed, _ := w.held(); r != needed || r.Ports != 1 {
		t.Errorf("reserved %+v, held %+v", r, needed)
	}
	if !slices.Contains(w.net.adopted, fleet[0].id) {
		t.Error("the network did not hear of it again")
	}
	w.n.mu.Lock()
	_, lacking := w.n.ports.find(onePort(w.cfg.Ports.Low+1).Ports, time.Now())
	w.n.mu.Unlock()
	if lacking == "" || free() == nil {
		t.Error("its port is free after a crash")
	}
	w.empty()
	if err := free(); err != nil {
		t.Errorf("nobody has the port any more: %v", err)
	}
}

func TestFittingsComeBeforeTheFunctionAndGoAfterIt(t *testing.T) {
	w := newWorld(t, lends)
	f := w.known("f")
	all := api.Needs{Resources: api.Resources{Scratch: 1 << 20, Ingress: 100, Egress: 100}, Ports: []api.PortNeed{{Protocol: "udp", Count: 2}}}
	var bare atomic.Bool
	w.hello = func(api.FunctionName) error {
		if !bare.Load() && (w.net.count() == 0 || w.disk.count() == 0) {
			t.Error("the function began before it had what it needs")
		}
		return nil
	}
	w.disk.refuse = errors.New("no disk")
	if code, refused := w.ask(f, all); code != "start_failed" || !refused {
		t.Errorf("a disk that cannot be given: %s", code)
	}
	w.empty()
	if code, _ := w.ask(f, all); code != "ok" {
		t.Fatal(code)
	}
	s := w.fleet()[0]
	if s.rev.slots != 1 {
		t.Errorf("%d tasks at once on one task's ports", s.rev.slots)
	}
	// What cannot be taken back stays reserved.
	w.disk.stuck = errors.New("busy")
	w.n.remove(s, "test")
	if r, _, _ := w.held(); r.Scratch != 1<<20 || r.Ports != 2 {
		t.Errorf("reserved %+v while the disk is still there", r)
	}
	w.crash()
	if r, _, _ := w.held(); r != (api.Resources{}) || w.disk.count() != 0 {
		t.Errorf("after a restart: %+v, %d disks", r, w.disk.count())
	}
	bare.Store(true)
	if code, _ := w.ask(f, api.Needs{}); code != "ok" || w.net.count()+w.disk.count() != 0 {
		t.Errorf("without such needs: %s", code)
	}
	w.empty()
}

func TestWhatCouldNotBeTakenBackIsGivenBackOnceItCanBe(t *testing.T) {
	w := newWorld(t, lends, func(w *world) { w.cfg.RemoveAgain = 10 * time.Millisecond })
	f := w.known("f")
	needs := api.Needs{Resources: api.Resources{Scratch: 1 << 20, Ingress: 100}, Ports: []api.PortNeed{{Protocol: "udp", Count: 2}}}
	for _, fit := range []*fitter{w.disk, w.net} {
		if code, _ := w.ask(f, needs); code != "ok" {
			t.Fatal(code)
		}
		fit.fail(nil, errors.New("busy"))
		w.n.remove(w.fleet()[0], "test")
		w.eventually("nothing is reserved", func() bool {
			r, _, _ := w.held()
			return r == api.Resources{} && w.disk.count()+w.net.count() == 0
		})
	}
	w.n.mu.Lock()
	defer w.n.mu.Unlock()
	if len(w.n.ports.held) != 0 {
		t.Errorf("lent ports %v", w.n.ports.held)
	}
}

func TestEachPartIsGivenByOne(t *testing.T) {
	for _, bad := range [][]Fitting{{newFitter(PartPorts), newFitter(PartPorts)}, {newFitter("gpu")}} {
		if _, err := newFittings(bad); api.CodeOf(err) != api.CodeInvalid {
			t.Errorf("%v: %v", bad, err)
		}
	}
	l, err := newFittings([]Fitting{newFitter(PartScratch), newFitter(PartEgress)})
	if err != nil {
		t.Fatal(err)
	}
	all := api.Resources{CPU: 1, Scratch: 2, Ingress: 3, Egress: 4, Ports: 5}
	if got := l.lent(all); got != (api.Resources{CPU: 1, Scratch: 2, Egress: 4}) {
		t.Errorf("lent %+v", got)
	}
	// What the mesh is told: a range of ports that nothing publishes is none.
	cfg := Config{Capacity: api.Resources{CPU: 1, Scratch: 2, Egress: 4}, Ports: PortRange{Low: 31000, High: 31009}}
	for want, list := range map[api.Resources][]Fitting{{CPU: 1}: nil, {CPU: 1, Scratch: 2}: {newFitter(PartScratch)}, {CPU: 1, Egress: 4, Ports: 20}: {newFitter(PartEgress, PartPorts)}} {
		if got, err := Lends(cfg, list); err != nil || got != want {
			t.Errorf("lends %+v, %v, want %+v", got, err, want)
		}
	}
	if l.cover(api.Needs{Resources: all}) == nil || l.cover(api.Needs{Resources: api.Resources{CPU: 1, Scratch: 2}}) != nil || len(l.of(api.Resources{Egress: 1})) != 1 || len(l.of(all)) != 2 {
		t.Error("what is covered is not what is given")
	}
}
