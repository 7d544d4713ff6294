package anomaly

import (
	"bytes"
	"errors"
	"io"
	"math"
	"testing"

	"github.com/fxamacker/cbor/v2"

	"github.com/emmansun/gmsm/sm2"

	"github.com/faasd-sec/faasd-sec/sealed"
)

// TestRecordsAreDeterministicCBOR compares with a general CBOR library.
func TestRecordsAreDeterministicCBOR(t *testing.T) {
	mode, err := cbor.CoreDetEncOptions().EncMode()
	if err != nil {
		t.Fatal(err)
	}
	rev := bytes.Repeat([]byte{7}, 32)
	e := Event{Seq: 300, TimeMs: 1 << 40, BootMs: 70000, Kind: OOM, Function: "a.b", Revision: [32]byte(rev), Sandbox: "S_1", Code: "agent",
		Numbers: map[string]int64{"used": math.MaxInt64, "value": math.MinInt64, "kills": -1, "limit": 24, "peak": -25, "bytes": 0}}
	want, err := mode.Marshal(map[int]any{0: 2, 1: 300, 2: 1 << 40, 3: 70000, 4: 2, 5: "n", 6: "a.b", 7: rev, 8: "S_1", 9: "agent", 10: e.Numbers})
	if err != nil {
		t.Fatal(err)
	}
	if got := e.append(nil, "n"); !bytes.Equal(got, want) {
		t.Fatalf("%x, want %x", got, want)
	}
	key := make([]byte, 65)
	h := header{Version: 1, LogID: rev[:16], Segment: 2, Node: "n", Key: key, Previous: rev, Signature: rev, First: 9, TimeMs: 1, BootMs: 2, Damage: true,
		PrunedSegment: 1, PrunedSeq: 8, PrunedDigest: rev}
	c := checkpoint{Final: true, Seq: 9, TimeMs: 1, Digest: rev, Signature: key}
	hd := head{LogID: rev[:16], Key: key, Segment: 2, Seq: 9, TimeMs: 1, Digest: rev, Signature: key}
	h.Type, c.Type, hd.Type = typeHeader, typeCheckpoint, typeHead
	for _, x := range []struct {
		v   any
		got []byte
	}{{h, h.append(nil)}, {c, c.append(nil)}, {hd, hd.append(nil)}} {
		if want, err = mode.Marshal(x.v); err != nil || !bytes.Equal(x.got, want) {
			t.Errorf("%x, want %x, %v", x.got, want, err)
		}
	}
}

func TestLargestEventFits(t *testing.T) {
	e := Event{Seq: math.MaxUint64, TimeMs: math.MaxInt64, BootMs: math.MaxInt64, Kind: math.MaxUint16, Node: string(make([]byte, MaxNode)),
		Function: string(make([]byte, MaxFunction)), Revision: [32]byte{1}, Sandbox: string(make([]byte, MaxSandbox)), Code: string(make([]byte, MaxCode)),
		Numbers: map[string]int64{}}
	for i := range MaxNumbers {
		e.Numbers[string(bytes.Repeat([]byte{byte('a' + i)}, MaxNumberName))] = math.MinInt64
	}
	if n := len(e.append(nil, "")); n > maxBody {
		t.Fatalf("%d bytes", n)
	}
}

func FuzzRecord(f *testing.F) {
	e := Event{Seq: 1, TimeMs: 1, BootMs: 1, Kind: OOM, Numbers: map[string]int64{"kills": -3, "limit": 300}}
	k, err := sm2.GenerateKey(zeroReader{})
	if err != nil {
		f.Fatal(err)
	}
	pub, err := sealed.PublicKeyOf(k.Public())
	if err != nil {
		f.Fatal(err)
	}
	d := make([]byte, 32)
	h := header{Version: 1, LogID: d[:16], Segment: 1, Node: "n", Key: pub[:], Previous: d, Signature: d, First: 1, PrunedDigest: d}
	c := checkpoint{Final: true, Digest: d, Signature: d}
	hd := head{LogID: d[:16], Key: pub[:], Segment: 1, Digest: d, Signature: d}
	f.Add(e.append(nil, "node-1"))
	f.Add(h.append(nil))
	f.Add(c.append(nil))
	f.Add(hd.append(nil))
	p, err := newParser()
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if e, err := p.event(b); err == nil && !bytes.Equal(e.append(nil, ""), b) {
			t.Errorf("%x is read as %+v", b, e)
		}
		if h, err := p.header(b); err == nil && !bytes.Equal(h.append(nil), b) {
			t.Errorf("%x is read as %+v", b, h)
		}
		if c, err := p.checkpoint(b); err == nil && !bytes.Equal(c.append(nil), b) {
			t.Errorf("%x is read as %+v", b, c)
		}
		if h, err := p.head(b); err == nil && !bytes.Equal(h.append(nil), b) {
			t.Errorf("%x is read as %+v", b, h)
		}
		// As a segment: the reader ends, and only in one of its ways.
		for c := newCursor(bytes.NewReader(b)); ; {
			_, err := c.next()
			var br *Break
			if errors.Is(err, errEnd) || errors.Is(err, errTorn) || errors.As(err, &br) {
				break
			} else if err != nil {
				t.Fatal(err)
			}
		}
	})
}

type zeroReader struct{}

func (zeroReader) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = 1
	}
	return len(b), nil
}

var _ io.Reader = zeroReader{}
