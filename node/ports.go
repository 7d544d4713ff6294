package node

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/faasd-sec/faasd-sec/api"
)

// Port is one port of the host, of one protocol: the same number of the other is
// another port.
type Port struct {
	Protocol string // api.ProtocolTCP or api.ProtocolUDP
	Number   int
}

func (p Port) String() string { return strconv.Itoa(p.Number) + "/" + p.Protocol }

// MarshalText writes it as String does.
func (p Port) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText reads it.
func (p *Port) UnmarshalText(b []byte) error {
	number, protocol, _ := strings.Cut(string(b), "/")
	n, err := strconv.Atoi(number)
	if err != nil || n < 1 || n > 65535 || protocol != api.ProtocolTCP && protocol != api.ProtocolUDP {
		return fmt.Errorf("%q is not a port", b)
	}
	*p = Port{Protocol: protocol, Number: n}
	return nil
}

// PortRange are the ports that a node lends, of both protocols. The zero value
// has none.
type PortRange struct {
	Low, High int // both in it
}

// ParsePortRange reads "30000-30999", and "" as none.
func ParsePortRange(s string) (PortRange, error) {
	if s == "" {
		return PortRange{}, nil
	}
	low, high, ok := strings.Cut(s, "-")
	a, aerr := strconv.Atoi(low)
	b, berr := strconv.Atoi(high)
	if !ok || aerr != nil || berr != nil || a < 1024 || b > 65535 || a > b {
		return PortRange{}, api.Invalid("port-range", "write two numbers of 1024 to 65535, as in 30000-30999", fmt.Sprintf("%q is no range of ports", s))
	}
	return PortRange{Low: a, High: b}, nil
}

// Len is how many ports of one protocol are in r.
func (r PortRange) Len() int {
	if r.Low <= 0 || r.High < r.Low {
		return 0
	}
	return r.High - r.Low + 1
}

func (r PortRange) has(number int) bool { return r.Len() > 0 && number >= r.Low && number <= r.High }

// shyFor is how long a port is not offered after another program of the host was
// found on it.
const shyFor = 30 * time.Second

// portTable says which ports of the range who has. The node's mutex guards it,
// so that finding ports and taking them is one step with the ledger's.
type portTable struct {
	lent PortRange
	held map[Port]*sandbox
	next map[string]int // protocol -> where the search for a free one begins
	shy  map[Port]time.Time
}

func newPortTable(lent PortRange) portTable {
	return portTable{lent: lent, held: map[Port]*sandbox{}, next: map[string]int{}, shy: map[Port]time.Time{}}
}

// find recommends ports that meet needs, and takes none. It goes round the range,
// so that a port that was given back rests as long as can be: what was sent to
// its former holder does not reach the next.
func (t *portTable) find(needs []api.PortNeed, now time.Time) (ports []Port, lacking string) {
	return t.findWithout(needs, now, nil)
}

// findWithout is find as if the sandboxes gone had given theirs back.
func (t *portTable) findWithout(needs []api.PortNeed, now time.Time, gone map[*sandbox]bool) (ports []Port, lacking string) {
	taken := func(p Port) bool {
		s := t.held[p]
		return s != nil && !gone[s] || now.Before(t.shy[p])
	}
	for _, need := range needs {
		if need.Number > 0 {
			p := Port{need.Protocol, need.Number}
			if !t.lent.has(p.Number) {
				return nil, "port " + p.String() + ", which is not of this node's range"
			}
			if taken(p) {
				return nil, "port " + p.String()
			}
			ports = append(ports, p)
		}
	}
	for _, need := range needs {
		if need.Number > 0 {
			continue
		}
		left, at := need.Count, t.next[need.Protocol]
		if !t.lent.has(at) {
			at = t.lent.Low
		}
		for range t.lent.Len() {
			if left == 0 {
				break
			}
			p := Port{need.Protocol, at}
			if !taken(p) && !slices.Contains(ports, p) {
				ports = append(ports, p)
				left--
			}
			if at++; at > t.lent.High {
				at = t.lent.Low
			}
		}
		if left > 0 {
			return nil, need.Protocol + " ports"
		}
	}
	return ports, ""
}

// take gives ports that find has just named to s.
func (t *portTable) take(s *sandbox, ports []Port) {
	for _, p := range ports {
		t.held[p] = s
		t.next[p.Protocol] = p.Number + 1
	}
	s.ports = append(s.ports, ports...)
}

// adopt gives s the ports that it had in an earlier life of the daemon, even
// outside today's range. It reports whether nobody else has any of them.
func (t *portTable) adopt(s *sandbox, ports []Port) bool {
	for i, p := range ports {
		if t.held[p] != nil || slices.Contains(ports[:i], p) {
			return false
		}
	}
	t.take(s, ports)
	return true
}

