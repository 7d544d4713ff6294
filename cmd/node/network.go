package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/network"
	"github.com/faasd-sec/faasd-sec/node"
)

// firstInside is the port inside a sandbox that the first port of the host leads
// to which was not asked for by number; the next ones lead to those above.
const firstInside = 8080

// networks gives sandboxes a network of this machine's.
type networks struct {
	manager *network.Manager
	allow   []network.Allow
	log     *slog.Logger
}

var _ node.Fitting = (*networks)(nil)

// lendNetwork opens the bridge of this node, where it lends bandwidth. What it
// returns is to be closed at the end: attachments stay.
func lendNetwork(ctx context.Context, o options, deps *node.Deps) (closeIt func() error, err error) {
	if o.capacity.Ingress == 0 && o.capacity.Egress == 0 {
		return func() error { return nil }, nil
	}
	cfg := network.Default(filepath.Join(o.state, "network"))
	cfg.Bridge = o.networkBridge
	if cfg.Subnet, err = netip.ParsePrefix(o.networkSubnet); err != nil {
		return nil, fmt.Errorf("-network-subnet: %w", err)
	}
	for s := range strings.SplitSeq(o.networkNever, ",") {
		if s == "" {
			continue
		}
		never, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, fmt.Errorf("-network-never: %w", err)
		}
		cfg.Never = append(cfg.Never, never)
	}
	n := &networks{log: deps.Log}
	for s := range strings.SplitSeq(o.networkAllow, ",") {
		if s == "" {
			continue
		}
		a, err := api.ParseReach("network-allow", s)
		if err != nil {
			return nil, fmt.Errorf("-network-allow: %w", err)
		}
		n.allow = append(n.allow, a)
	}
	if n.manager, err = network.Open(ctx, cfg); err != nil {
		return nil, fmt.Errorf("network: %w", err)
	}
	deps.Fittings = append(deps.Fittings, n)
	return n.manager.Close, nil
}

func (n *networks) Parts() []string {
	return []string{node.PartIngress, node.PartEgress, node.PartPorts}
}

var _ node.Examiner = (*networks)(nil)

// Examine refuses a list of what a task may open that goes beyond what this node
// lets functions open.
func (n *networks) Examine(needs api.Needs) error {
	list, err := n.list(needs)
	if err != nil {
		return err
	}
	for i, a := range list {
		if !slices.ContainsFunc(n.allow, a.Within) {
			e := api.Errorf(api.CodeNoRoom, "entry %d of what the task may open is not within what this node lets functions open", i+1)
			e.Field, e.Remedy = "needs.allow", "ask for less, or have the operator extend the node's -network-allow"
			return e
		}
	}
	return nil
}

// list is what a sandbox may open: what its task asked for, or else all that this
// node lets functions open.
func (n *networks) list(needs api.Needs) ([]network.Allow, error) {
	if len(needs.Allow) == 0 {
		return n.allow, nil
	}
	list := make([]network.Allow, len(needs.Allow))
	for i, s := range needs.Allow {
		var err error
		if list[i], err = api.ParseReach("needs.allow", s); err != nil {
			return nil, err
		}
	}
	return list, nil
}

func (n *networks) Attach(ctx context.Context, f node.Fitted) error {
	list, err := n.list(f.Needs)
	if err == nil {
		_, err = n.manager.Attach(ctx, f.ID, fmt.Sprintf("/proc/%d/ns/net", f.PID), network.WantOf(f.Needs, inside(f), list))
	}
	return err
}

func (n *networks) Detach(ctx context.Context, id string) error { return n.manager.Detach(ctx, id) }

// Recover gives those that lost theirs, with an earlier boot of the plugins' state
// or a damaged record, a network again.
func (n *networks) Recover(ctx context.Context, live []node.Fitted) error {
	ids := make([]string, len(live))
	for i, f := range live {
		ids[i] = f.ID
	}
	kept, err := n.manager.Recover(ctx, ids)
	for _, f := range live {
		if !slices.ContainsFunc(kept, func(a network.Attachment) bool { return a.ID == f.ID }) {
			n.log.Warn("a sandbox had not the network that it was given, and is given it anew", "sandbox", f.ID)
			err = errors.Join(err, n.Attach(ctx, f))
		}
	}
	return err
}

// inside says where each port that a sandbox holds leads to: to the same number
// where that was asked for, to firstInside and those above for all others.
func inside(f node.Fitted) []network.Port {
	next := map[string]uint16{api.ProtocolTCP: firstInside, api.ProtocolUDP: firstInside}
	out := make([]network.Port, 0, len(f.Ports))
	for _, p := range slices.SortedFunc(slices.Values(f.Ports), func(a, b node.Port) int { return a.Number - b.Number }) {
		to := network.Port{Protocol: p.Protocol, Host: uint16(p.Number), Sandbox: uint16(p.Number)}
		if !slices.Contains(f.Needs.Ports, api.PortNeed{Protocol: p.Protocol, Number: p.Number, Count: 1}) {
			to.Sandbox = next[p.Protocol]
			next[p.Protocol]++
		}
		out = append(out, to)
	}
	return out
}
