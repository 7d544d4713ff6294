package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	gocni "github.com/containerd/go-cni"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/faasd-sec/faasd-sec/api"
)

// Manager attaches sandboxes of one node to its bridge. It runs in the network
// namespace it was opened in. Its methods may be called at the same time; they
// take turns, because the plugins change the same tables.
type Manager struct {
	cfg                   Config
	cni                   gocni.CNI
	nftPath, iptablesPath string
	links                 *netlink.Handle
	cookie                uint64 // of the host's namespace
	boot                  string
	mark                  string // what its programs are known by
	lock                  *os.File

	turn    chan struct{}      // holds a token while a method works
	records map[string]*record // what the directory has; with the turn
}

// Attachment is what a sandbox got.
type Attachment struct {
	ID      string
	Address netip.Addr
	Gateway netip.Addr
	Link    string // the host's end, whose counters are the sandbox's traffic
	Ports   []Port
}

// Open prepares the node's directory and policy. Call Recover before the first
// Attach, and Close at the end, which leaves attachments as they are.
func Open(ctx context.Context, cfg Config) (_ *Manager, retErr error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	cfg.Dir = filepath.Clean(cfg.Dir)
	if !filepath.IsAbs(cfg.Dir) {
		return nil, fmt.Errorf("network: %s is not absolute", cfg.Dir)
	}
	m := &Manager{cfg: cfg, mark: markOf(cfg.Dir), turn: make(chan struct{}, 1)}
	var err error
	if m.nftPath, err = find(cfg.NFT); err != nil {
		return nil, err
	}
	if m.iptablesPath, err = find(cfg.IPTables); err != nil {
		return nil, err
	}
	if m.cni, err = cfg.loadPlugins(); err != nil {
		return nil, err
	}
	if m.boot, err = bootID(); err != nil {
		return nil, err
	}
	if m.cookie, err = cookie(); err != nil {
		return nil, fmt.Errorf("network: %w", err)
	}
	if err := os.MkdirAll(filepath.Join(cfg.Dir, "attached"), 0o700); err != nil {
		return nil, fmt.Errorf("network: %w", err)
	}
	if m.lock, err = lockDir(cfg.Dir); err != nil {
		return nil, err
	}
	defer func() {
		if retErr != nil {
			retErr = errors.Join(retErr, m.Close())
		}
	}()
	if m.records, err = m.load(); err != nil {
		return nil, err
	}
	if m.links, err = newHandle(netns.None(), unix.NETLINK_ROUTE, unix.NETLINK_NETFILTER); err != nil {
		return nil, err
	}
	s := cfg.script()
	s.base(cfg)
	if _, err := m.nft(ctx, s); err != nil {
		return nil, err
	}
	if err := m.acceptPublished(ctx); err != nil {
		return nil, err
	}
	return m, nil
}

// Close lets another process open the directory.
func (m *Manager) Close() error {
	if m.links != nil {
		m.links.Close()
	}
	return m.lock.Close()
}

func (m *Manager) take(ctx context.Context) error {
	select {
	case m.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("network: wait for a turn: %w", ctx.Err())
	}
}

func (m *Manager) yield() { <-m.turn }

// Attach gives the sandbox in the network namespace at path what w says. On an
// error nothing is left of it. An id that is attached is refused.
func (m *Manager) Attach(ctx context.Context, id, path string, w Want) (_ Attachment, retErr error) {
	if !validID.MatchString(id) {
		return Attachment{}, fmt.Errorf("network: %q is no sandbox's id", id)
	}
	if err := w.check(); err != nil {
		return Attachment{}, err
	}
	if err := m.take(ctx); err != nil {
		return Attachment{}, err
	}
	defer m.yield()
	if err := m.admit(id, w); err != nil {
		return Attachment{}, err
	}
	n, err := m.openNamespace(path)
	if err != nil {
		return Attachment{}, err
	}
	defer n.close()
	r := &record{ID: id, NetNS: path, Cookie: n.cookie, Boot: m.boot, Want: w}
	m.records[id] = r
	defer func() {
		if retErr == nil {
			return
		}
		// Undoing has its own time: the caller's may be why we are here.
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*m.cfg.Deadline)
		defer cancel()
		if err := m.detach(undo, r); err != nil {
			retErr = errors.Join(retErr, fmt.Errorf("network: undo: %w", err))
		}
	}()
	if err := m.save(r); err != nil {
		return Attachment{}, err
	}
	if err := n.withoutIPv6(); err != nil {
		return Attachment{}, fmt.Errorf("network: switch off IPv6 of %s: %w", id, err)
	}
	if err := m.add(ctx, r, n); err != nil {
		return Attachment{}, err
	}
	if err := n.checkNoIPv6(); err != nil {
		return Attachment{}, fmt.Errorf("network: %s: %w", id, err)
	}
	if err := m.look(r, n); err != nil {
		return Attachment{}, err
	}
	// Before the policy has this address, so that a crash finds it there.
	if err := m.save(r); err != nil {
		return Attachment{}, err
	}
	if err := m.isolate(r); err != nil {
		return Attachment{}, err
	}
	s := m.cfg.script()
	s.base(m.cfg) // were it gone, all others would be shut off too, not open
	s.grant(r)
	if _, err := m.nft(ctx, s); err != nil {
		return Attachment{}, err
	}
	if err := m.check(ctx, r); err != nil {
		return Attachment{}, err
	}
	r.Done = true
	if err := m.save(r); err != nil {
		return Attachment{}, err
	}
	return m.attachment(r), nil
}

