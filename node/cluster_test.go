package node

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/placement"
	"github.com/faasd-sec/faasd-sec/runtime/runtimetest"
	"github.com/faasd-sec/faasd-sec/sealed"
)

// simNode is one node of a cluster on machines of the imagination: the daemon,
// its admission and its protocols are real.
type simNode struct {
	*world
	life sync.RWMutex // held while the daemon is another
}

// cluster is several of them, and what all coordinators can know.
type cluster struct {
	t     *testing.T
	nodes []*simNode
	fns   []function

	mu     sync.Mutex
	loads  map[string]api.NodeLoad
	served map[[32]byte]int  // how often each message reached an agent
	twice  map[[32]byte]bool // whose task may run again after a node was lost
}

func newCluster(t *testing.T, size int) *cluster {
	c := &cluster{t: t, loads: map[string]api.NodeLoad{}, served: map[[32]byte]int{}, twice: map[[32]byte]bool{}}
	for i := range size {
		n := &simNode{}
		n.world = newWorld(t, lends, func(w *world) {
			w.cfg.ID = fmt.Sprintf("node-%d", i)
			w.cfg.Ports = PortRange{Low: 32000 + 100*i, High: 32007 + 100*i} // the machine of the test is one
			w.cfg.PoolMax = i                                                // with and without sandboxes made ahead
			if i > 0 {
				w.owner, w.keys = c.nodes[0].owner, c.nodes[0].keys
			}
			w.mesh = func(l api.NodeLoad) {
				c.mu.Lock()
				defer c.mu.Unlock()
				c.loads[l.Node] = l
			}
			w.work = func(rw http.ResponseWriter, r *http.Request) {
				body, err := io.ReadAll(r.Body)
				if err != nil {
					return
				}
				c.mu.Lock()
				c.served[sha256.Sum256(body)]++
				c.mu.Unlock()
				time.Sleep(time.Duration(body[len(body)-1]) * time.Millisecond / 16) // work
				_, _ = rw.Write(body)
			}
		})
		c.nodes = append(c.nodes, n)
	}
	for i := range 5 {
		f := c.nodes[0].deploy(fmt.Sprintf("f%d", i), 1, func(d *sealed.Descriptor) { d.Config.MaxInFlight = uint64(1 + i) })
		for _, n := range c.nodes {
			n.tell(f)
		}
		c.fns = append(c.fns, f)
	}
	return c
}

// view is what a coordinator has heard.
func (c *cluster) view() *api.ClusterView {
	c.mu.Lock()
	defer c.mu.Unlock()
	v := &api.ClusterView{}
	for _, n := range c.nodes {
		v.Nodes = append(v.Nodes, api.NodeView{Load: c.loads[n.cfg.ID],
			Meta: api.NodeMeta{ID: n.cfg.ID, Roles: []string{api.RoleNode}, Arch: "amd64", Capacity: n.cfg.Capacity}})
	}
	return v
}

func randomNeeds(r *rand.Rand) api.Needs {
	one := func(of ...int64) int64 { return of[r.IntN(len(of))] }
	n := api.Needs{Apart: r.IntN(8) == 0, Priority: r.IntN(10)}
	n.Resources = api.Resources{CPU: one(0, 50, 200, 700), Memory: one(0, 32<<20, 200<<20), PIDs: one(0, 8, 500),
		Storage: one(0, 0, 1<<20), Scratch: one(0, 0, 100<<20, 600<<20), Ingress: one(0, 0, 100, 400), Egress: one(0, 0, 100, 700), Cores: one(0, 0, 0, 1, 2)}
	switch r.IntN(6) {
	case 0:
		n.Ports = []api.PortNeed{{Protocol: "tcp", Count: 1 + r.IntN(4)}}
	case 1:
		n.Ports = []api.PortNeed{{Protocol: "udp", Count: 1 + r.IntN(3)}, {Protocol: "tcp", Count: 1}}
	case 2:
		n.Ports = []api.PortNeed{{Protocol: "tcp", Number: 32000 + 100*r.IntN(3) + r.IntN(8), Count: 1}}
	}
	if r.IntN(6) == 0 {
		n.Deadline = time.Now().Add(time.Duration(r.IntN(200)) * time.Millisecond).UnixMilli()
	}
	return n
}

