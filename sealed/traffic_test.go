package sealed_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed"
)

const trafficFile = "testdata/traffic.json"

// trafficNow lies in the life of traffic.
var trafficNow = time.Unix(1_800_000_100, 0)

func traffic() *sealed.Traffic {
	return &sealed.Traffic{Name: "echo", Namespace: "demo", Sequence: 1_800_000_000_001, Issued: 1_800_000_000, Expires: 1_800_086_400,
		Shares: []sealed.Share{{Revision: sealed.Digest{1, 2}, Sequence: 7, Percent: 90}, {Revision: sealed.Digest{3, 4}, Sequence: 1_800_000_000_000, Percent: 10}}}
}

func signTraffic(t *testing.T, st *sealed.Traffic) []byte {
	t.Helper()
	b, err := st.Sign(nil, newKey(t, "owner sign"))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestTrafficStatementsTravel(t *testing.T) {
	owner := newKey(t, "owner sign").PublicKey().Fingerprint()
	b := signTraffic(t, traffic())
	if len(b) > sealed.MaxSignedTraffic {
		t.Errorf("%d bytes", len(b))
	}
	signed, err := sealed.ParseTraffic(b)
	if err != nil {
		t.Fatal(err)
	}
	got, err := signed.Verify(owner)
	if err != nil || fmt.Sprint(got) != fmt.Sprint(traffic()) {
		t.Fatalf("%+v, %v", got, err)
	}
	if again := signTraffic(t, got); !bytes.Equal(again, b) {
		t.Error("signed again it is another")
	}
	if s := got.Find(sealed.Digest{1, 2}, 7); s == nil || s.Percent != 90 {
		t.Errorf("%+v", s)
	}
	// Keys of the same revision under another descriptor are others.
	if got.Find(sealed.Digest{1, 2}, 8) != nil || got.Find(sealed.Digest{1}, 7) != nil || got.Latest().Sequence != 1_800_000_000_000 {
		t.Error("it names what it does not")
	}
}

func TestTrafficStatementsOfOthersAndForgedOnesAreRefused(t *testing.T) {
	owner := newKey(t, "owner sign").PublicKey().Fingerprint()
	other, err := traffic().Sign(nil, newKey(t, "stranger"))
	if err != nil {
		t.Fatal(err)
	}
	signed, err := sealed.ParseTraffic(other)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := signed.Verify(owner); !errors.Is(err, sealed.CodeSender) {
		t.Errorf("another's: %v", err)
	}
	// The other's content and signature under the owner's key.
	b := signTraffic(t, traffic())
	at := 8 + (int(b[6])<<8 | int(b[7]))
	forged := append(append(bytes.Clone(other[:at]), b[at:at+65]...), other[at+65:]...)
	if signed, err = sealed.ParseTraffic(forged); err != nil {
		t.Fatal(err)
	}
	if _, err := signed.Verify(owner); !errors.Is(err, sealed.CodeSignature) {
		t.Errorf("forged: %v", err)
	}
	// A signature over the same bytes for another purpose.
	sig, _, err := sealed.Sign(nil, newKey(t, "owner sign"), sealed.LabelDescriptor, b[:at+65])
	if err != nil {
		t.Fatal(err)
	}
	relabelled := append(append(bytes.Clone(b[:at+65]), byte(len(sig))), sig...)
	if signed, err = sealed.ParseTraffic(relabelled); err != nil {
		t.Fatal(err)
	}
	if _, err := signed.Verify(owner); !errors.Is(err, sealed.CodeSignature) {
		t.Errorf("of a descriptor: %v", err)
	}
	if _, err := sealed.ParseDescriptor(b); err == nil {
		t.Error("a statement passes for a descriptor")
	}
}

func TestATrafficStatementWithAnyBitFlippedOrCutIsRefused(t *testing.T) {
	owner := newKey(t, "owner sign").PublicKey().Fingerprint()
	b := signTraffic(t, traffic())
	taken := func(b []byte) bool {
		signed, err := sealed.ParseTraffic(b)
		if err != nil {
			return false
		}
		_, err = signed.Verify(owner)
		return err == nil
	}
	if !taken(b) {
		t.Fatal("the whole one is refused")
	}
	for i := range b {
		for bit := range 8 {
			c := bytes.Clone(b)
			c[i] ^= 1 << bit
			if taken(c) {
				t.Errorf("byte %d, bit %d", i, bit)
			}
		}
		if taken(b[:i]) {
			t.Errorf("cut to %d bytes", i)
		}
	}
	if taken(append(bytes.Clone(b), 0)) {
		t.Error("with a byte after it")
	}
}

func TestWrongTrafficStatementsAreNotSignedAndNotParsed(t *testing.T) {
	for name, edit := range map[string]func(*sealed.Traffic){
		"no name":               func(t *sealed.Traffic) { t.Name = "" },
		"no namespace":          func(t *sealed.Traffic) { t.Namespace = "A" },
		"99 percent":            func(t *sealed.Traffic) { t.Shares[0].Percent = 89 },
		"101 percent":           func(t *sealed.Traffic) { t.Shares[0].Percent = 91 },
		"percent that overflow": func(t *sealed.Traffic) { t.Shares[0].Percent, t.Shares[1].Percent = 1<<64-1, 101 },
		"no shares":             func(t *sealed.Traffic) { t.Shares = nil },
		"too many": func(t *sealed.Traffic) {
			for i := range uint64(3) {
				t.Shares = append(t.Shares, sealed.Share{Revision: sealed.Digest{9, byte(i)}, Sequence: 1_800_000_000_000 + 1 + i})
			}
			t.Sequence += 10
		},
		"one revision twice":       func(t *sealed.Traffic) { t.Shares[1].Revision = t.Shares[0].Revision },
		"one descriptor twice":     func(t *sealed.Traffic) { t.Shares[1].Sequence = t.Shares[0].Sequence },
		"not ascending":            func(t *sealed.Traffic) { t.Shares[0], t.Shares[1] = t.Shares[1], t.Shares[0] },
		"no revision":              func(t *sealed.Traffic) { t.Shares[0].Revision = sealed.Digest{} },
		"no descriptor":            func(t *sealed.Traffic) { t.Shares[0].Sequence = 0 },
		"older than what it names": func(t *sealed.Traffic) { t.Sequence = t.Shares[1].Sequence },
		"for ever":                 func(t *sealed.Traffic) { t.Expires = t.Issued + 7*24*3600 + 1 },
		"for no time":              func(t *sealed.Traffic) { t.Expires = t.Issued },
		"backwards":                func(t *sealed.Traffic) { t.Expires = t.Issued - 1 },
	} {
		st := traffic()
		edit(st)
		if _, err := st.Sign(nil, newKey(t, "owner sign")); err == nil {
			t.Errorf("%s: it is signed", name)
		}
		if _, err := sealed.ParseTraffic(handMade(t, st)); err == nil {
			t.Errorf("%s: it parses", name)
		}
	}
	if signed, err := sealed.ParseTraffic(handMade(t, traffic())); err != nil {
		t.Error("one that is right, made by hand:", err)
	} else if _, err := signed.Verify(newKey(t, "owner sign").PublicKey().Fingerprint()); err != nil {
		t.Error("one that is right, made by hand:", err)
	}
}

// handMade encodes and signs a statement from docs/envelope.md alone, whatever it
// says.
func handMade(t *testing.T, st *sealed.Traffic) []byte {
	t.Helper()
	shares := []map[int]any{}
	for _, s := range st.Shares {
		shares = append(shares, map[int]any{1: s.Revision[:], 2: s.Sequence, 3: s.Percent})
	}
	mode, err := cbor.CoreDetEncOptions().EncMode()
	if err != nil {
		t.Fatal(err)
	}
	payload, err := mode.Marshal(map[int]any{1: 1, 2: st.Name, 3: st.Namespace, 4: st.Sequence, 5: st.Issued, 6: st.Expires, 7: shares})
	if err != nil {
		t.Fatal(err)
	}
	key := newKey(t, "owner sign")
	pub := key.PublicKey()
	b := append([]byte("FST1"), 0, 0, byte(len(payload)>>8), byte(len(payload)))
	b = append(append(b, payload...), pub[:]...)
	sig, _, err := sealed.Sign(nil, key, "faasd-sec/v1 traffic", b)
	if err != nil {
		t.Fatal(err)
	}
	return append(append(b, byte(len(sig))), sig...)
}

func TestATrafficStatementCountsInItsTimeAlone(t *testing.T) {
	st := traffic()
	for at, live := range map[uint64]bool{st.Issued - 31: false, st.Issued - 30: true, st.Issued: true, st.Expires - 1: true, st.Expires: false, st.Expires + 1: false} {
		if err := st.Live(time.Unix(int64(at), 0)); (err == nil) != live || err != nil && !errors.Is(err, sealed.CodeWindow) {
			t.Errorf("at issued%+d: %v", int64(at)-int64(st.Issued), err)
		}
	}
	if st.Live(time.Unix(-1, 0)) == nil {
		t.Error("before time began")
	}
}

func TestCallsAreDividedByTheirIDs(t *testing.T) {
	for _, percent := range [][]uint64{{90, 10}, {10, 90}, {0, 100}, {100, 0}, {1, 99}, {20, 30, 0, 50}} {
		st := &sealed.Traffic{}
		for i, p := range percent {
			st.Shares = append(st.Shares, sealed.Share{Sequence: uint64(i + 1), Percent: p})
		}
		got := make([]int, len(percent)+1)
		const calls = 10000
		for i := range calls {
			id := fmt.Sprintf("call-%d", i)
			s := st.Choose(id)
			got[s.Sequence]++
			if again := st.Choose(id); again != s {
				t.Fatalf("%s comes to two", id)
			}
		}
		for i, p := range percent {
			if off := got[i+1] - int(p)*calls/100; off > calls/50 || off < -calls/50 || p == 0 && got[i+1] > 0 {
				t.Errorf("%v: %v", percent, got[1:])
			}
		}
	}
	if slot := api.CallSlot(""); slot < 0 || slot > 99 {
		t.Errorf("no id comes to slot %d", slot)
	}
}

// trafficVector is a signed statement and what is to be read in it.
type trafficVector struct {
	Owner  string         `json:"owner"` // fingerprint
	Signed string         `json:"signed"`
	Name   string         `json:"name"`
	Live   int64          `json:"live"`  // unix seconds at which it is live
	Calls  map[string]int `json:"calls"` // index of the share that a call's id is in
}

func TestTrafficVector(t *testing.T) {
	if *update {
		st := traffic()
		v := trafficVector{Owner: newKey(t, "owner sign").PublicKey().Fingerprint().String(), Signed: hex.EncodeToString(signTraffic(t, st)),
			Name: st.FullName(), Live: trafficNow.Unix(), Calls: map[string]int{}}
		for i := range 20 {
			id := fmt.Sprintf("%024x", i)
			v.Calls[id] = 0
			if st.Choose(id) == st.Latest() {
				v.Calls[id] = 1
			}
		}
		b, err := json.MarshalIndent(v, "", " ")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(trafficFile, append(b, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(trafficFile)
	if err != nil {
		t.Fatal(err)
	}
	var v trafficVector
	if err := json.Unmarshal(b, &v); err != nil || len(v.Calls) == 0 {
		t.Fatal(err)
	}
	owner, err := sealed.ParseFingerprint(v.Owner)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := sealed.ParseTraffic(unhex(t, v.Signed))
	if err != nil {
		t.Fatal(err)
	}
	st, err := signed.Verify(owner)
	if err != nil || st.FullName() != v.Name || st.Live(time.Unix(v.Live, 0)) != nil {
		t.Fatalf("%+v, %v", st, err)
	}
	for id, i := range v.Calls {
		if st.Choose(id) != &st.Shares[i] {
			t.Errorf("%s: not share %d", id, i)
		}
	}
}

func FuzzTraffic(f *testing.F) {
	f.Add([]byte("FST1"))
	if b, err := traffic().Sign(nil, newKey(f, "owner sign")); err == nil {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		signed, err := sealed.ParseTraffic(b)
		if err != nil {
			return
		}
		st := signed.Unverified()
		if err := st.Validate(); err != nil {
			t.Fatal("it parses and is not valid:", err)
		}
		if again := madeUpToPayload(t, st); !bytes.Equal(again, b[:len(again)]) {
			t.Error("two encodings of one statement")
		}
	})
}

// madeUpToPayload is the container up to the payload's end.
func madeUpToPayload(t *testing.T, st *sealed.Traffic) []byte {
	b := handMade(t, st)
	return b[:8+(int(b[6])<<8|int(b[7]))]
}