// admit refuses what would take another attachment's place.
func (m *Manager) admit(id string, w Want) error {
	if _, ok := m.records[id]; ok {
		return fmt.Errorf("network: %s is attached already", id)
	}
	for _, r := range m.records {
		for _, p := range r.Want.Ports {
			if slices.ContainsFunc(w.Ports, func(q Port) bool { return p.Protocol == q.Protocol && p.Host == q.Host }) {
				return api.Invalid("ports", "choose a port that is free", fmt.Sprintf("%s port %d is another sandbox's", p.Protocol, p.Host))
			}
		}
	}
	return nil
}

func (m *Manager) attachment(r *record) Attachment {
	return Attachment{ID: r.ID, Address: r.Address, Gateway: m.cfg.gateway(), Link: r.Link, Ports: slices.Clone(r.Want.Ports)}
}

// check reads back what holds an attachment to its grants.
func (m *Manager) check(ctx context.Context, r *record) error {
	if err := m.checkPort(r); err != nil {
		return err
	}
	if err := m.checkRates(r); err != nil {
		return err
	}
	return m.checkPolicy(ctx, r)
}

// Check reads back from the kernel, once more, that an attachment is held to
// what it was granted: somebody may have flushed a table. An error is a reason
// to stop the sandbox.
func (m *Manager) Check(ctx context.Context, id string) error {
	if err := m.take(ctx); err != nil {
		return err
	}
	defer m.yield()
	r, ok := m.records[id]
	if !ok {
		return fmt.Errorf("network: %s is not attached", id)
	}
	return m.check(ctx, r)
}

// Detach removes all of an attachment, before or after its namespace is gone.
// One that is not there is no error. After an error, call it again.
func (m *Manager) Detach(ctx context.Context, id string) error {
	if err := m.take(ctx); err != nil {
		return err
	}
	defer m.yield()
	r, ok := m.records[id]
	if !ok {
		return nil
	}
	return m.detach(ctx, r)
}

// detach closes first, and forgets last. Each part is also right where there is
// nothing to remove.
func (m *Manager) detach(ctx context.Context, r *record) error {
	r.Done = false
	if err := m.settle(ctx, r.ID); err != nil {
		return err
	}
	if r.Address.IsValid() {
		s := m.cfg.script()
		s.base(m.cfg)
		s.revoke(r)
		if _, err := m.nft(ctx, s); err != nil {
			return err
		}
	}
	if err := m.forgetFlows(ctx, r); err != nil {
		return err
	}
	addrs, err := m.leased()
	if err != nil {
		return err
	}
	mine := func(a netip.Addr) bool { return a == r.Address || addrs[a] == r.ID }
	path, done := m.pathOf(r)
	defer done()
	if err := m.del(ctx, r, path); err != nil {
		return err
	}
	if err := m.removeLinks(r); err != nil {
		return err
	}
	if err := m.removeForward(ctx, mine); err != nil {
		return err
	}
	if err := m.checkUnpublished(ctx, r); err != nil {
		return err
	}
	if err := m.release(func(id string) bool { return id == r.ID }); err != nil {
		return err
	}
	if err := m.forget(r.ID); err != nil {
		return err
	}
	delete(m.records, r.ID)
	return nil
}

// pathOf is how plugins reach the record's namespace: not by the path it once
// had unless that is still the same namespace. A process's number is used
// again, and the plugins delete interfaces there.
func (m *Manager) pathOf(r *record) (path string, done func()) {
	none := func() {}
	if r.Boot != m.boot {
		return "", none
	}
	n, err := m.openNamespace(r.NetNS)
	if err != nil {
		return "", none
	}
	if n.cookie != r.Cookie {
		n.close()
		return "", none
	}
	return n.path(), func() { n.close() }
}
