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
// it joined, then whatever the mesh shows. That they are coordinators, mutual
// TLS decides and not the mesh.
type coordinators struct {
	first string
	mesh  atomic.Pointer[gossip.Mesh] // set once it is joined
}

// dialTimeout bounds the attempt to reach one of several.
const dialTimeout = 2 * time.Second

func (c *coordinators) addresses() []string {
	all := []string{c.first}
	if m := c.mesh.Load(); m != nil {
		for _, n := range m.Snapshot().Nodes {
			if slices.Contains(n.Meta.Roles, api.RoleCoordinator) && n.Meta.Addr != c.first {
				all = append(all, n.Meta.Addr)
			}
		}
	}
	return all
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
