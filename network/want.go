package network

import (
	"fmt"

	"github.com/faasd-sec/faasd-sec/api"
)

// Bounds of a rate, in bits per second. Below the lower one a single frame
// takes a fifth of a second; the upper one is what tbf's 32-bit limits hold.
const (
	MinRate = 64_000
	MaxRate = 10_000_000_000
)

// Want is what one sandbox is granted.
type Want struct {
	Ingress int64   `json:"ingress"` // bits per second into the sandbox
	Egress  int64   `json:"egress"`  // bits per second out of it
	Ports   []Port  `json:"ports,omitempty"`
	Allow   []Allow `json:"allow,omitempty"` // what it may open; none means nothing
}

// Port is a port of the host that is published to one of the sandbox.
type Port struct {
	Protocol string `json:"protocol"` // api.ProtocolTCP or api.ProtocolUDP
	Host     uint16 `json:"host"`     // taken by the node's allocator
	Sandbox  uint16 `json:"sandbox"`  // what the function listens on
}

// Allow is what a sandbox may open.
type Allow = api.Reach

// Asked reports whether a task asks for the network at all.
func Asked(n api.Needs) bool {
	return n.Resources.Ingress != 0 || n.Resources.Egress != 0 || n.Resources.Ports != 0 || len(n.Ports) != 0
}

// WantOf is what a task's needs come to, with the ports the node chose for it
// and the list its policy has.
func WantOf(n api.Needs, ports []Port, allow []Allow) Want {
	return Want{Ingress: n.Resources.Ingress, Egress: n.Resources.Egress, Ports: ports, Allow: allow}
}

func (w Want) check() error {
	const remedy = "ask for both directions, between 64 kbit/s and 10 Gbit/s"
	for _, r := range []struct {
		field string
		rate  int64
	}{{"ingress", w.Ingress}, {"egress", w.Egress}} {
		if r.rate < MinRate || r.rate > MaxRate {
			// Either direction alone carries no conversation: the answers need the other.
			return api.Invalid(r.field, remedy, fmt.Sprintf("a network of %d bit/s is not given", r.rate))
		}
	}
	type key struct {
		protocol string
		port     uint16
	}
	host, inside := map[key]bool{}, map[key]bool{}
	for _, p := range w.Ports {
		h, s := key{p.Protocol, p.Host}, key{p.Protocol, p.Sandbox}
		switch {
		case p.Protocol != api.ProtocolTCP && p.Protocol != api.ProtocolUDP:
			return api.Invalid("ports", "ask for tcp or udp", fmt.Sprintf("protocol %q", p.Protocol))
		case p.Host == 0 || p.Sandbox == 0:
			return api.Invalid("ports", "choose ports before attaching", "port 0")
		case host[h] || inside[s]:
			return api.Invalid("ports", "publish each port once", fmt.Sprintf("port %d or %d twice", p.Host, p.Sandbox))
		}
		host[h], inside[s] = true, true
	}
	for _, a := range w.Allow {
		if err := a.Check(); err != nil {
			return api.Invalid("allow", "list IPv4 networks with tcp or udp and ports", "a rule "+err.Error())
		}
	}
	return nil
}

// burst is how many bits may pass at once after a rest: 10 ms of the rate, or
// ten full frames where that is more, so that a rate holds within a second or
// two whatever it is.
func burst(rate int64) int64 { return max(rate/100, 10*1514*8) }
