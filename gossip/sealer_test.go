package gossip

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"pgregory.net/rapid"
)

func testSealer(t testing.TB, label string, keys ...Key) *sealer {
	t.Helper()
	s, err := newSealer(keys, label, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func mustSeal(t testing.TB, s *sealer, plain string) []byte {
	t.Helper()
	b, err := s.seal([]byte(plain))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestPacketsOpenUnderAnyKeyOfTheRingAndTheSameLabel(t *testing.T) {
	from := testSealer(t, "l", testKey(1), testKey(2))
	for _, c := range []struct {
		to   *sealer
		want error
	}{
		{testSealer(t, "l", testKey(1)), nil},
		{testSealer(t, "l", testKey(2), testKey(1)), nil},
		{testSealer(t, "l", testKey(2)), errForged},
		{testSealer(t, "m", testKey(1)), errForged},
		{from, errReplayed}, // its own, sent back
	} {
		b := mustSeal(t, from, "hello")
		if len(b) != len("hello")+packetOverhead {
			t.Errorf("%d bytes", len(b))
		}
		plain, err := c.to.open(b)
		if !errors.Is(err, c.want) || (err == nil && string(plain) != "hello") {
			t.Errorf("got %q, %v, want %v", plain, err, c.want)
		}
	}
}

func TestNoBitOfAPacketMayChange(t *testing.T) {
	from, to := testSealer(t, "l", testKey(1)), testSealer(t, "l", testKey(1))
	b := mustSeal(t, from, "hello")
	for i := range len(b) * 8 {
		b[i/8] ^= 1 << (i % 8)
		if _, err := to.open(b); !errors.Is(err, errForged) {
			t.Fatalf("bit %d: %v", i, err)
		}
		b[i/8] ^= 1 << (i % 8)
	}
	if _, err := to.open(b); err != nil {
		t.Fatalf("forgeries spoiled the true one: %v", err)
	}
	if _, err := to.open(b); !errors.Is(err, errReplayed) {
		t.Fatalf("twice: %v", err)
	}
}

func TestNoncesDoNotRepeat(t *testing.T) {
	s := testSealer(t, "l", testKey(1))
	seen := map[string]bool{}
	add := func() {
		b := mustSeal(t, s, "x")
		if h := string(b[:packetHeader]); seen[h] {
			t.Fatalf("salt and counter %x twice", h)
		} else {
			seen[h] = true
		}
	}
	for range 100 {
		add()
	}
	if err := s.rotate([]Key{testKey(1)}); err != nil { // the same key again
		t.Fatal(err)
	}
	for range 100 {
		add()
	}
	salt := s.salt
	s.counter = packetsPerSalt - 1
	add()
	add()
	if s.salt == salt || s.counter != 1 {
		t.Errorf("the counter ran on to %d", s.counter)
	}
}

func TestWithoutRandomnessNothingIsSealed(t *testing.T) {
	if _, err := newSealer([]Key{testKey(1)}, "l", strings.NewReader("short")); err == nil {
		t.Error("sealer without a salt")
	}
	s := testSealer(t, "l", testKey(1))
	s.rand, s.counter = strings.NewReader(""), packetsPerSalt
	if _, err := s.seal([]byte("x")); err == nil {
		t.Error("the counter ran over")
	}
	if err := s.rotate([]Key{testKey(2)}); err == nil || s.ring[0] != testKey(1) {
		t.Errorf("rotate: %v", err)
	}
}

// TestReplayWindowMatchesASet holds the window against the obvious way to do it.
func TestReplayWindowMatchesASet(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var w window
		seen, top := map[uint64]bool{}, uint64(0)
		for range rapid.IntRange(1, 200).Draw(t, "packets") {
			n := rapid.OneOf(rapid.Uint64Range(0, 1000), rapid.Uint64Range(top, top+3)).Draw(t, "n")
			want := !seen[n] && n+windowSize >= top
			if got := w.admit(n); got != want {
				t.Fatalf("counter %d with next %d: admitted %v, want %v", n, top, got, want)
			}
			if want {
				seen[n], top = true, max(top, n+1)
			}
		}
	})
}

func TestReplayGuardIsBoundedAndKeepsWhoIsHeard(t *testing.T) {
	var g replayGuard
	busy := [saltSize]byte{1}
	for i := range uint64(5 * guardSenders) {
		other := [saltSize]byte{2, byte(i), byte(i >> 8), byte(i >> 16)}
		if !g.admit(other, 0) || !g.admit(busy, i) {
			t.Fatal("a fresh packet was taken for a replay")
		}
		if len(g.young)+len(g.old) > 2*guardSenders {
			t.Fatal("the guard grows without bound")
		}
	}
	if g.admit(busy, 5*guardSenders-1) {
		t.Error("a replay was admitted")
	}
}

func streamPair(t testing.TB, client, server *sealer) (a, b *sealedConn, raw [2]*pipeConn, count *counters) {
	t.Helper()
	var n atomic.Int64
	near, far := pipe(&n)
	count = &counters{}
	b = serverConn(far, server, count, func() {})
	got := make(chan error, 1)
	go func() { // answers the client's hello
		b.rmu.Lock()
		defer b.rmu.Unlock()
		got <- b.serverHello()
	}()
	a, err := clientHandshake(near, client, count, func() {})
	if err != nil {
		t.Fatal(err)
	}
	if err := <-got; err != nil {
		t.Fatal(err)
	}
	return a, b, [2]*pipeConn{near, far}, count
}

func TestStreamsCarryBothWaysAndEnd(t *testing.T) {
	a, b, _, count := streamPair(t, testSealer(t, "l", testKey(1)), testSealer(t, "l", testKey(2), testKey(1)))
	if _, err := b.Write([]byte("too early")); !errors.Is(err, errNotYet) {
		t.Errorf("write before the client proved itself: %v", err)
	}
	big := make([]byte, 3*maxRecord+17)
	if _, err := rand.Read(big); err != nil {
		t.Fatal(err)
	}
	for _, way := range [][2]*sealedConn{{a, b}, {b, a}} {
		if n, err := way[0].Write(big); err != nil || n != len(big) {
			t.Fatalf("wrote %d: %v", n, err)
		}
		got := make([]byte, len(big))
		if _, err := io.ReadFull(way[1], got); err != nil || !bytes.Equal(got, big) {
			t.Fatalf("read: %v", err)
		}
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("after Close: %v", err)
	}
	if err := b.Close(); err != nil || count.streamsForged.Load() != 0 {
		t.Errorf("%v, %d forged", err, count.streamsForged.Load())
	}
}

// TestStreamsThatWereTamperedWithBreak rewrites what the client sent.
func TestStreamsThatWereTamperedWithBreak(t *testing.T) {
	record := recordHeader + 3 + tagSize
	for name, change := range map[string]func([]byte) []byte{
		"cut between records": func(b []byte) []byte { return b[:record] },
		"cut in a record":     func(b []byte) []byte { return b[:record+7] },
		"last record missing": func(b []byte) []byte { return b[:2*record] },
		"swapped": func(b []byte) []byte {
			return append(append(bytes.Clone(b[record:2*record]), b[:record]...), b[2*record:]...)
		},
		"repeated":      func(b []byte) []byte { return append(bytes.Clone(b[:record]), b...) },
		"first missing": func(b []byte) []byte { return b[record:] },
		"made last":     func(b []byte) []byte { b[0] |= 0x80; return b },
		"flipped":       func(b []byte) []byte { b[record+recordHeader] ^= 1; return b },
		"huge":          func(b []byte) []byte { b[1] = 0xff; return b },
	} {
		t.Run(name, func(t *testing.T) {
			a, b, raw, count := streamPair(t, testSealer(t, "l", testKey(1)), testSealer(t, "l", testKey(1)))
			for _, s := range []string{"one", "two"} {
				if _, err := a.Write([]byte(s)); err != nil {
					t.Fatal(err)
				}
			}
			if err := a.Close(); err != nil {
				t.Fatal(err)
			}
			wire := raw[1].in
			wire.mu.Lock()
			wire.buf = change(wire.buf)
			wire.mu.Unlock()
			got, err := io.ReadAll(b)
			if err == nil || count.streamsForged.Load() != 1 {
				t.Errorf("read %q to the end, %d forged", got, count.streamsForged.Load())
			}
			if !strings.HasPrefix("onetwo", string(got)) {
				t.Errorf("read %q", got)
			}
			if _, again := b.Read(make([]byte, 1)); again == nil {
				t.Error("went on after the error")
			}
		})
	}
}

func TestStreamsOfAnotherKeyOrLabelOrTimeBreak(t *testing.T) {
	for _, client := range []*sealer{testSealer(t, "l", testKey(3)), testSealer(t, "m", testKey(1))} {
		a, b, _, _ := streamPair(t, client, testSealer(t, "l", testKey(1)))
		if _, err := a.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Read(make([]byte, 1)); !errors.Is(err, errForged) {
			t.Errorf("read: %v", err)
		}
		if _, err := b.Write([]byte("x")); !errors.Is(err, errNotYet) {
			t.Errorf("answered: %v", err)
		}
	}
	// What a client said once, said to the same server again.
	key := testSealer(t, "l", testKey(1))
	a, _, raw, _ := streamPair(t, key, key)
	if _, err := a.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	recorded := bytes.Clone(raw[1].in.buf)
	_, b, raw, _ := streamPair(t, key, key)
	if _, err := raw[0].Write(recorded); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Read(make([]byte, 1)); !errors.Is(err, errForged) {
		t.Errorf("replayed stream: %v", err)
	}
}

func TestKeysDoNotShow(t *testing.T) {
	k, err := NewKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	back, err := ParseKey(k.Hex())
	if err != nil || back != k {
		t.Fatalf("round trip: %v", err)
	}
	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "key", k, "ring", []Key{k})
	for _, s := range []string{fmt.Sprint(k), fmt.Sprintf("%x %v %+v %#v %d %s", k, k, k, k, k, []Key{k}), log.String()} {
		if strings.Contains(strings.ToLower(s), k.Hex()[:8]) || strings.Contains(s, fmt.Sprint(k[0], " ", k[1], " ", k[2])) {
			t.Errorf("shows in %q", s)
		}
	}
	for _, bad := range []string{"", "xx", k.Hex()[1:], k.Hex() + "00"} {
		if _, err := ParseKey(bad); api.CodeOf(err) != api.CodeInvalid {
			t.Errorf("%d characters: %v", len(bad), err)
		}
	}
	if _, err := NewKey(strings.NewReader("short")); err == nil {
		t.Error("a key of too little randomness")
	}
	for _, ring := range [][]Key{{{}}, {k, k}, {testKey(1), testKey(2), testKey(3), testKey(4), testKey(5)}} {
		if api.CodeOf(checkKeys(ring)) != api.CodeInvalid {
			t.Errorf("ring of %d passed", len(ring))
		}
	}
}

