package api

import (
	"encoding/json"
	"errors"
	"reflect"
	"testing"

	"pgregory.net/rapid"
)

var own = Resources{CPU: 400, Memory: 64 << 20, PIDs: 32, Tmp: 8 << 20, WriteBps: 1000}

func genNeeds(t *rapid.T) Needs {
	amount := rapid.SampledFrom([]int64{0, 0, 1, 1 << 20})
	n := Needs{Apart: rapid.Bool().Draw(t, "apart"), Priority: rapid.IntRange(0, 9).Draw(t, "priority"), Deadline: rapid.Int64Min(0).Draw(t, "deadline")}
	r := &n.Resources
	for _, v := range []*int64{&r.CPU, &r.Memory, &r.PIDs, &r.Tmp, &r.ReadBps, &r.WriteBps, &r.Storage, &r.Scratch, &r.Ingress, &r.Egress} {
		*v = amount.Draw(t, "amount")
	}
	for range rapid.IntRange(0, 4).Draw(t, "ports") {
		p := PortNeed{Protocol: rapid.SampledFrom([]string{"tcp", "udp"}).Draw(t, "protocol"), Count: 1}
		if rapid.Bool().Draw(t, "any") {
			p.Count = rapid.IntRange(1, 3).Draw(t, "count")
		} else {
			p.Number = rapid.IntRange(1, 65535).Draw(t, "number")
		}
		n.Ports = append(n.Ports, p)
	}
	n.Allow = rapid.SliceOfN(rapid.SampledFrom([]string{"10.0.0.0/8:443/tcp", "0.0.0.0/0:1-65535/udp", "192.0.2.7/32:53/udp"}), 0, 4).Draw(t, "allow")
	if len(n.Allow) == 0 {
		n.Allow = nil
	}
	return n
}

func TestSettledNeedsHaveOneForm(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := genNeeds(t)
		once, err := n.Settle(own)
		if err != nil {
			var e *Error
			if !errors.As(err, &e) || e.Code != CodeInvalid || e.Field == "" {
				t.Fatalf("refused with %v", err)
			}
			return
		}
		r := once.Resources
		if r.CPU <= 0 || r.Memory <= 0 || r.PIDs <= 0 || r.Tmp > r.Memory || r.Storage != r.Tmp || r.WriteBps == 0 {
			t.Fatalf("settled to %+v", r)
		}
		var count int64
		for _, p := range once.Ports {
			count += int64(p.Count)
		}
		if count != r.Ports {
			t.Fatalf("%d ports listed, %d counted", count, r.Ports)
		}
		twice, err := once.Settle(own)
		if err != nil || !reflect.DeepEqual(once, twice) {
			t.Fatalf("settled again: %+v, %v", twice, err)
		}
		// In whatever order ports were listed, and over the wire.
		other := n
		other.Ports = append([]PortNeed(nil), n.Ports...)
		for i, j := 0, len(other.Ports)-1; i < j; i, j = i+1, j-1 {
			other.Ports[i], other.Ports[j] = other.Ports[j], other.Ports[i]
		}
		other.Task, other.Priority, other.Deadline = "00112233445566778899aabbccddeeff", 1, 7
		b, err := json.Marshal(other)
		if err != nil {
			t.Fatal(err)
		}
		if other, err = ParseNeeds(b); err != nil {
			t.Fatal(err)
		}
		if other, err = other.Settle(own); err != nil || NeedsKey("r", other) != NeedsKey("r", once) {
			t.Fatalf("like needs have unlike keys: %+v, %+v, %v", other, once, err)
		}
		if NeedsKey("r", once) == NeedsKey("q", once) {
			t.Fatal("one key for two revisions")
		}
		more := once
		more.Resources.CPU++
		if NeedsKey("r", once) == NeedsKey("r", more) || len(NeedsKey("r", once)) != 16 {
			t.Fatal("one key for unlike needs")
		}
	})
}