// place is a coordinator's way with one task: by a view that may be old, from one
// candidate to the next as long as it is refused. It returns the code it ends with.
func (c *cluster) place(r *rand.Rand, view *api.ClusterView) string {
	f := c.fns[r.IntN(len(c.fns))]
	needs := randomNeeds(r)
	limits := c.nodes[0].rev(f).limits
	settled, err := needs.Settle(limits)
	if err != nil {
		c.t.Errorf("settle %+v: %v", needs, err)
		return "invalid"
	}
	var id [16]byte
	for i := range id {
		id[i] = byte(r.Uint32())
	}
	needs.Task = hex.EncodeToString(id[:])
	header, err := json.Marshal(needs)
	if err != nil {
		c.t.Error(err)
		return "internal"
	}
	weights := placement.DefaultWeights()
	if r.IntN(2) == 0 {
		weights = placement.SpreadWeights()
	}
	d := placement.Pick(view, placement.Request{
		Revision: f.digest.String(), Needs: api.WarmKey(f.digest.String(), settled, limits),
		Resources: settled.Resources.Add(api.AgentOverhead()), Apart: needs.Apart, Seed: r.Uint64(), Limit: 3,
	}, weights)
	if len(d.Candidates) == 0 {
		return "no_candidate"
	}
	msg := c.nodes[0].message(f, 1+r.IntN(200))
	afterNodeDeath := r.IntN(3) == 0
	if afterNodeDeath {
		c.mu.Lock()
		c.twice[sha256.Sum256(msg)] = true
		c.mu.Unlock()
	}
	last := ""
	for _, cand := range d.Candidates {
		n := c.nodes[cand.Index]
		n.life.RLock()
		url, client := n.url, n.http
		n.life.RUnlock()
		req, err := http.NewRequest("POST", url+api.NodePathInvoke+f.target(), strings.NewReader(string(msg)))
		if err != nil {
			c.t.Error(err)
			return "internal"
		}
		req.Header.Set(api.HeaderNeeds, string(header))
		resp, err := client.Do(req)
		var body []byte
		if err == nil {
			body, err = io.ReadAll(resp.Body)
			resp.Body.Close()
		}
		if last = "node_lost"; err != nil && !afterNodeDeath {
			return last // whether it ran is not known: nobody tries again
		} else if err != nil {
			continue
		}
		if resp.StatusCode == 200 {
			return "ok"
		}
		if last = resp.Header.Get(api.HeaderRefused); last == "" {
			var p api.Problem
			_ = json.Unmarshal(body, &p)
			return string(p.Code)
		}
	}
	return last
}

// check holds what a node has given away against what there is: by its own
// account, and by that of those who really gave it.
func (n *simNode) check() error {
	n.life.RLock()
	defer n.life.RUnlock()
	n.n.mu.Lock()
	reserved, sum, capacity := n.n.ledger.reserved, n.n.pool.held, n.n.ledger.capacity
	ports, cores := map[Port]string{}, map[int]string{}
	alone := map[api.FunctionName][]*sandbox{}
	var err error
	for id, s := range n.n.fleet {
		sum = sum.Add(s.holds)
		for _, p := range s.ports {
			if other, taken := ports[p]; taken {
				err = errors.Join(err, fmt.Errorf("port %s is lent to %s and %s", p, other, id))
			}
			if ports[p] = id; n.n.ports.held[p] != s || !n.cfg.Ports.has(p.Number) {
				err = errors.Join(err, fmt.Errorf("port %s of %s is not its own", p, id))
			}
		}
		for _, core := range s.cores {
			if other, taken := cores[core]; taken || n.n.cores.held[core] != s {
				err = errors.Join(err, fmt.Errorf("core %d is of %q and %s", core, other, id))
			}
			cores[core] = id
		}
		if got := int64(len(s.cores)); s.state < stopping && got != s.rev.limits.Cores {
			err = errors.Join(err, fmt.Errorf("%s has %d cores of %d", id, got, s.rev.limits.Cores))
		}
		if s.inFlight > s.rev.slots || s.inFlight < 0 {
			err = errors.Join(err, fmt.Errorf("%d in flight in a sandbox of %d slots", s.inFlight, s.rev.slots))
		}
		alone[s.rev.name] = append(alone[s.rev.name], s)
	}
	for name, all := range alone {
		if len(all) > 1 && slices.ContainsFunc(all, func(s *sandbox) bool { return s.rev.needs().Apart }) {
			err = errors.Join(err, fmt.Errorf("%d sandboxes of %s, one of which is to be alone", len(all), name))
		}
	}
	n.n.mu.Unlock()
	if lacks := reserved.Lacks(capacity); lacks != "" {
		err = errors.Join(err, fmt.Errorf("over-committed in %s: %+v of %+v", lacks, reserved, capacity))
	}
	if lacks := sum.Lacks(reserved); lacks != "" {
		err = errors.Join(err, fmt.Errorf("sandboxes hold %+v, reserved is %+v: %s", sum, reserved, lacks))
	}
	for _, fit := range []*fitter{n.net, n.disk} {
		var given api.Resources
		ports := map[Port]bool{}
		fit.mu.Lock()
		for _, f := range fit.on {
			r := f.Needs.Resources
			if fit == n.net {
				given = given.Add(api.Resources{Ingress: r.Ingress, Egress: r.Egress, Ports: r.Ports, Cores: r.Cores})
			} else {
				given = given.Add(api.Resources{Scratch: r.Scratch})
			}
			for _, p := range f.Ports {
				if fit == n.net && ports[p] {
					err = errors.Join(err, fmt.Errorf("port %s was really given twice", p))
				}
				ports[p] = true
			}
		}
		fit.mu.Unlock()
		if lacks := given.Lacks(capacity); lacks != "" {
			err = errors.Join(err, fmt.Errorf("more %s was really given than there is: %+v", lacks, given))
		}
	}
	return err
}

