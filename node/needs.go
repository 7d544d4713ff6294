package node

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
)

// task is one invocation that came with needs of its own.
type task struct {
	id    string // empty for none
	until time.Time
	rev   *revision // as it runs with these needs
}

// within bounds waiting for a slot: by what a start may take, and by the task's
// deadline.
func (t *task) within(ctx context.Context, start time.Duration) (context.Context, context.CancelFunc) {
	until := time.Now().Add(start)
	if t != nil && !t.until.IsZero() && t.until.Before(until) {
		until = t.until
	}
	return context.WithDeadline(ctx, until)
}

// needs are the settled needs of the sandboxes of r; those of a revision by its
// descriptor alone are its limits.
func (r *revision) needs() api.Needs {
	if r.asked == nil {
		return api.Needs{Resources: r.limits}
	}
	return *r.asked
}

// with is r as its sandboxes with needs, which are settled, run it. It shares
// with r what is the function's. It is told apart from r, and from r with other
// needs, by its key: no sandbox of one ever serves the other.
func (r *revision) with(needs api.Needs) *revision {
	kind := needs.Kind()
	warm := api.NeedsKey(r.digest, kind)
	v := &revision{
		digest: r.digest, id: r.id + ":" + warm, seq: r.seq, name: r.name, desc: r.desc, plain: r.plain, image: r.image, inet: r.inet, rec: r.rec,
		limits: kind.Resources, slots: r.slots, bound: r.bound, start: r.start, idle: r.idle,
		seen: r.seen, habit: r.habit, full: r.full, asked: &kind, warm: warm, base: r,
	}
	if len(kind.Ports) > 0 || kind.Resources.Scratch|kind.Resources.Cores > 0 {
		v.slots = 1 // they are one task's at a time
	}
	return v
}

// late refuses a task whose time is over.
func (t *task) late(now time.Time) error {
	if !t.until.IsZero() && !now.Before(t.until) {
		return api.Errorf(api.CodeDeadline, "the task was to have ended before now")
	}
	return nil
}

// taskOf reads the needs that came with an invocation of rev; nil for none.
func (n *Node) taskOf(header []byte, rev *revision, now time.Time) (*task, error) {
	if len(header) == 0 {
		return nil, nil
	}
	needs, err := api.ParseNeeds(header)
	if err != nil {
		return nil, err
	}
	if needs, err = needs.Settle(rev.limits); err != nil {
		return nil, err
	}
	if err := n.fittings.cover(needs); err != nil {
		return nil, err
	}
	t := &task{id: needs.Task, rev: rev}
	if !needs.Plain(rev.limits) {
		t.rev = rev.with(needs)
	}
	if needs.Deadline > 0 {
		t.until = time.UnixMilli(needs.Deadline)
		if err := t.late(now); err != nil {
			return nil, err
		}
		if t.until.Sub(now) > farthest {
			return nil, api.Invalid("needs.deadline", "use one within a month", "it is farther away")
		}
	}
	return t, nil
}

// farthest is how far ahead a deadline can be. One beyond is a clock gone wrong.
const farthest = 31 * 24 * time.Hour

// reserved is what the runtime keeps with a sandbox for the node's next life. Ports
// are written short: there is room for runtime.MaxReserved bytes.
type reserved struct {
	Resources api.Resources  `json:"resources"`
	Apart     bool           `json:"apart,omitempty"`
	Any       map[string]int `json:"any,omitempty"` // protocol -> how many ports of any number it needs
	Allow     []string       `json:"allow,omitempty"`
	Named     []Port         `json:"named,omitempty"` // and which by number
	Ports     []Port         `json:"ports,omitempty"` // that it has
	Cores     []int          `json:"cores,omitempty"`
}

// reservedText encodes what s has; empty for a sandbox without needs of its own.
// The caller holds mu.
func (s *sandbox) reservedText() string {
	if s.rev.asked == nil {
		return ""
	}
	r := reserved{Resources: s.rev.asked.Resources, Apart: s.rev.asked.Apart, Allow: s.rev.asked.Allow, Any: map[string]int{}, Ports: s.ports, Cores: s.cores}
	for _, p := range s.rev.asked.Ports {
		if p.Number > 0 {
			r.Named = append(r.Named, Port{p.Protocol, p.Number})
		} else {
			r.Any[p.Protocol] = p.Count
		}
	}
	b, _ := json.Marshal(r) // numbers and words from a list
	return string(b)
}

// needs are those that r was written for.
func (r *reserved) needs() api.Needs {
	n := api.Needs{Resources: r.Resources, Allow: r.Allow, Apart: r.Apart}
	for protocol, count := range r.Any {
		n.Ports = append(n.Ports, api.PortNeed{Protocol: protocol, Count: count})
	}
	for _, p := range r.Named {
		n.Ports = append(n.Ports, api.PortNeed{Protocol: p.Protocol, Number: p.Number, Count: 1})
	}
	return n
}

// networked reports whether the sandboxes of r have more of a network than their
// loopback.
func (r *revision) networked() bool {
	return r.limits.Ingress > 0 || r.limits.Egress > 0 || r.limits.Ports > 0
}

// bundleBytes is the room for a sealed bundle: its size is the function's, not
// the task's.
func (r *revision) bundleBytes() int64 {
	if r.base != nil {
		return min(r.base.limits.Tmp, r.limits.Memory)
	}
	return r.limits.Tmp
}

// revive finds what the sandbox of an earlier life ran, and which ports and cores it
// has.
func (n *Node) revive(rev *revision, key, text string) (*revision, reserved, error) {
	var r reserved
	if text != "" {
		if err := json.Unmarshal([]byte(text), &r); err != nil {
			return nil, r, fmt.Errorf("what the sandbox has reserved: %w", err)
		}
		settled, err := r.needs().Settle(rev.limits)
		if err != nil {
			return nil, r, fmt.Errorf("what the sandbox has reserved: %w", err)
		}
		if err := n.fittings.cover(settled); err != nil {
			return nil, r, err
		}
		if int64(len(r.Ports)) != settled.Resources.Ports || int64(len(r.Cores)) != settled.Resources.Cores {
			return nil, r, fmt.Errorf("the sandbox has %d ports of the %d it needs, and %d cores of %d", len(r.Ports), settled.Resources.Ports, len(r.Cores), settled.Resources.Cores)
		}
		rev = rev.with(settled)
	}
	if rev.key() != key {
		return nil, r, fmt.Errorf("the sandbox runs another descriptor, or with other needs")
	}
	return rev, r, nil
}

// neighbour reports whether a sandbox of rev may not be made because of s: one of
// the two is to be the function's only one here.
func (r *revision) neighbour(s *sandbox) bool {
	return s.rev.name == r.name && (r.needs().Apart || s.rev.needs().Apart)
}

// inTheWay are the sandboxes that have to end before one of rev can be made,
// whatever else is free. ok is false where one of them serves somebody. mu is
// held.
func (n *Node) inTheWay(rev *revision, forHeld bool) (victims []*sandbox, ending, ok bool) {
	way := n.ports.holders(rev.needs().Ports)
	for _, s := range n.fleet {
		if rev.neighbour(s) {
			way = append(way, s)
		}
	}
	seen := map[*sandbox]bool{}
	for _, s := range way {
		switch {
		case seen[s]:
		case s.spare(time.Now(), forHeld):
			victims = append(victims, s)
		case s.state == stopping:
			ending = true
		default:
			return nil, false, false
		}
		seen[s] = true
	}
	return victims, ending, true
}
