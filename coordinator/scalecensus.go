package coordinator

import (
	"context"
	"encoding/json"
	"net/http"
	"sync"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
)

const (
	censusTimeout = time.Second      // for a node to answer
	censusOld     = 10 * time.Second // that a node's last word counts while it does not answer
)

// census is what the nodes said of their replicas, all asked at once. It is
// immutable.
type census struct {
	asked time.Time // before any of them answered
	cpu   bool      // they were asked for CPU time too
	nodes map[string]tally

	waiting map[string]int // calls for which no node had room yet, by revision digest; of the controller's alone
}

// tally is one node's word.
type tally struct {
	at  time.Time
	cpu bool                         // it tells of CPU time
	all map[string]api.ReplicaStatus // by revision digest
}

// of is what one node has of a revision, whatever its sequence: keys that were
// rotated do not make another replica of it.
func (t tally) of(revision string) api.ReplicaStatus { return t.all[revision] }

// sum is what all nodes have of a revision.
func (c *census) sum(revision string) (all api.ReplicaStatus) {
	for _, t := range c.nodes {
		r := t.of(revision)
		all.Ready += r.Ready
		all.Starting += r.Starting
		all.Retiring += r.Retiring
		all.InFlight += r.InFlight
		all.Slots = max(all.Slots, r.Slots)
		if all.Failed += r.Failed; r.Failed > 0 {
			all.Code, all.Reason = r.Code, r.Reason
		}
	}
	return all
}

// counting asks the nodes, one question at a time.
type counting struct {
	mu   sync.Mutex
	last *census
}

// looked is a census for who lists functions; nil where enough others ask already.
func (c *Coordinator) looked() *census {
	select {
	case c.looks <- struct{}{}:
		defer func() { <-c.looks }()
		return c.count(controlEvery/2, false)
	default:
		return nil
	}
}

// count is a census that was no older than age when it was asked for. With cpu it
// tells of CPU time too, which costs nodes a look at each sandbox.
func (c *Coordinator) count(age time.Duration, cpu bool) *census {
	k := &c.counting
	// Before the lock: of those that wait here, while a node does not answer, the
	// first asks for all, and not each after the other.
	oldest := time.Now().Add(-age)
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.last != nil && k.last.asked.After(oldest) && (k.last.cpu || !cpu) {
		return k.last
	}
	now := time.Now()
	next := &census{asked: now, cpu: cpu, nodes: map[string]tally{}}
	path := api.NodePathReplicas
	if cpu {
		path += "?" + api.NodeQueryCPU + "=1"
	}
	ctx, cancel := context.WithTimeout(c.life, censusTimeout)
	defer cancel()
	var mu sync.Mutex
	c.everyNode(func(p *peer) {
		var list []api.ReplicaStatus
		b, err := c.ask(ctx, p, http.MethodGet, path, nil)
		if err == nil {
			err = json.Unmarshal(b, &list)
		}
		mu.Lock()
		defer mu.Unlock()
		if err != nil {
			if k.last != nil && now.Sub(k.last.nodes[p.id].at) < censusOld {
				next.nodes[p.id] = k.last.nodes[p.id]
			}
			return
		}
		t := tally{at: now, cpu: cpu, all: make(map[string]api.ReplicaStatus, len(list))}
		for _, r := range list {
			sum := t.all[r.Revision] // under the keys of before, most likely
			r.Ready, r.Starting, r.Retiring = r.Ready+sum.Ready, r.Starting+sum.Starting, r.Retiring+sum.Retiring
			r.InFlight, r.Served, r.CPUMicros, r.Failed = r.InFlight+sum.InFlight, r.Served+sum.Served, r.CPUMicros+sum.CPUMicros, r.Failed+sum.Failed
			t.all[r.Revision] = r
		}
		next.nodes[p.id] = t
	})
	for _, v := range c.dep.Mesh.Snapshot().Nodes {
		if v.Load.Draining {
			delete(next.nodes, v.Meta.ID) // what it has takes no calls any more: others are to be made
		}
	}
	k.last = next
	return next
}
