package network

import (
	"context"
	"crypto/sha512"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// netlinkTimeout bounds one question to the kernel.
const netlinkTimeout = 5 * time.Second

func newHandle(ns netns.NsHandle, families ...int) (*netlink.Handle, error) {
	h, err := netlink.NewHandleAt(ns, families...)
	if err != nil {
		return nil, fmt.Errorf("network: netlink: %w", err)
	}
	if err := h.SetSocketTimeout(netlinkTimeout); err != nil {
		h.Close()
		return nil, fmt.Errorf("network: netlink: %w", err)
	}
	return h, nil
}

// look fills in what the plugins made, as the kernel shows it and not as they
// said: the sandbox's one address, its hardware address, the host's end.
func (m *Manager) look(r *record, n *namespace) error {
	h, err := newHandle(netns.NsHandle(n.file.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	in, err := h.LinkByName(inside)
	if err != nil {
		return fmt.Errorf("network: look at the interface of %s: %w", r.ID, err)
	}
	addrs, err := h.AddrList(in, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("network: look at the addresses of %s: %w", r.ID, err)
	}
	if len(addrs) != 1 {
		return fmt.Errorf("network: %s has %d addresses, not one", r.ID, len(addrs))
	}
	a, ok := netip.AddrFromSlice(addrs[0].IP)
	a = a.Unmap()
	if !ok || !m.cfg.Subnet.Contains(a) || a == m.cfg.gateway() {
		return fmt.Errorf("network: %s has address %s, which is no sandbox's", r.ID, addrs[0].IP)
	}
	out, err := m.links.LinkByIndex(in.Attrs().ParentIndex)
	if err != nil {
		return fmt.Errorf("network: look at the host's end of %s: %w", r.ID, err)
	}
	r.Address, r.MAC = a, in.Attrs().HardwareAddr.String()
	r.Link, r.Index = out.Attrs().Name, out.Attrs().Index
	return nil
}

// hostEnd is the host's end of an attachment, which has to be a port of our
// bridge, and nil if it is gone. Index and name both: indexes of a namespace
// are not used again soon, and names are.
func (m *Manager) hostEnd(r *record) (netlink.Link, error) {
	if r.Index == 0 || r.Boot != m.boot {
		return nil, nil
	}
	l, err := m.links.LinkByIndex(r.Index)
	if isNotFound(err) || err == nil && (l.Attrs().Name != r.Link || l.Type() != "veth") {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("network: look for %s: %w", r.Link, err)
	}
	return l, nil
}

// isolate keeps the port from every other port of the bridge but the bridge
// itself, and reads that back.
func (m *Manager) isolate(r *record) error {
	l, err := m.hostEnd(r)
	if err != nil {
		return err
	}
	if l == nil {
		return fmt.Errorf("network: %s is gone", r.Link)
	}
	if err := m.links.LinkSetIsolated(l, true); err != nil {
		return fmt.Errorf("network: isolate %s: %w", r.Link, err)
	}
	return m.checkPort(r)
}

func (m *Manager) checkPort(r *record) error {
	l, err := m.hostEnd(r)
	if err != nil {
		return err
	}
	bridge, err := m.links.LinkByName(m.cfg.Bridge)
	if err != nil {
		return fmt.Errorf("network: look at the bridge: %w", err)
	}
	if l == nil || l.Attrs().MasterIndex != bridge.Attrs().Index {
		return fmt.Errorf("network: %s is no port of %s", r.Link, m.cfg.Bridge)
	}
	p, err := m.links.LinkGetProtinfo(l)
	if err != nil {
		return fmt.Errorf("network: read the port %s: %w", r.Link, err)
	}
	if !p.Isolated || p.Hairpin {
		return fmt.Errorf("network: port %s is not isolated", r.Link)
	}
	return nil
}

// ifbName is what the bandwidth plugin calls the device that it shapes a
// sandbox's egress on.
func (m *Manager) ifbName(id string) string {
	return fmt.Sprintf("bwp%x", sha512.Sum512([]byte(m.cfg.networkName()+id)))[:15]
}

// checkRates reads back how the kernel shapes both directions. What goes into
// the sandbox leaves the host by its end; what comes out is redirected to a
// device of its own, and shaped as it leaves that.
func (m *Manager) checkRates(r *record) error {
	l, err := m.hostEnd(r)
	if err != nil {
		return err
	}
	if l == nil {
		return fmt.Errorf("network: %s is gone", r.Link)
	}
	ifb, err := m.links.LinkByName(m.ifbName(r.ID))
	if err != nil {
		return fmt.Errorf("network: look at what shapes the egress of %s: %w", r.ID, err)
	}
	if err := m.checkTBF(l, r.Want.Ingress); err != nil {
		return fmt.Errorf("network: ingress of %s: %w", r.ID, err)
	}
	if err := m.checkTBF(ifb, r.Want.Egress); err != nil {
		return fmt.Errorf("network: egress of %s: %w", r.ID, err)
	}
	if ifb.Attrs().OperState != netlink.OperUp && ifb.Attrs().Flags&1 == 0 {
		return fmt.Errorf("network: %s is down", ifb.Attrs().Name)
	}
	// The parent of filters at the ingress qdisc, ffff:.
	filters, err := m.links.FilterList(l, netlink.MakeHandle(0xffff, 0))
	if err != nil {
		return fmt.Errorf("network: read the filters of %s: %w", r.Link, err)
	}
	for _, f := range filters {
		u, ok := f.(*netlink.U32)
		if !ok {
			continue
		}
		for _, a := range u.Actions {
			if mi, ok := a.(*netlink.MirredAction); ok && mi.Ifindex == ifb.Attrs().Index && mi.MirredAction == netlink.TCA_EGRESS_REDIR && matchesAll(u) {
				return nil
			}
		}
	}
	return fmt.Errorf("network: nothing leads the egress of %s to where it is shaped", r.ID)
}

// matchesAll reports whether a filter is for every packet of every protocol.
func matchesAll(u *netlink.U32) bool {
	if u.Protocol != unix.ETH_P_ALL {
		return false
	}
	if u.Sel != nil {
		for _, k := range u.Sel.Keys {
			if k.Mask != 0 {
				return false
			}
		}
	}
	return true
}

func (m *Manager) checkTBF(l netlink.Link, rate int64) error {
	qdiscs, err := m.links.QdiscList(l)
	if err != nil {
		return fmt.Errorf("read the qdiscs of %s: %w", l.Attrs().Name, err)
	}
	for _, q := range qdiscs {
		t, ok := q.(*netlink.Tbf)
		if !ok || t.Parent != netlink.HANDLE_ROOT {
			continue
		}
		if t.Rate != uint64(rate/8) {
			return fmt.Errorf("%s is shaped to %d bytes/s, not %d", l.Attrs().Name, t.Rate, rate/8)
		}
		return nil
	}
	return fmt.Errorf("%s is not shaped", l.Attrs().Name)
}

// removeLinks removes what the plugins should have removed, and may not have
// where one of them was killed.
func (m *Manager) removeLinks(r *record) error {
	l, err := m.hostEnd(r)
	if err != nil {
		return err
	}
	if l != nil {
		if err := m.links.LinkDel(l); err != nil && !isNotFound(err) {
			return fmt.Errorf("network: remove %s: %w", r.Link, err)
		}
	}
	ifb, err := m.links.LinkByName(m.ifbName(r.ID))
	if isNotFound(err) {
		return nil
	}
	if err == nil {
		err = m.links.LinkDel(ifb)
	}
	if err != nil && !isNotFound(err) {
		return fmt.Errorf("network: remove what shapes the egress of %s: %w", r.ID, err)
	}
	return nil
}

// forgetFlows has the kernel forget connections of an address: the next sandbox
// that has it would be answering them, and answers need no entry in a list.
func (m *Manager) forgetFlows(ctx context.Context, r *record) error {
	if !r.Address.IsValid() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, m.cfg.Deadline)
	defer cancel()
	var sent, answered netlink.ConntrackFilter
	err := errors.Join(
		sent.AddIP(netlink.ConntrackOrigSrcIP, r.Address.AsSlice()),
		answered.AddIP(netlink.ConntrackReplySrcIP, r.Address.AsSlice()))
	for err == nil {
		_, err = m.links.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, &sent, &answered)
		if err == nil {
			return nil
		}
		if errors.Is(err, netlink.ErrDumpInterrupted) {
			err = ctx.Err() // the table changed while it was read
		}
	}
	return fmt.Errorf("network: forget connections of %s: %w", r.ID, err)
}

// removeStrayPorts removes ports of the bridge that no record knows.
func (m *Manager) removeStrayPorts() error {
	bridge, err := m.links.LinkByName(m.cfg.Bridge)
	if isNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("network: look at the bridge: %w", err)
	}
	all, err := m.links.LinkList()
	if err != nil {
		return fmt.Errorf("network: list interfaces: %w", err)
	}
	known := map[int]bool{}
	for _, r := range m.records {
		known[r.Index] = true
	}
	var errs []error
	for _, l := range all {
		if a := l.Attrs(); a.MasterIndex != bridge.Attrs().Index || l.Type() != "veth" || known[a.Index] {
			continue
		}
		if err := m.links.LinkDel(l); err != nil && !isNotFound(err) {
			errs = append(errs, fmt.Errorf("network: remove stray %s: %w", l.Attrs().Name, err))
		}
	}
	return errors.Join(errs...)
}

func isNotFound(err error) bool {
	var e netlink.LinkNotFoundError
	return errors.As(err, &e) || errors.Is(err, unix.ENODEV)
}