// powerCut ends the daemon, and takes away what was in the machine's memory: its
// sandboxes, and what they were fitted with.
func (n *simNode) powerCut() {
	n.t.Helper()
	n.sever()
	n.stop()
	dark := n.fake.Reopen()
	all, err := dark.Recover(n.t.Context())
	for _, s := range all {
		err = errors.Join(err, s.Remove(n.t.Context(), 0))
	}
	if err := errors.Join(err, dark.Close()); err != nil {
		n.t.Errorf("power cut: %v", err)
	}
	for _, f := range []*fitter{n.net, n.disk} {
		f.mu.Lock()
		clear(f.on)
		f.mu.Unlock()
	}
	n.fake = dark.Reopen()
	n.start()
}

// TestClusterNeverOverCommitsAndLeaksNothing has coordinators with old views place
// tasks of random needs in all resources, some of which may run again when a node
// was lost, while daemons crash, machines lose their power, both start again, and
// parts of them fail.
func TestClusterNeverOverCommitsAndLeaksNothing(t *testing.T) {
	for _, seed := range []uint64{1, 2, 3} {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { runCluster(t, seed) }) // seeded: a failure can be met again
	}
}

func runCluster(t *testing.T, seed uint64) {
	const coordinators, tasks = 6, 60
	c := newCluster(t, 3)
	stop := make(chan struct{})
	var watch, wg sync.WaitGroup
	for _, n := range c.nodes {
		watch.Go(func() {
			for {
				select {
				case <-stop:
					return
				case <-time.After(time.Millisecond):
				}
				if err := n.check(); err != nil {
					t.Errorf("%s: %v", n.cfg.ID, err)
					return
				}
			}
		})
	}
	var left atomic.Int64
	left.Store(coordinators)
	ends := make([]map[string]int, coordinators)
	for i := range coordinators {
		ends[i] = map[string]int{}
		wg.Go(func() {
			defer left.Add(-1)
			r := rand.New(rand.NewPCG(seed, uint64(i)))
			var view *api.ClusterView
			for k := range tasks {
				if k%(1+i) == 0 { // some hear of changes seldom
					view = c.view()
				}
				ends[i][c.place(r, view)]++
			}
		})
	}
	// What goes wrong meanwhile.
	wg.Go(func() {
		r := rand.New(rand.NewPCG(seed, 99))
		for k := 0; left.Load() > 0; k++ {
			time.Sleep(time.Duration(10+r.IntN(40)) * time.Millisecond)
			n := c.nodes[r.IntN(len(c.nodes))]
			n.life.RLock()
			fake := n.fake
			n.life.RUnlock()
			switch r.IntN(7) {
			case 0:
				fake.Fail(runtimetest.OpCreate, errors.New("injected"))
			case 1:
				fake.Fail(runtimetest.OpBind, errors.New("injected"))
			case 2:
				n.net.fail(errors.New("injected"), nil)
			case 3:
				n.disk.fail(nil, errors.New("injected"))
			case 4:
				n.machine.Store(&api.Resources{CPU: 1, Memory: 100 << 20, PIDs: 100})
				time.Sleep(5 * time.Millisecond)
				n.machine.Store(nil)
			case 5:
				if k%2 == 0 {
					n.life.Lock()
					n.sever()
					n.crash()
					n.life.Unlock()
				}
			case 6:
				if k%2 == 0 {
					n.life.Lock()
					n.powerCut()
					n.life.Unlock()
				}
			}
		}
	})
	wg.Wait()
	close(stop)
	watch.Wait()
	total := map[string]int{}
	sum := 0
	for _, e := range ends {
		for code, k := range e {
			total[code] += k
			sum += k
		}
	}
	t.Logf("ends: %v", total)
	if sum != coordinators*tasks || total["ok"] < sum/10 || total[""] > 0 || total["internal"] > 0 {
		t.Errorf("%d ends of %d tasks: %v", sum, coordinators*tasks, total)
	}
	c.mu.Lock()
	for msg, k := range c.served {
		if k != 1 && (!c.twice[msg] || k > len(c.nodes)) {
			t.Errorf("a message reached %d agents", k)
		}
	}
	c.mu.Unlock()
	// A part that could not be taken back is by the next life of the daemon.
	for _, n := range c.nodes {
		n.net.fail(nil, nil)
		n.disk.fail(nil, nil)
		n.machine.Store(nil)
		n.crash()
		n.empty()
		if err := n.check(); err != nil {
			t.Errorf("%s at the end: %v", n.cfg.ID, err)
		}
	}
}
