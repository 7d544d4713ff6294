package main

import (
	"context"
	"errors"
	"net"
	"slices"
	"sync/atomic"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/gossip"
)

// coordinators are where a node finds one: the address that it was told when
// it joined, and whatever the mesh shows. That they are coordinators, mutual
// TLS decides and not the mesh.
type coordinators struct {
	first string
	mesh  atomic.Pointer[gossip.Mesh] // set once it is joined
}

// dialTimeout bounds the attempt to reach one of several.
const dialTimeout = 2 * time.Second

// addresses are those that the mesh shows, the first one ahead; where it is not
// among them it comes last, since each attempt at a machine without power takes
// its time.
func (c *coordinators) addresses() []string {
	var all []string
	if m := c.mesh.Load(); m != nil {
		for _, n := range m.Snapshot().Nodes {
			if slices.Contains(n.Meta.Roles, api.RoleCoordinator) {
				all = append(all, n.Meta.Addr)
			}
		}
	}
	return firstAhead(all, c.first)
}

// firstAhead is live with first ahead where it is in it, and at the end otherwise.
func firstAhead(live []string, first string) []string {
	at := slices.Index(live, first)
	if at < 0 {
		return append(live, first)
	}
	return append([]string{first}, slices.Delete(live, at, at+1)...)
}

// dial connects to the first that answers, for a transport that was told the
// address of one of them.
func (c *coordinators) dial(ctx context.Context, network, _ string) (net.Conn, error) {
	var errs error
	for _, addr := range c.addresses() {
		d := net.Dialer{Timeout: dialTimeout, KeepAlive: 15 * time.Second}
		conn, err := d.DialContext(ctx, network, addr)
		if err == nil {
			return conn, nil
		}
		errs = errors.Join(errs, err)
	}
	return nil, errs
}