func TestLogLinesAreLimitedAndCounted(t *testing.T) {
	var out bytes.Buffer
	count := &counters{}
	b := newLogBridge(t.Context(), slog.New(slog.NewTextHandler(&out, nil)), count, newSuspects(nil, 0))
	b.at = time.Now().Add(time.Hour) // no refill
	for range 100 {
		if _, err := b.Write([]byte("[WARN] memberlist: trouble\n")); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Write([]byte("[DEBUG] memberlist: chatter\n")); err != nil {
			t.Fatal(err)
		}
	}
	if n := strings.Count(out.String(), "level=WARN msg=\"gossip: trouble\""); n < 10 || n > 20 || count.logsDropped.Load() < 80 {
		t.Errorf("%d lines, %d dropped: %s", n, count.logsDropped.Load(), out.String())
	}
	if strings.Contains(out.String(), "chatter") {
		t.Error("debug lines at level info")
	}
}

func FuzzOpenPacket(f *testing.F) {
	from := testSealer(f, "l", testKey(1))
	f.Add(mustSeal(f, from, "hello"))
	f.Add([]byte{packetVersion})
	f.Fuzz(func(t *testing.T, b []byte) {
		to := testSealer(t, "l", testKey(1), testKey(2))
		if plain, err := to.open(b); err == nil && len(plain) == 0 {
			t.Error("opened to nothing")
		}
	})
}

func FuzzServerStream(f *testing.F) {
	f.Add(append([]byte{streamVersion}, make([]byte, 60)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		var n atomic.Int64
		near, far := pipe(&n)
		c := serverConn(far, testSealer(t, "l", testKey(1)), &counters{}, func() {})
		if _, err := near.Write(b); err != nil {
			t.Fatal(err)
		}
		near.out.mu.Lock()
		near.out.closed = true
		near.out.mu.Unlock()
		if got, err := io.ReadAll(c); err == nil || len(got) > 0 {
			t.Errorf("read %q, %v", got, err)
		}
	})
}

func BenchmarkPacket(b *testing.B) {
	from, to := testSealer(b, "l", testKey(1)), testSealer(b, "l", testKey(1))
	plain := make([]byte, 1300)
	b.Run("seal", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := from.seal(plain); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("seal+open", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			p, err := from.seal(plain)
			if err == nil {
				_, err = to.open(p)
			}
			if err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("forged", func(b *testing.B) {
		p := mustSeal(b, from, string(plain))
		p[40] ^= 1
		for b.Loop() {
			if _, err := to.open(p); err == nil {
				b.Fatal("opened")
			}
		}
	})
}
