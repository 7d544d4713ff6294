package network

import (
	"crypto/sha256"
	"fmt"
	"strings"
)

// The policy is two nftables tables of this node. Base chains refuse whatever
// comes from or goes to the bridge; what a sandbox is granted is in chains of
// its own, which maps lead to by its address and its port of the bridge. An
// address without an entry is refused, so a sandbox has no network before its
// entries are there and none once they are gone.
//
// Their priority is before iptables' filter and after destination NAT. A drop
// is final whatever other tables accept; an accept is not.

func (c Config) table() string { return "faasd-sec-" + c.Bridge }

// chain is the name of a sandbox's chains. Ids are longer than nft likes.
func chain(id string) string { return fmt.Sprintf("s%x", sha256.Sum256([]byte(id)))[:25] }

// script is commands for one run of nft, which the kernel takes whole or not.
type script struct {
	strings.Builder
	ip, br string // the tables, with their families
}

func (c Config) script() *script {
	return &script{ip: "inet " + c.table(), br: "bridge " + c.table()}
}

func (s *script) line(format string, a ...any) { fmt.Fprintf(&s.Builder, format+"\n", a...) }

// drop is both tables gone, whether or not they are there.
func (s *script) drop() {
	for _, t := range []string{s.ip, s.br} {
		s.line("add table %s", t)
		s.line("delete table %s", t)
	}
}

// baseChain is a chain that holds for all sandboxes, with its rules as nft
// lists them.
type baseChain struct {
	bridge bool   // of the table of frames
	name   string // what follows hook is the kernel's
	hook   string
	rules  []string
}

func (c Config) baseChains() []baseChain {
	bridge := fmt.Sprintf("%q", c.Bridge)
	from := []string{
		// To other sandboxes, also by a port that they, or it itself, published on this host.
		"oifname " + bridge + " drop",
	}
	for _, p := range append(strs(never), strs(c.Never)...) {
		from = append(from, "ip daddr "+p+" drop")
	}
	from = append(from,
		"ct state established,related ct direction reply accept",
		"ip saddr vmap @egress",
		"drop")
	return []baseChain{
		// To this host: answers to what the host asked, nothing else. It is the
		// host that is asked here whichever of its addresses is used, 127.0.0.1
		// included, which portmap makes the bridge route.
		{name: "input", hook: "filter hook input priority -10", rules: []string{
			"iifname " + bridge + " ct state established,related ct direction reply accept",
			"iifname " + bridge + " drop",
		}},
		{name: "from", rules: from},
		// From outside: answers, and published ports by way of the host's port,
		// not of the sandbox's own address.
		{name: "to", rules: []string{
			"ct state established,related ct direction reply accept",
			"ct state related meta l4proto icmp accept",
			"ct status dnat ip daddr . meta l4proto . th dport @published accept",
			"drop",
		}},
		{name: "forward", hook: "filter hook forward priority -10", rules: []string{
			"iifname " + bridge + " jump from",
			"oifname " + bridge + " jump to",
		}},
		{name: "nat", hook: "nat hook postrouting priority 100", rules: []string{
			"ip saddr " + c.Subnet.String() + " oifname != " + bridge + " masquerade",
		}},
		{bridge: true, name: "prerouting", hook: "filter hook prerouting priority -300", rules: []string{
			"iifname vmap @ports",
		}},
	}
}

// base makes what holds for all sandboxes what it has to be. Entries that are
// there stay.
func (s *script) base(c Config) {
	s.line("add table %s", s.ip)
	s.line("add table %s", s.br)
	s.line("add map %s egress { type ipv4_addr : verdict; }", s.ip)
	s.line("add set %s published { type ipv4_addr . inet_proto . inet_service; }", s.ip)
	s.line("add map %s ports { type ifname : verdict; }", s.br)
	for _, b := range c.baseChains() {
		t := s.of(b.bridge)
		if b.hook == "" {
			s.line("add chain %s %s", t, b.name)
		} else {
			s.line("add chain %s %s { type %s; policy accept; }", t, b.name, b.hook)
		}
		s.line("flush chain %s %s", t, b.name)
		for _, rule := range b.rules {
			s.line("add rule %s %s %s", t, b.name, rule)
		}
	}
}

func (s *script) of(bridge bool) string {
	if bridge {
		return s.br
	}
	return s.ip
}

// strs is the networks as nft writes them, without the length of a single address.
func strs[T fmt.Stringer](all []T) []string {
	out := make([]string, len(all))
	for i, p := range all {
		out[i] = strings.TrimSuffix(p.String(), "/32")
	}
	return out
}

