package local

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/faasd-sec/faasd-sec/api"
)

func (c *Cluster) check() error {
	switch {
	case os.Geteuid() != 0:
		return &api.Error{Code: api.CodeForbidden, Message: "sandboxes need root", Remedy: "run it with sudo"}
	case c.cfg.Nodes < 1 || c.cfg.Nodes > 64:
		return api.Invalid("nodes", "ask for 1 to 64", fmt.Sprintf("%d nodes cannot be run", c.cfg.Nodes))
	case c.cfg.Coordinators < 0 || c.cfg.Coordinators > 7 || (c.cfg.Coordinators > 0 && c.cfg.Coordinators%2 == 0):
		return api.Invalid("coordinators", "ask for 1, 3, 5 or 7: an even number bears no more losses than one fewer", fmt.Sprintf("%d coordinators cannot be run", c.cfg.Coordinators))
	}
	host, _, err := net.SplitHostPort(c.cfg.Listen)
	if err != nil || host == "" {
		return api.Invalid("listen", "give host:port, such as 127.0.0.1:8080", fmt.Sprintf("%q is not an address", c.cfg.Listen))
	}
	if err := c.checkLent(); err != nil {
		return err
	}
	for _, b := range []string{"coordinator", "keybroker", "manifest-opener", "node", "agent"} {
		if _, err := os.Stat(filepath.Join(c.cfg.Bin, b)); err != nil {
			return &api.Error{Code: api.CodeNotFound, Field: b, Message: "no such binary in " + c.cfg.Bin,
				Remedy: "run `make build`, which puts all of them beside each other"}
		}
	}
	return nil
}

// checkLent refuses here what a node would refuse at each of its starts.
func (c *Cluster) checkLent() error {
	if c.cfg.CPU != "" {
		if _, err := api.ParseCPU("node-cpu", c.cfg.CPU); err != nil {
			return err
		}
	}
	if c.cfg.Memory != "" {
		if _, err := api.ParseBytes("node-memory", c.cfg.Memory); err != nil {
			return err
		}
	}
	if c.cfg.IdleAfter < 0 {
		return api.Invalid("idle-after", "give a time such as 5m", c.cfg.IdleAfter.String()+" is no time to come")
	}
	if c.cfg.Containerd == "" {
		return nil
	}
	if st, err := os.Stat(c.cfg.Containerd); err != nil || st.Mode()&os.ModeSocket == 0 {
		return &api.Error{Code: api.CodeInvalid, Field: "containerd", Err: err, Message: "there is no socket " + c.cfg.Containerd, Remedy: "give that of a containerd that runs, or leave it out"}
	}
	return nil
}

// lockState keeps others from the state: they would end this cluster's parts, as
// those of a run that was killed. The kernel gives the lock back with the process.
func (c *Cluster) lockState() error {
	f, err := os.OpenFile(filepath.Join(c.state, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return &api.Error{Code: api.CodeConflict, Field: "state", Err: errors.Join(err, f.Close()), Message: "a cluster runs on " + c.state + " already",
			Remedy: "use that one, stop it, or choose another directory"}
	}
	c.lock = f
	return nil
}
