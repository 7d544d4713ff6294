package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// Recover brings the kernel and the directory to what is live: the sandboxes
// that still run. It removes every other attachment, and those that a crash
// left half made; writes the whole policy anew, in one step; and removes ports
// of the bridge, addresses and rules that belong to none.
//
// It returns the attachments that remain. A live sandbox that is not among them
// has no network any more, also where it had one whose limits the kernel no
// longer shows. Errors are joined: what can be removed is.
func (m *Manager) Recover(ctx context.Context, live []string) ([]Attachment, error) {
	if err := m.take(ctx); err != nil {
		return nil, err
	}
	defer m.yield()
	errs := []error{m.settle(ctx, m.ids()...)}
	for _, id := range m.ids() {
		if r := m.records[id]; !r.Done || r.Boot != m.boot || !slices.Contains(live, id) {
			errs = append(errs, m.detach(ctx, r))
		}
	}
	errs = append(errs, m.rewrite(ctx))
	for _, id := range m.ids() {
		r := m.records[id]
		if !r.Done {
			continue // its removal failed above
		}
		if err := m.check(ctx, r); err != nil {
			if derr := m.detach(ctx, r); derr != nil {
				errs = append(errs, fmt.Errorf("network: %s is to be detached: %w", id, err), derr)
			}
		}
	}
	errs = append(errs, m.removeStrays(ctx))
	var kept []Attachment
	for _, id := range m.ids() {
		if r := m.records[id]; r.Done {
			kept = append(kept, m.attachment(r))
		}
	}
	return kept, errors.Join(errs...)
}

func (m *Manager) ids() []string {
	ids := make([]string, 0, len(m.records))
	for id := range m.records {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// rewrite replaces both tables by what the records say. No packet sees less
// than one or the other.
func (m *Manager) rewrite(ctx context.Context) error {
	s := m.cfg.script()
	s.drop()
	s.base(m.cfg)
	for _, id := range m.ids() {
		if r := m.records[id]; r.Done {
			s.grant(r)
		}
	}
	_, err := m.nft(ctx, s)
	return err
}

// removeStrays removes what has no record. Records outlive what they lead to,
// so that this finds something only where a directory was lost.
func (m *Manager) removeStrays(ctx context.Context) error {
	known := map[netip.Addr]bool{}
	for _, r := range m.records {
		known[r.Address] = true
	}
	return errors.Join(
		m.removeStrayPorts(),
		m.release(func(id string) bool { _, ok := m.records[id]; return !ok }),
		m.removeForward(ctx, func(a netip.Addr) bool { return !known[a] }),
	)
}

// Remove takes the node's network off the host: all attachments, the tables and
// the bridge. Chains that CNI plugins share with others remain, empty.
func (m *Manager) Remove(ctx context.Context) error {
	if _, err := m.Recover(ctx, nil); err != nil {
		return err
	}
	if err := m.take(ctx); err != nil {
		return err
	}
	defer m.yield()
	s := m.cfg.script()
	s.drop()
	if _, err := m.nft(ctx, s); err != nil {
		return err
	}
	if _, err := m.iptables(ctx, "-F", m.cfg.adminChain()); err != nil {
		return err
	}
	bridge, err := m.links.LinkByName(m.cfg.Bridge)
	if isNotFound(err) {
		return nil
	}
	if err == nil {
		err = m.links.LinkDel(bridge)
	}
	if err != nil {
		return fmt.Errorf("network: remove %s: %w", m.cfg.Bridge, err)
	}
	return nil
}
