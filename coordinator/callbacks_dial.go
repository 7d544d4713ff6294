package coordinator

import (
	"errors"
	"net"
	"net/http"
	"net/netip"
	"syscall"
	"time"
)

// errForbiddenAddress is of an address that callers must not have us call.
var errForbiddenAddress = errors.New("a callback to this address is not allowed")

// callbackClient posts callbacks: without a proxy, without following redirects,
// and to no address that only this machine or the cluster should reach.
func (c *Coordinator) callbackClient() *http.Client {
	d := &net.Dialer{Timeout: 5 * time.Second, Control: func(_, address string, _ syscall.RawConn) error {
		// The address that is really dialled, after the name was resolved.
		a, err := netip.ParseAddrPort(address)
		if err != nil {
			return errForbiddenAddress
		}
		if c.mayCall(a.Addr()) {
			return nil
		}
		return errForbiddenAddress
	}}
	return &http.Client{
		Transport: &http.Transport{DialContext: d.DialContext, TLSHandshakeTimeout: 5 * time.Second, MaxIdleConnsPerHost: 8,
			MaxIdleConns: 128, IdleConnTimeout: 30 * time.Second, ResponseHeaderTimeout: callbackTime, DisableCompression: true,
			MaxResponseHeaderBytes: 64 << 10},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// translated are networks in which an IPv4 address stands at the end (RFC 6052),
// and those of tunnels that would lead past the check.
var translated = netip.MustParsePrefix("64:ff9b::/96")

// mayCall reports whether callbacks may go to an address: what the operator
// allowed, and else what is no address of this machine, of its link or of a member
// of the cluster.
func (c *Coordinator) mayCall(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	if translated.Contains(a) {
		b := a.As16()
		a = netip.AddrFrom4([4]byte(b[12:]))
	}
	for _, p := range c.async.Allow {
		if p.Contains(a) {
			return true
		}
	}
	if a.IsLoopback() || a.IsLinkLocalUnicast() || a.IsMulticast() || a.IsUnspecified() || !a.IsValid() ||
		a.Is4() && (a.As4()[0] == 0 || a.As4() == [4]byte{255, 255, 255, 255}) {
		return false
	}
	for _, n := range c.dep.Mesh.Snapshot().Nodes {
		if host, _, err := net.SplitHostPort(n.Meta.Addr); err == nil {
			if m, err := netip.ParseAddr(host); err == nil && m.Unmap() == a {
				return false
			}
		}
	}
	return !ownAddress(a)
}

// ownAddress reports whether an address is one of this machine's interfaces. Where
// that cannot be found out it counts as one.
func ownAddress(a netip.Addr) bool {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return true
	}
	for _, x := range all {
		if n, ok := x.(*net.IPNet); ok {
			if own, ok := netip.AddrFromSlice(n.IP); ok && own.Unmap() == a {
				return true
			}
		}
	}
	return false
}