// release takes all ports from s.
func (t *portTable) release(s *sandbox) {
	for _, p := range s.ports {
		if t.held[p] == s {
			delete(t.held, p)
		}
	}
	s.ports = nil
}

// holders are the sandboxes that have ports which needs name by number.
func (t *portTable) holders(needs []api.PortNeed) (all []*sandbox) {
	for _, need := range needs {
		if s := t.held[Port{need.Protocol, need.Number}]; need.Number > 0 && s != nil && !slices.Contains(all, s) {
			all = append(all, s)
		}
	}
	return all
}

// exchange puts a port in the place of p, which turned out to be another
// program's. ok is false where there is none, or where it had to be p.
func (t *portTable) exchange(s *sandbox, p Port, needs []api.PortNeed, now time.Time) (ok bool) {
	for q, until := range t.shy {
		if !now.Before(until) {
			delete(t.shy, q)
		}
	}
	t.shy[p] = now.Add(shyFor)
	if slices.ContainsFunc(needs, func(n api.PortNeed) bool { return n.Protocol == p.Protocol && n.Number == p.Number }) {
		return false
	}
	got, lacking := t.find([]api.PortNeed{{Protocol: p.Protocol, Count: 1}}, now)
	if lacking != "" {
		return false
	}
	s.ports = slices.DeleteFunc(s.ports, func(q Port) bool { return q == p })
	delete(t.held, p)
	t.take(s, got)
	return true
}

// clearPorts makes sure that the ports of s are nobody else's on this host, and
// finds others for those that are, where any will do. They stay bound here for as
// long as s has them: what comes in by them is sent on to the sandbox before it
// could reach a socket of the host, and a socket keeps every other program off.
func (n *Node) clearPorts(s *sandbox) error {
	needs := s.rev.needs()
	for {
		n.mu.Lock()
		ports := slices.Clone(s.ports)
		n.mu.Unlock()
		taken, err := n.bound.bind(ports)
		if err == nil {
			return nil
		}
		n.mu.Lock()
		ok := n.ports.exchange(s, taken, needs.Ports, time.Now())
		n.mu.Unlock()
		if !ok {
			return api.Wrap(api.CodeNoRoom, err, "port "+taken.String()+" is another program's on this node")
		}
		n.log.Info("a port of the range is another program's", "port", taken.String(), "err", err)
	}
}

// boundPorts are sockets of this process on the ports that sandboxes have. They
// neither listen nor share: another program can bind none of these.
type boundPorts struct {
	mu  sync.Mutex
	fds map[Port]int
}

// bind binds those of ports that are not bound yet. It names the first that is
// another program's.
func (h *boundPorts) bind(ports []Port) (taken Port, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, p := range ports {
		if _, ok := h.fds[p]; ok {
			continue
		}
		fd, err := bindPort(p)
		if err != nil {
			return p, err
		}
		if h.fds == nil {
			h.fds = map[Port]int{}
		}
		h.fds[p] = fd
	}
	return Port{}, nil
}

// drop lets other programs bind ports.
func (h *boundPorts) drop(ports []Port) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, p := range ports {
		if fd, ok := h.fds[p]; ok {
			_ = unix.Close(fd) // there is nothing to write
			delete(h.fds, p)
		}
	}
}

// close drops all.
func (h *boundPorts) close() {
	h.mu.Lock()
	all := slices.Collect(maps.Keys(h.fds))
	h.mu.Unlock()
	h.drop(all)
}

// bindPort binds p on all addresses, for nobody to connect to.
func bindPort(p Port) (int, error) {
	kind := unix.SOCK_STREAM
	if p.Protocol == api.ProtocolUDP {
		kind = unix.SOCK_DGRAM
	}
	var addr unix.Sockaddr = &unix.SockaddrInet6{Port: p.Number}
	fd, err := unix.Socket(unix.AF_INET6, kind|unix.SOCK_CLOEXEC, 0)
	if errors.Is(err, unix.EAFNOSUPPORT) { // a host without IPv6
		addr = &unix.SockaddrInet4{Port: p.Number}
		fd, err = unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, 0)
	} else if err == nil {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0)
	}
	if err == nil && p.Protocol == api.ProtocolUDP { // what comes is nobody's
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 0)
	}
	if err == nil {
		err = unix.Bind(fd, addr)
	}
	if err != nil {
		if fd >= 0 {
			unix.Close(fd)
		}
		return -1, fmt.Errorf("bind port %s: %w", p, err)
	}
	return fd, nil
}
