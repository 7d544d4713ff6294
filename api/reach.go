package api

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// MaxReach bounds the list of what one task may open.
const MaxReach = 16

// Reach is what a task may open: a protocol and ports of an IPv4 network.
type Reach struct {
	Net      netip.Prefix `json:"net"`
	Protocol string       `json:"protocol"` // ProtocolTCP or ProtocolUDP
	From     uint16       `json:"from"`
	To       uint16       `json:"to"` // included
}

// ParseReach reads "10.0.0.0/8:443/tcp" or, with a range, "10.0.0.0/8:8000-8099/udp".
// Errors name field.
func ParseReach(field, s string) (Reach, error) {
	r, err := parseReach(s)
	if err != nil {
		return Reach{}, Invalid(field, `write network, port or ports and protocol, as in "10.0.0.0/8:443/tcp"`, fmt.Sprintf("%q %v", s, err))
	}
	return r, nil
}

// parseReach quotes nothing of s in its error.
func parseReach(s string) (Reach, error) {
	network, rest, ok := strings.Cut(s, ":")
	ports, protocol, ok2 := strings.Cut(rest, "/")
	if !ok || !ok2 {
		return Reach{}, errors.New("is not an egress rule")
	}
	p, err := netip.ParsePrefix(network)
	if err != nil {
		return Reach{}, errors.New("has no network")
	}
	from, to, is := strings.Cut(ports, "-")
	if !is {
		to = from
	}
	f, ferr := strconv.ParseUint(from, 10, 16)
	t, terr := strconv.ParseUint(to, 10, 16)
	if ferr != nil || terr != nil {
		return Reach{}, errors.New("has no port")
	}
	r := Reach{Net: p, Protocol: protocol, From: uint16(f), To: uint16(t)}
	return r, r.Check()
}

// Check reports what is wrong with r.
func (r Reach) Check() error {
	switch {
	case !r.Net.Addr().Is4() || r.Net != r.Net.Masked():
		return errors.New("is for what is no IPv4 network")
	case r.Protocol != ProtocolTCP && r.Protocol != ProtocolUDP:
		return errors.New("is for another protocol than tcp and udp")
	case r.From == 0 || r.To < r.From:
		return errors.New("is for ports that are none")
	}
	return nil
}

// Within reports whether o allows all that r does.
func (r Reach) Within(o Reach) bool {
	return r.Protocol == o.Protocol && o.Net.Bits() <= r.Net.Bits() && o.Net.Contains(r.Net.Addr()) && o.From <= r.From && r.To <= o.To
}

// AppendTo appends r as ParseReach reads it, at most 40 bytes.
func (r Reach) AppendTo(b []byte) []byte {
	b = append(r.Net.AppendTo(b), ':')
	b = strconv.AppendUint(b, uint64(r.From), 10)
	if r.To != r.From {
		b = strconv.AppendUint(append(b, '-'), uint64(r.To), 10)
	}
	return append(append(b, '/'), r.Protocol...)
}

func (r Reach) String() string { return string(r.AppendTo(nil)) }