// egressRules is what a sandbox may open, as nft lists it.
func egressRules(w Want) []string {
	rules := make([]string, 0, len(w.Allow)+1)
	for i, net := range strs(nets(w.Allow)) {
		a := w.Allow[i]
		ports := fmt.Sprint(a.From)
		if a.To != a.From {
			ports = fmt.Sprintf("%d-%d", a.From, a.To)
		}
		rules = append(rules, fmt.Sprintf("ip daddr %s %s dport %s accept", net, a.Protocol, ports))
	}
	return append(rules, "drop")
}

func nets(all []Allow) []fmt.Stringer {
	out := make([]fmt.Stringer, len(all))
	for i, a := range all {
		out[i] = a.Net
	}
	return out
}

// portRules is what a sandbox's frames have to be, as nft lists them: from its
// own addresses, IPv4 or ARP, so that it cannot take another's allow-list or
// have the host believe that another's address is its own.
func portRules(r *record) []string {
	return []string{
		"ether saddr != " + r.MAC + " drop",
		"ip saddr " + r.Address.String() + " accept",
		"arp saddr ether " + r.MAC + " arp saddr ip " + r.Address.String() + " accept",
		"drop",
	}
}

// entries are the elements of maps and sets that lead to a sandbox's grants.
type entry struct{ where, element string }

func (s *script) entries(r *record) []entry {
	e := []entry{
		{s.br + " ports", fmt.Sprintf("%q : jump %s", r.Link, chain(r.ID))},
		{s.ip + " egress", fmt.Sprintf("%s : jump %s", r.Address, chain(r.ID))},
	}
	for _, p := range r.Want.Ports {
		e = append(e, entry{s.ip + " published", fmt.Sprintf("%s . %s . %d", r.Address, p.Protocol, p.Sandbox)})
	}
	return e
}

// grant makes a sandbox's chains and leads to them.
func (s *script) grant(r *record) {
	name := chain(r.ID)
	s.line("add chain %s %s", s.br, name)
	for _, rule := range portRules(r) {
		s.line("add rule %s %s %s", s.br, name, rule)
	}
	s.line("add chain %s %s", s.ip, name)
	for _, rule := range egressRules(r.Want) {
		s.line("add rule %s %s %s", s.ip, name, rule)
	}
	for _, e := range s.entries(r) {
		s.line("create element %s { %s }", e.where, e.element)
	}
}

// revoke removes a sandbox's chains and what leads to them, whether or not they
// are there: nft of Debian 12 can only delete what is.
func (s *script) revoke(r *record) {
	name := chain(r.ID)
	for _, t := range []string{s.br, s.ip} {
		s.line("add chain %s %s", t, name)
	}
	for _, e := range s.entries(r) {
		s.line("add element %s { %s }", e.where, e.element)
		s.line("delete element %s { %s }", e.where, e.element)
	}
	for _, t := range []string{s.br, s.ip} {
		s.line("flush chain %s %s", t, name)
		s.line("delete chain %s %s", t, name)
	}
}

// inspect lists what base and grant made.
func (s *script) inspect(c Config, r *record) {
	for _, b := range c.baseChains() {
		s.line("list chain %s %s", s.of(b.bridge), b.name)
	}
	s.line("list chain %s %s", s.br, chain(r.ID))
	s.line("list chain %s %s", s.ip, chain(r.ID))
	for _, e := range s.entries(r) {
		key, _, _ := strings.Cut(e.element, " : ")
		s.line("get element %s { %s }", e.where, key)
	}
}

// holds reports what is missing from or different in a listing by inspect.
func (s *script) holds(c Config, r *record, listing string) error {
	want := append(c.baseChains(),
		baseChain{bridge: true, name: chain(r.ID), rules: portRules(r)},
		baseChain{name: chain(r.ID), rules: egressRules(r.Want)})
	got := chains(listing)
	for _, b := range want {
		where := s.of(b.bridge) + " " + b.name
		if g, w := strings.Join(got[where], "\n"), strings.Join(b.rules, "\n"); g != w {
			return fmt.Errorf("the kernel's rules in %s are\n%s\nand not\n%s", where, g, w)
		}
	}
	for _, e := range s.entries(r) {
		if !strings.Contains(listing, "elements = { "+e.element+" }") {
			return fmt.Errorf("%s has no %s", e.where, e.element)
		}
	}
	return nil
}

// chains reads the rules of a listing, by table and chain.
func chains(listing string) map[string][]string {
	got := map[string][]string{}
	table, in := "", ""
	for _, l := range strings.Split(listing, "\n") {
		l = strings.TrimSpace(l)
		name, open := strings.CutSuffix(l, " {")
		switch {
		case open && strings.HasPrefix(name, "table "):
			table = strings.TrimPrefix(name, "table ")
		case open && strings.HasPrefix(name, "chain "):
			in = table + " " + strings.TrimPrefix(name, "chain ")
		case l == "}":
			in = ""
		case in != "" && l != "" && !strings.HasPrefix(l, "type "):
			got[in] = append(got[in], l)
		}
	}
	return got
}
