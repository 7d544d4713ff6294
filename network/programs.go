package network

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// find is where a program is. Daemons often run without the sbin directories.
func find(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("network: %w", err)
}

// run is one run of a program, killed at the deadline.
func (m *Manager) run(ctx context.Context, stdin string, program string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, m.cfg.Deadline)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", mark + "=" + m.mark}
	cmd.WaitDelay = time.Second
	cmd.Stdin = strings.NewReader(stdin)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("network: %s: %w: %s", filepath.Base(program), errors.Join(ctx.Err(), err), bytes.TrimSpace(errOut.Bytes()))
	}
	return out.String(), nil
}

func (m *Manager) nft(ctx context.Context, s *script) (string, error) {
	return m.run(ctx, s.String(), m.nftPath, "-f", "-")
}

// checkPolicy reads back what a sandbox is granted.
func (m *Manager) checkPolicy(ctx context.Context, r *record) error {
	ctx, cancel := context.WithTimeout(ctx, m.cfg.Deadline)
	defer cancel()
	s := m.cfg.script()
	s.inspect(m.cfg, r)
	for {
		out, err := m.nft(ctx, s)
		if err != nil && ctx.Err() == nil && strings.Contains(err.Error(), unix.EINTR.Error()) {
			continue // somebody changed tables while they were read
		}
		if err != nil {
			return err
		}
		if err := s.holds(m.cfg, r, out); err != nil {
			return fmt.Errorf("network: policy of %s: %w", r.ID, err)
		}
		return nil
	}
}

func (m *Manager) iptables(ctx context.Context, args ...string) (string, error) {
	return m.run(ctx, "", m.iptablesPath, append([]string{"-w", "5", "-t", "filter"}, args...)...)
}

// acceptPublished has iptables accept what was led to sandboxes by published
// ports. The firewall plugin accepts what sandboxes send and the answers to it,
// which leaves published ports shut on a host that forwards nothing of itself.
// What may pass is decided by the policy in either case.
func (m *Manager) acceptPublished(ctx context.Context) error {
	rules, err := m.iptables(ctx, "-S")
	if err != nil {
		return err
	}
	name := m.cfg.adminChain()
	if !strings.Contains("\n"+rules, "\n-N "+name+"\n") {
		if _, err := m.iptables(ctx, "-N", name); err != nil {
			return err
		}
	}
	rule := []string{name, "-o", m.cfg.Bridge, "-m", "conntrack", "--ctstate", "DNAT", "-j", "ACCEPT"}
	if strings.Contains("\n"+rules, "\n-A "+strings.Join(rule, " ")+"\n") {
		return nil
	}
	_, err = m.iptables(ctx, append([]string{"-A"}, rule...)...)
	return err
}

// forwardChain is where the firewall plugin accepts, in iptables, what is from
// and to a sandbox's address.
const forwardChain = "CNI-FORWARD"

// removeForward removes what the firewall plugin accepts for addresses that
// gone is true of. The plugin itself forgets it where it was killed half way.
func (m *Manager) removeForward(ctx context.Context, gone func(netip.Addr) bool) error {
	rules, err := m.iptables(ctx, "-S")
	if err != nil {
		return err
	}
	for _, rule := range strings.Split(rules, "\n") {
		f := strings.Fields(rule)
		if len(f) < 4 || f[0] != "-A" || f[1] != forwardChain {
			continue
		}
		p, err := netip.ParsePrefix(f[3])
		if err != nil || !p.IsSingleIP() || !m.cfg.Subnet.Contains(p.Addr()) || !gone(p.Addr()) {
			continue
		}
		f[0] = "-D"
		if _, err := m.iptables(ctx, f...); err != nil {
			return err
		}
	}
	return nil
}

// checkUnpublished reads back that no port leads to an address any more, where
// one did: the next sandbox with that address would get what is not for it.
func (m *Manager) checkUnpublished(ctx context.Context, r *record) error {
	if len(r.Want.Ports) == 0 || !r.Address.IsValid() {
		return nil
	}
	rules, err := m.run(ctx, "", m.iptablesPath, "-w", "5", "-t", "nat", "-S")
	if err != nil {
		return err
	}
	for _, rule := range strings.Split(rules, "\n") {
		if strings.Contains(rule, " --to-destination "+r.Address.String()+":") {
			return fmt.Errorf("network: %s still has a published port: %s", r.ID, rule)
		}
	}
	return nil
}

// leased is which address host-local has reserved for whom. It keeps a file per
// address, with the id in its first line.
func (m *Manager) leased() (map[netip.Addr]string, error) {
	dir := filepath.Join(m.cfg.ipamDir(), m.cfg.networkName())
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("network: read reserved addresses: %w", err)
	}
	all := map[netip.Addr]string{}
	for _, e := range entries {
		a, err := netip.ParseAddr(e.Name())
		if err != nil {
			continue // its lock, and where it goes on
		}
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, fmt.Errorf("network: read a reserved address: %w", err)
		}
		id, _, _ := strings.Cut(string(b), "\n")
		all[a] = strings.TrimSpace(id)
	}
	return all, nil
}

// release takes back addresses of ids that gone is true of.
func (m *Manager) release(gone func(id string) bool) error {
	all, err := m.leased()
	if err != nil {
		return err
	}
	for a, id := range all {
		if !gone(id) {
			continue
		}
		path := filepath.Join(m.cfg.ipamDir(), m.cfg.networkName(), a.String())
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("network: release %s: %w", a, err)
		}
	}
	return nil
}