func TestWhatMayBeOpenedIsReadStrictly(t *testing.T) {
	for _, s := range []string{"10.0.0.0/8:443/tcp", "0.0.0.0/0:1-65535/udp", "255.255.255.255/32:60000-65535/udp"} {
		r, err := ParseReach("allow", s)
		if err != nil || r.String() != s || !r.Within(r) || len(s) > 40 {
			t.Errorf("%q is %v, %v", s, r, err)
		}
	}
	for _, s := range []string{"", "10.0.0.0/8:443", "10.0.0.0/8:0/tcp", "10.0.0.1/8:1/tcp", "10.0.0.0/8:2-1/tcp", "10.0.0.0/8:1/icmp", "::/0:1/tcp", "10.0.0.0/8:70000/tcp", "x/8:1/tcp"} {
		if r, err := ParseReach("allow", s); CodeOf(err) != CodeInvalid {
			t.Errorf("%q is %v, %v", s, r, err)
		}
	}
	for _, c := range []struct {
		in, out string
		want    bool
	}{
		{"10.1.0.0/16:443/tcp", "10.0.0.0/8:1-1000/tcp", true}, {"10.0.0.0/8:443/tcp", "10.1.0.0/16:443/tcp", false},
		{"10.1.0.0/16:443/udp", "10.0.0.0/8:443/tcp", false}, {"10.1.0.0/16:443-444/tcp", "10.0.0.0/8:443/tcp", false},
		{"11.0.0.0/8:443/tcp", "10.0.0.0/8:443/tcp", false}, {"1.2.3.4/32:5/udp", "0.0.0.0/0:1-65535/udp", true},
	} {
		in, err := ParseReach("in", c.in)
		out, err2 := ParseReach("out", c.out)
		if err != nil || err2 != nil || in.Within(out) != c.want {
			t.Errorf("%s within %s: not %t", c.in, c.out, c.want)
		}
	}
	for _, list := range [][]string{{"10.0.0.0/8:443-443/tcp"}, {" 10.0.0.0/8:443/tcp"}, make([]string, MaxReach+1)} {
		if _, err := (Needs{Resources: Resources{Ingress: 1, Egress: 1}, Allow: list}).Settle(own); CodeOf(err) != CodeInvalid {
			t.Errorf("%q: %v", list, err)
		}
	}
}

func TestPlainNeedsAreServedByTheFunctionsOwnSandboxes(t *testing.T) {
	for _, function := range []Resources{own, {CPU: 1, Memory: 1 << 20, PIDs: 1}, {CPU: 1, Memory: 64 << 20, PIDs: 1, Tmp: 60 << 20}} {
		n, err := Needs{Priority: 3, Deadline: 5}.Settle(function)
		if err != nil || !n.Plain(function) || WarmKey("0123456789abcdef01", n, function) != "0123456789abcdef" {
			t.Errorf("%+v: %+v, %v", function, n, err)
		}
		for _, other := range []Needs{{Apart: true}, {Ports: []PortNeed{{"tcp", 0, 1}}}, {Resources: Resources{CPU: 2}}, {Resources: Resources{Egress: 1}}} {
			if n, err = other.Settle(function); err != nil || n.Plain(function) || WarmKey("r", n, function) != NeedsKey("r", n) {
				t.Errorf("%+v of %+v is plain, %v", other, function, err)
			}
		}
	}
}

func TestNeedsAreReadStrictly(t *testing.T) {
	for _, bad := range []string{"", "{", "[]", `{"gpu":1}`, `{"resources":{"gpus":1}}`, `{} {}`, `{"ports":[{"protocol":"tcp","count":1,"x":1}]}`} {
		if n, err := ParseNeeds([]byte(bad)); CodeOf(err) != CodeInvalid {
			t.Errorf("%q was read as %+v, %v", bad, n, err)
		}
	}
	for what, bad := range map[string]Needs{
		"task":              {Task: "AB"},
		"task of half size": {Task: "0011223344556677"},
		"priority":          {Priority: 10},
		"deadline":          {Deadline: -1},
		"negative":          {Resources: Resources{Scratch: -1}},
		"huge":              {Resources: Resources{Memory: 1 << 62}},
		"twice":             {Ports: []PortNeed{{"tcp", 80, 1}, {"tcp", 80, 1}}},
		"two of a number":   {Ports: []PortNeed{{"tcp", 80, 2}}},
		"none":              {Ports: []PortNeed{{"tcp", 0, 0}}},
		"too many":          {Ports: []PortNeed{{"tcp", 0, 40}, {"udp", 0, 40}}},
		"beyond all ports":  {Ports: []PortNeed{{"tcp", 65536, 1}}},
	} {
		if n, err := bad.Settle(own); CodeOf(err) != CodeInvalid {
			t.Errorf("%s: %+v, %v", what, n, err)
		}
	}
	if _, err := (Needs{}).Settle(Resources{}); CodeOf(err) != CodeInvalid {
		t.Errorf("nothing at all: %v", err)
	}
}
