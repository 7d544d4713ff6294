package daemon

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/errdefs"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// needed are the plug-ins that sandboxes need, by type and id; "" is every
// plug-in of the type.
func needed() [][2]string {
	return [][2]string{
		{"io.containerd.metadata.v1", ""},
		{"io.containerd.content.v1", "content"},
		{"io.containerd.snapshotter.v1", "overlayfs"},
		{"io.containerd.runtime.v2", "task"},
		{"io.containerd.gc.v1", ""},
		{"io.containerd.service.v1", "tasks-service"},
		{"io.containerd.service.v1", "containers-service"},
		{"io.containerd.grpc.v1", "tasks"},
		{"io.containerd.grpc.v1", "leases"},
	}
}

// unreachable reports whether an error is of the connection, not of the daemon.
func unreachable(err error) bool {
	return errdefs.IsUnavailable(err) || status.Code(err) == codes.Unavailable
}

// usable asks the daemon which of its plug-ins failed: it serves even if all
// of them did.
func (d *Daemon) usable(ctx context.Context) error {
	c, err := client.New(d.cfg.Socket)
	if err != nil {
		return fmt.Errorf("connect to containerd: %w", err)
	}
	defer c.Close()
	resp, err := c.IntrospectionService().Plugins(ctx)
	if err != nil {
		return fmt.Errorf("ask containerd for its plug-ins: %w", err)
	}
	var errs []error
	for _, p := range resp.Plugins {
		wanted := slices.ContainsFunc(needed(), func(n [2]string) bool { return n[0] == p.Type && (n[1] == "" || n[1] == p.ID) })
		if wanted && p.InitErr != nil {
			errs = append(errs, fmt.Errorf("containerd plug-in %s.%s failed: %s; see %s", p.Type, p.ID, p.InitErr.Message, d.LogFile()))
		}
	}
	return errors.Join(errs...)
}
