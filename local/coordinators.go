package local

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/enrol"
	"github.com/faasd-sec/faasd-sec/pki"
)

// coordinatorPorts are the addresses of one more coordinator.
type coordinatorPorts struct{ gateway, cluster, gossip, ops, peer string }

// Gateways are the URLs of all coordinators, the first one's first.
func (c *Cluster) Gateways() []string {
	all := []string{c.Gateway()}
	for _, p := range c.others {
		all = append(all, "http://"+p.gateway)
	}
	return all
}

// CoordinatorState is the state directory of coordinator i, counted from 1.
func (c *Cluster) CoordinatorState(i int) string {
	return filepath.Join(c.state, coordinatorName(i))
}

func coordinatorName(i int) string {
	if i == 1 {
		return "coordinator"
	}
	return "coordinator-" + strconv.Itoa(i)
}

// chooseOthers finds ports for the second coordinator and those after it.
func (c *Cluster) chooseOthers() error {
	if c.cfg.Coordinators < 2 {
		return nil
	}
	host, _, err := net.SplitHostPort(c.cfg.Listen)
	if err != nil {
		return err
	}
	if c.peers == nil {
		if err := c.choosePeers(); err != nil {
			return err
		}
	}
	c.ports.peer = c.peers[0]
	for i := 2; i <= c.cfg.Coordinators; i++ {
		p := coordinatorPorts{peer: c.peers[i-1]}
		for _, at := range []struct {
			addr *string
			host string
		}{{&p.gateway, host}, {&p.cluster, "127.0.0.1"}, {&p.gossip, "127.0.0.1"}, {&p.ops, "127.0.0.1"}} {
			if *at.addr, err = c.port(at.host); err != nil {
				return err
			}
		}
		c.others = append(c.others, p)
	}
	return nil
}

// peersFile keeps the addresses of the coordinators' stores.
const peersFile = "peers"

// keepPeers reads the addresses that the stores had in an earlier run. The store
// keeps its members' addresses: they count until each member has told its new one,
// which takes a majority. So they stay.
func (c *Cluster) keepPeers() error {
	b, err := os.ReadFile(filepath.Join(c.state, peersFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	c.peers = strings.Fields(string(b))
	if n := len(c.peers); n != max(1, c.cfg.Coordinators) {
		return &api.Error{Code: api.CodeConflict, Field: "coordinators", Message: fmt.Sprintf("%s is of %d coordinators, not %d", c.state, n, max(1, c.cfg.Coordinators)),
			Remedy: fmt.Sprintf("ask for %d again, or choose another directory", n)}
	}
	for _, addr := range c.peers {
		if !c.draw(addr) {
			return fmt.Errorf("%s: %q is no address, or there twice", filepath.Join(c.state, peersFile), addr)
		}
	}
	return nil
}

func (c *Cluster) choosePeers() error {
	all := make([]string, c.cfg.Coordinators)
	for i := range all {
		var err error
		if all[i], err = c.port("127.0.0.1"); err != nil {
			return err
		}
	}
	c.peers = all
	return os.WriteFile(filepath.Join(c.state, peersFile), []byte(strings.Join(all, "\n")+"\n"), 0o600)
}

// serves asks a part's operations listener.
func serves(ops string) func(context.Context) error {
	return func(ctx context.Context) error { return answers(ctx, "http://"+ops+"/healthz") }
}

// haveJoined says that the store has members beside the first coordinator's.
func (c *Cluster) haveJoined() bool {
	if c.cfg.Coordinators < 2 {
		return false
	}
	_, err := os.Stat(filepath.Join(c.CoordinatorState(2), enrol.ClusterFile))
	return err == nil
}

// startOthers has the other coordinators join the first one, as those of other
// machines would, with a token each. Where they have joined before, all start
// together.
func (c *Cluster) startOthers(ctx context.Context) error {
	again := c.haveJoined()
	for i := 2; i <= c.cfg.Coordinators; i++ {
		p, err := c.startOther(ctx, i)
		if err == nil && !again {
			err = c.served(ctx, p)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", coordinatorName(i), err)
		}
	}
	if !again {
		return nil
	}
	for _, p := range c.procs {
		if !strings.HasPrefix(p.name, "coordinator") {
			continue
		}
		if err := c.served(ctx, p); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	return nil
}

func (c *Cluster) startOther(ctx context.Context, i int) (*process, error) {
	dir, p := c.CoordinatorState(i), c.others[i-2]
	args := []string{
		"-state", dir, "-id", "coordinator-" + strconv.Itoa(i), "-listen", p.gateway, "-cluster-listen", p.cluster,
		"-gossip-listen", p.gossip, "-ops-listen", p.ops, "-peer-listen", p.peer, "-broker", c.ports.broker,
		"-manifest-opener", c.openerSocket(), "-basic-auth-dir", c.BasicAuth(),
	}
	args = append(args, c.callbacks()...)
	if _, err := os.Stat(filepath.Join(dir, enrol.ClusterFile)); errors.Is(err, os.ErrNotExist) {
		token, err := enrol.RequestToken(ctx, c.CoordinatorState(1), pki.RoleCoordinator, 1, 10*time.Minute)
		if err != nil {
			return nil, err
		}
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
		file := filepath.Join(dir, "join-token")
		if err := os.WriteFile(file, []byte(token), 0o600); err != nil {
			return nil, err
		}
		args = append(args, "-join", c.ports.cluster, "-join-token", "@"+file)
	} else if err := enrol.Save(dir, enrol.PeersFile, enrol.Peers{Gossip: []string{c.ports.gossip}}); err != nil {
		return nil, err // ports differ from one run to the next: it would look for the others where they were
	}
	args = append(args, c.cfg.Args...)
	return c.launch(coordinatorName(i), serves(p.ops), c.bin("coordinator"), args...)
}

// Signal sends a signal to a part, such as "coordinator-2", which is started
// again when it ends.
func (c *Cluster) Signal(part string, sig syscall.Signal) error {
	for _, p := range c.procs {
		if p.name != part {
			continue
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.cmd == nil {
			return fmt.Errorf("%s does not run", part)
		}
		return p.cmd.Process.Signal(sig)
	}
	return fmt.Errorf("there is no %s", part)
}
