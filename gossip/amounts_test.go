package gossip

import (
	"reflect"
	"strings"
	"testing"

	"github.com/faasd-sec/faasd-sec/api"
)

// formerLoad is wireLoad as releases had it whose nodes lent cpu, memory and pids
// alone.
type formerLoad struct {
	_        struct{} `cbor:",toarray"`
	Version  uint8
	Node     string
	Epoch    uint64
	Seq      uint64
	Free     [6]int64
	Warm     []byte
	Images   []byte
	Running  uint32
	Pooled   uint32
	InFlight uint32
	Draining bool
}

func TestLoadsAreUnderstoodAcrossReleases(t *testing.T) {
	c := testCodec(t)
	old, err := c.enc.Marshal(formerLoad{Version: wireVersion, Node: "n", Epoch: 1, Seq: 2, Free: [6]int64{1, 2, 3, 4, 5, 6}, Warm: []byte{}, Images: []byte{}})
	if err != nil {
		t.Fatal(err)
	}
	l, err := c.decodeLoad(old)
	if want := (api.Resources{CPU: 1, Memory: 2, PIDs: 3, Tmp: 4, ReadBps: 5, WriteBps: 6}); err != nil || l.Free != want {
		t.Errorf("an old one: %+v, %v", l, err)
	}
	l.Free.Scratch, l.Free.Ingress, l.Free.Egress, l.Free.Ports, l.Free.Cores = 7, 8, 9, 10, 11
	l.Hosts, l.Images = []string{strings.Repeat("a", 15)}, []string{"0123456789abcdef"}
	now, trimmed, err := c.encodeLoad(l)
	if err != nil || trimmed {
		t.Fatal(err)
	}
	if got, err := c.decodeLoad(now); err != nil || !reflect.DeepEqual(got, l) {
		t.Errorf("%+v, %v", got, err)
	}
	var former formerLoad // as their codec reads it
	if err := c.dec.Unmarshal(now, &former); err != nil || former.Free != [6]int64{1, 2, 3, 4, 5, 6} {
		t.Errorf("by an old release: %+v, %v", former, err)
	}
	for rest := former.Images; len(rest) > 0; {
		if _, rest, err = cutKey(rest); err != nil {
			t.Fatalf("images by an old release: %v", err)
		}
	}
	// What a node lends none of costs nothing.
	l.Free.Scratch, l.Free.Ingress, l.Free.Egress, l.Free.Ports, l.Free.Cores, l.Hosts, l.Images = 0, 0, 0, 0, 0, nil, nil
	if same, _, err := c.encodeLoad(l); err != nil || string(same) != string(old) {
		t.Errorf("%d bytes, %d before: %v", len(same), len(old), err)
	}
}

func TestAmountsHaveOneForm(t *testing.T) {
	c := testCodec(t)
	for what, free := range map[string][]int64{
		"too few": {1, 2, 3, 4, 5}, "too many": {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12},
		"a zero at the end": {1, 2, 3, 4, 5, 6, 7, 0}, "negative": {1, 2, 3, 4, 5, 6, 0, 0, 0, -1},
	} {
		b, err := c.enc.Marshal(wireLoad{Version: wireVersion, Node: "n", Free: free, Warm: []byte{}, Images: []byte{}})
		if err != nil {
			t.Fatal(err)
		}
		if l, err := c.decodeLoad(b); err == nil {
			t.Errorf("%s: %+v", what, l)
		}
		m, err := c.enc.Marshal(wireMeta{Version: wireVersion, Roles: []string{"node"}, Labels: map[string]string{}, Capacity: free})
		if err != nil {
			t.Fatal(err)
		}
		if meta, _, err := c.decodeMeta("n", m); err == nil {
			t.Errorf("%s: %+v", what, meta)
		}
	}
	images := appendKey(appendKey(nil, "abc"), "+late")
	b, err := c.enc.Marshal(wireLoad{Version: wireVersion, Node: "n", Free: make([]int64, 6), Warm: []byte{}, Images: images})
	if err != nil {
		t.Fatal(err)
	}
	if l, err := c.decodeLoad(b); err == nil {
		t.Errorf("a host among images: %+v", l)
	}
	if _, err := normalize(api.NodeLoad{Hosts: []string{strings.Repeat("a", 16)}}); api.CodeOf(err) != api.CodeInvalid {
		t.Errorf("a host of 16 characters: %v", err)
	}
	if _, err := normalize(api.NodeLoad{Images: []string{"+a"}}); api.CodeOf(err) != api.CodeInvalid {
		t.Errorf("an image that would pass for a host: %v", err)
	}
}

// The fullest meta of a node that lends everything leaves room for its address
// and labels.
func TestMetaOfANodeThatLendsEverythingFits(t *testing.T) {
	c := testCodec(t)
	m := api.NodeMeta{ID: "n", Addr: "10.200.200.200:65535", Roles: []string{"node"}, Arch: "amd64", Tier: "node-key",
		Labels:   map[string]string{"zone": strings.Repeat("z", 64), "disk": strings.Repeat("d", 64)},
		Capacity: api.Resources{CPU: 1 << 40, Memory: 1 << 50, PIDs: 1 << 40, Tmp: 1 << 50, ReadBps: 1 << 50, WriteBps: 1 << 50, Scratch: 1 << 50, Ingress: 1 << 50, Egress: 1 << 50, Ports: 1 << 17, Cores: 1 << 13}}
	b, err := c.encodeMeta(m, 1<<60)
	if err != nil {
		t.Fatal(err)
	}
	got, _, err := c.decodeMeta("n", b)
	if err != nil || !reflect.DeepEqual(got, m) {
		t.Errorf("%+v, %v", got, err)
	}
	var former struct {
		_        struct{} `cbor:",toarray"`
		Version  uint8
		Epoch    uint64
		Addr     string
		Roles    []string
		Arch     string
		Tier     string
		Labels   map[string]string
		Capacity [6]int64
		Local    string
	}
	if err := c.dec.Unmarshal(b, &former); err != nil || former.Capacity[1] != 1<<50 {
		t.Errorf("by an old release: %+v, %v", former, err)
	}
}
