package gossip

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"pgregory.net/rapid"
)

func testCodec(t testing.TB) codec {
	t.Helper()
	c, err := newCodec()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestMetaLimitIsMetExactlyAndNamesWhatIsTooLong(t *testing.T) {
	c := testCodec(t)
	meta := api.NodeMeta{
		ID: "a", Addr: "10.0.0.5:8443", Roles: []string{"node"}, Arch: "amd64", Tier: "node-key",
		Labels: map[string]string{"zone": ""}, Capacity: api.Resources{CPU: 4000, Memory: 8 << 30, PIDs: 1000},
	}
	fits, refused := 0, 0
	for n := range 600 {
		meta.Labels["zone"] = strings.Repeat("x", n)
		b, err := c.encodeMeta(meta, 1)
		switch {
		case err == nil:
			if refused > 0 {
				t.Fatalf("label of %d fits after a shorter one did not", n)
			}
			fits = len(b)
			got, epoch, err := c.decodeMeta("a", b)
			if err != nil || epoch != 1 || !reflect.DeepEqual(got, meta) {
				t.Fatalf("round trip: %+v, %v", got, err)
			}
		default:
			refused++
			var e *api.Error
			if !errors.As(err, &e) || e.Code != api.CodeInvalid || e.Field != "meta.labels" || !strings.Contains(e.Message, "at most 512") {
				t.Fatalf("label of %d: %v", n, err)
			}
		}
	}
	if fits != maxMeta || refused == 0 {
		t.Errorf("the longest that fits has %d bytes, want %d", fits, maxMeta)
	}
	meta.Labels, meta.Addr = nil, strings.Repeat("a", 600)
	if _, err := c.encodeMeta(meta, 1); err == nil || !strings.Contains(err.Error(), "meta.addr") {
		t.Errorf("a long address: %v", err)
	}
	meta.Addr, meta.Tier = "", "\xff"
	if _, err := c.encodeMeta(meta, 1); api.CodeOf(err) != api.CodeInvalid {
		t.Errorf("text that is no UTF-8: %v", err)
	}
}

func TestLoadsRoundTrip(t *testing.T) {
	c := testCodec(t)
	rapid.Check(t, func(t *rapid.T) {
		key := rapid.OneOf(rapid.StringMatching(`[0-9a-f]{16}`), rapid.StringMatching(`[0-9A-Fa-z]{1,16}`))
		l := api.NodeLoad{
			Node:  rapid.StringMatching(`[a-z0-9.-]{1,128}`).Draw(t, "node"),
			Epoch: rapid.Uint64().Draw(t, "epoch"), Seq: rapid.Uint64().Draw(t, "seq"),
			Free:    api.Resources{CPU: rapid.Int64Min(0).Draw(t, "cpu"), Memory: rapid.Int64Min(0).Draw(t, "mem"), WriteBps: rapid.Int64Min(0).Draw(t, "bps"), Scratch: rapid.Int64Min(0).Draw(t, "scratch"), Egress: rapid.Int64Min(0).Draw(t, "egress"), Ports: rapid.Int64Min(0).Draw(t, "ports"), Cores: rapid.Int64Min(0).Draw(t, "cores")},
			Warm:    rapid.MapOfN(key, rapid.IntRange(0, maxSlots), 0, 20).Draw(t, "warm"),
			Images:  rapid.SliceOfNDistinct(key, 0, 20, rapid.ID).Draw(t, "images"),
			Running: rapid.IntRange(0, maxCount).Draw(t, "running"), Pooled: rapid.IntRange(0, maxCount).Draw(t, "pooled"), InFlight: rapid.IntRange(0, maxCount).Draw(t, "inflight"),
			Draining: rapid.Bool().Draw(t, "draining"),
		}
		b, trimmed, err := c.encodeLoad(l)
		if err != nil || trimmed || len(b) > maxLoad {
			t.Fatalf("%d bytes, trimmed %v: %v", len(b), trimmed, err)
		}
		got, err := c.decodeLoad(b)
		if err != nil {
			t.Fatal(err)
		}
		maps.DeleteFunc(l.Warm, func(_ string, n int) bool { return n == 0 })
		if !maps.Equal(got.Warm, l.Warm) || !slices.Equal(got.Images, l.Images) {
			t.Fatalf("warm %v, images %v", got.Warm, got.Images)
		}
		got.Warm, got.Images, l.Warm, l.Images = nil, nil, nil, nil
		if !reflect.DeepEqual(got, l) {
			t.Fatalf("got %+v, want %+v", got, l)
		}
	})
}

func TestLoadsThatAreTooLongKeepTheBestHints(t *testing.T) {
	c := testCodec(t)
	l := api.NodeLoad{Node: strings.Repeat("n", maxID), Epoch: 1 << 60, Seq: 1 << 60, Warm: map[string]int{}}
	for i := range 60 {
		l.Warm[fmt.Sprintf("%016x", i)] = 1 + i
		l.Images = append(l.Images, fmt.Sprintf("%016x", i))
	}
	b, trimmed, err := c.encodeLoad(l)
	if err != nil || !trimmed || len(b) > maxLoad || len(b) < maxLoad-20 {
		t.Fatalf("%d bytes, trimmed %v, %v", len(b), trimmed, err)
	}
	got, err := c.decodeLoad(b)
	if err != nil || len(got.Warm) != 60 || len(got.Images) < 10 || !slices.Equal(got.Images, l.Images[:len(got.Images)]) {
		t.Fatalf("%d warm, images %v, %v", len(got.Warm), got.Images, err)
	}
	for i := range 1000 {
		l.Warm[fmt.Sprintf("%016x", 1000+i)] = 1000 + i
	}
	b, _, err = c.encodeLoad(l)
	if err != nil || len(b) > maxLoad {
		t.Fatalf("%d bytes, %v", len(b), err)
	}
	if got, err = c.decodeLoad(b); err != nil || len(got.Warm) < 70 {
		t.Fatalf("%d warm, %v", len(got.Warm), err)
	}
	for _, n := range got.Warm {
		if n < 2000-len(got.Warm) {
			t.Fatalf("kept a revision with %d slots for one with more", n)
		}
	}
}

func TestOwnLoadsAreCheckedAndOverdrawnOnesCountAsNothingFree(t *testing.T) {
	l, err := normalize(api.NodeLoad{Free: api.Resources{CPU: -5, Memory: 7}})
	if err != nil || l.Free.CPU != 0 || l.Free.Memory != 7 {
		t.Errorf("%+v, %v", l, err)
	}
	for field, bad := range map[string]api.NodeLoad{
		"load.warm":   {Warm: map[string]int{"": 1}},
		"load.images": {Images: []string{strings.Repeat("a", 64)}},
		"load":        {Running: -1},
	} {
		_, err := normalize(bad)
		var e *api.Error
		if !errors.As(err, &e) || e.Field != field {
			t.Errorf("%s: %v", field, err)
		}
	}
	for _, bad := range []api.NodeLoad{{Warm: map[string]int{"a": -1}}, {Pooled: -1}, {InFlight: -1}} {
		if _, err := normalize(bad); err == nil {
			t.Errorf("a negative number: %+v", bad)
		}
	}
}

func TestStateThatEndsEarlyIsMalformed(t *testing.T) {
	b := appendState(appendState([]byte{wireVersion}, []byte("one")), []byte("two"))
	for n := range len(b) + 1 {
		var got []string
		err := eachState(b[:n], func(l []byte) { got = append(got, string(l)) })
		whole := n == 1 || n == 6 || n == 11
		if (err == nil) != whole || len(got) > 2 {
			t.Errorf("%d of %d bytes: %v, %q", n, len(b), err, got)
		}
	}
}

func TestPolicyWeighsChanges(t *testing.T) {
	capacity := api.Resources{CPU: 1000, Memory: 1000, PIDs: 1000}
	base := api.NodeLoad{Epoch: 1, Seq: 1, Free: api.Resources{CPU: 500, Memory: 500, PIDs: 500}, InFlight: 10, Running: 5,
		Warm: map[string]int{"a": 10}, Images: []string{"i"}}
	for _, c := range []struct {
		name   string
		change func(*api.NodeLoad)
		want   change
	}{
		{"nothing but the number", func(*api.NodeLoad) {}, changeNone},
		{"same number", func(l *api.NodeLoad) { l.Seq = 1 }, changeNone},
		{"a little CPU", func(l *api.NodeLoad) { l.Free.CPU -= 99 }, changeSmall},
		{"a tenth of the CPU", func(l *api.NodeLoad) { l.Free.CPU -= 100 }, changeLarge},
		{"a tenth of the memory more", func(l *api.NodeLoad) { l.Free.Memory += 100 }, changeLarge},
		{"pids gone", func(l *api.NodeLoad) { l.Free.PIDs = 0 }, changeLarge},
		{"one call more of ten", func(l *api.NodeLoad) { l.InFlight++ }, changeSmall},
		{"calls doubled", func(l *api.NodeLoad) { l.InFlight *= 2 }, changeLarge},
		{"a sandbox less", func(l *api.NodeLoad) { l.Running-- }, changeLarge},
		{"the first one that waits", func(l *api.NodeLoad) { l.Pooled++ }, changeLarge},
		{"a slot of ten", func(l *api.NodeLoad) { l.Warm = map[string]int{"a": 9} }, changeSmall},
		{"half the slots", func(l *api.NodeLoad) { l.Warm = map[string]int{"a": 5} }, changeLarge},
		{"last slot", func(l *api.NodeLoad) { l.Warm = map[string]int{"a": 0} }, changeUrgent},
		{"revision gone", func(l *api.NodeLoad) { l.Warm = nil }, changeUrgent},
		{"first slot of another", func(l *api.NodeLoad) { l.Warm = map[string]int{"a": 10, "b": 1} }, changeUrgent},
		{"a zero that was absent", func(l *api.NodeLoad) { l.Warm = map[string]int{"a": 10, "b": 0} }, changeNone},
		{"another image", func(l *api.NodeLoad) { l.Images = []string{"j"} }, changeSmall},
		{"an image more", func(l *api.NodeLoad) { l.Images = []string{"j", "i"} }, changeSmall},
		{"a tenth of the bandwidth of an unknown capacity", func(l *api.NodeLoad) { l.Free.Egress++ }, changeLarge},
		{"a port", func(l *api.NodeLoad) { l.Free.Ports++ }, changeLarge},
		{"a core", func(l *api.NodeLoad) { l.Free.Cores++ }, changeLarge},
		{"a revision that runs", func(l *api.NodeLoad) { l.Hosts = []string{"h"} }, changeSmall},
		{"draining", func(l *api.NodeLoad) { l.Draining = true }, changeDraining},
		{"another life", func(l *api.NodeLoad) { l.Epoch, l.Seq = 2, 1 }, changeDraining},
	} {
		now := base
		now.Seq = 2
		c.change(&now)
		if got := compareLoads(base, now, capacity, 0.1); got != c.want {
			t.Errorf("%s: %d, want %d", c.name, got, c.want)
		}
	}
}

func TestAnnouncerStretchesIntervalsButNotDraining(t *testing.T) {
	at := time.Unix(1000, 0)
	a := announcer{interval: time.Second, urgent: 100 * time.Millisecond, settle: 10 * time.Second, threshold: 0.1,
		told: api.NodeLoad{Epoch: 1, Seq: 1}, toldAt: at}
	for _, c := range []struct {
		now    api.NodeLoad
		factor time.Duration
		want   time.Duration
	}{
		{api.NodeLoad{Warm: map[string]int{"a": 1}}, 1, 100 * time.Millisecond},
		{api.NodeLoad{Warm: map[string]int{"a": 1}}, 10, time.Second},
		{api.NodeLoad{Running: 1}, 1, time.Second},
		{api.NodeLoad{Running: 1}, 10, 10 * time.Second},
		{api.NodeLoad{Images: []string{"a"}}, 1, 10 * time.Second},
		{api.NodeLoad{Images: []string{"a"}}, 100, 100 * time.Second},
		{api.NodeLoad{Draining: true}, 100, 0},
	} {
		c.now.Epoch, c.now.Seq = 1, 2
		if due, ok := a.due(c.now, steps{}, api.Resources{}, c.factor); !ok || due.Sub(at) != c.want {
			t.Errorf("%+v by %d: due after %v, want %v", c.now, c.factor, due.Sub(at), c.want)
		}
	}
	if _, ok := a.due(a.told, steps{}, api.Resources{}, 1); ok {
		t.Error("nothing new is due")
	}
}

func TestALoadThatChangedAndChangedBackIsToldAgain(t *testing.T) {
	at := time.Unix(1000, 0)
	idle := api.NodeLoad{Epoch: 1, Seq: 1, Warm: map[string]int{"a": 1}}
	busy := api.NodeLoad{Epoch: 1, Seq: 2, InFlight: 1}
	again := idle
	again.Seq = 3
	a := announcer{interval: time.Second, urgent: 100 * time.Millisecond, settle: 10 * time.Second, threshold: 0.1, told: idle, toldAt: at}
	var between steps
	between.note(idle, busy, api.Resources{}, a.threshold)
	between.note(busy, again, api.Resources{}, a.threshold)
	if due, ok := a.due(again, between, api.Resources{}, 1); !ok || due.Sub(at) != 100*time.Millisecond {
		t.Errorf("due after %v, %v: who saw the busy load on a reply goes on believing it", due.Sub(at), ok)
	}
	a.told = again
	if _, ok := a.due(again, between, api.Resources{}, 1); ok {
		t.Error("it is due again after it was told")
	}
}

func FuzzDecodeMeta(f *testing.F) {
	c := testCodec(f)
	b, err := c.encodeMeta(api.NodeMeta{ID: "a", Roles: []string{"node"}, Labels: map[string]string{"k": "v"}}, 7)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		m, epoch, err := c.decodeMeta("a", b)
		if err != nil {
			return
		}
		again, err := c.encodeMeta(m, epoch)
		if err != nil {
			return // no role, say: accepted from others, not said by us
		}
		if back, _, err := c.decodeMeta("a", again); err != nil || !reflect.DeepEqual(back, m) {
			t.Errorf("%+v became %+v: %v", m, back, err)
		}
	})
}

func FuzzDecodeLoad(f *testing.F) {
	c := testCodec(f)
	b, _, err := c.encodeLoad(api.NodeLoad{Node: "a", Epoch: 1, Seq: 2, Warm: map[string]int{"0123456789abcdef": 3, "x": 1}, Images: []string{"y"}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := c.decodeLoad(b)
		if err != nil {
			if !errors.Is(err, errMalformed) {
				t.Errorf("error of another kind: %v", err)
			}
			return
		}
		again, trimmed, err := c.encodeLoad(l)
		if err != nil || trimmed {
			t.Fatalf("what was read is not written: %v, trimmed %v", err, trimmed)
		}
		if back, err := c.decodeLoad(again); err != nil || !reflect.DeepEqual(back, l) {
			t.Errorf("%+v became %+v: %v", l, back, err)
		}
	})
}

func FuzzEachState(f *testing.F) {
	f.Add(appendState([]byte{wireVersion}, []byte("load")))
	f.Fuzz(func(t *testing.T, b []byte) {
		again := []byte{wireVersion}
		if eachState(b, func(l []byte) { again = appendState(again, l) }) == nil && !bytes.Equal(again, b) {
			t.Errorf("%x became %x", b, again)
		}
	})
}
