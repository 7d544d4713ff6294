package anomaly_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/emmansun/gmsm/sm2"
	"github.com/emmansun/gmsm/sm3"

	"github.com/faasd-sec/faasd-sec/anomaly"
	"github.com/faasd-sec/faasd-sec/sealed"
)

const patience = 30 * time.Second

func newKey(tb testing.TB) (*sm2.PrivateKey, sealed.Fingerprint) {
	tb.Helper()
	k, err := sm2.GenerateKey(rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	pub, err := sealed.PublicKeyOf(k.Public())
	if err != nil {
		tb.Fatal(err)
	}
	return k, pub.Fingerprint()
}

// rig is a log with small bounds in a directory of its own.
type rig struct {
	t    testing.TB
	cfg  anomaly.Config
	key  sealed.Fingerprint
	log  *anomaly.Log
	open bool
}

func newRig(t testing.TB, change ...func(c *anomaly.Config)) *rig {
	k, f := newKey(t)
	r := &rig{t: t, key: f, cfg: anomaly.DefaultConfig()}
	r.cfg.Dir, r.cfg.Node, r.cfg.Signer = t.TempDir(), "node-1", k
	r.cfg.SegmentBytes, r.cfg.CheckpointEvents, r.cfg.FlushEvery, r.cfg.CheckpointAge = 2400, 3, 0, time.Hour
	for _, c := range change {
		c(&r.cfg)
	}
	r.reopen()
	t.Cleanup(func() {
		if r.open {
			r.close()
		}
	})
	return r
}

func (r *rig) reopen() {
	r.t.Helper()
	l, err := anomaly.Open(r.cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	r.log, r.open = l, true
}

func (r *rig) close() {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	r.open = false
	if err := r.log.Close(ctx); err != nil {
		r.t.Fatal(err)
	}
}

func sample(i int) anomaly.Event {
	return anomaly.Event{Kind: anomaly.OverThreshold, Code: "memory", Function: "hello.openfaas-fn", Sandbox: "s-0123456789abcdef01",
		Revision: sealed.Digest{1, 2, 3}, Numbers: map[string]int64{"threshold": 80, "value": int64(i), "duration_ms": -1}}
}

// fill appends n events one by one, each on the disk before the next.
func (r *rig) fill(n int) {
	r.t.Helper()
	for range n {
		have := r.lastSeq()
		r.log.Append(sample(int(have)))
		r.until("an event to be written", func() bool { return r.lastSeq() > have })
	}
}

func (r *rig) lastSeq() uint64 {
	list := r.events(r.cfg.Dir)
	if len(list) == 0 {
		return 0
	}
	return list[len(list)-1].Seq
}

func (r *rig) until(what string, ok func() bool) {
	r.t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			r.t.Fatalf("waited in vain for %s", what)
		}
	}
}

// events are those that can be read, breaks passed over.
func (r *rig) events(dir string) []anomaly.Event {
	var list []anomaly.Event
	for e, err := range anomaly.Read(context.Background(), dir, anomaly.Filter{}) {
		var b *anomaly.Break
		if err != nil && !errors.As(err, &b) {
			r.t.Fatal(err)
		}
		if err == nil {
			list = append(list, e)
		}
	}
	return list
}

func (r *rig) verify(dir string, expect *anomaly.Anchor) *anomaly.Report {
	r.t.Helper()
	rep, err := anomaly.Verify(context.Background(), dir, r.key, expect)
	if err != nil {
		r.t.Fatal(err)
	}
	return rep
}

func (r *rig) verified(dir string) *anomaly.Report {
	r.t.Helper()
	rep := r.verify(dir, nil)
	if !rep.OK {
		r.t.Fatalf("the log does not verify: %v", rep.Breaks)
	}
	return rep
}

// files is a directory's content, what an attacker works on.
type files map[string][]byte

func readFiles(t testing.TB, dir string) files {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	fs := files{}
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".tmp") {
			continue
		}
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		fs[e.Name()] = b
	}
	delete(fs, "LOCK")
	return fs
}

func (fs files) into(t testing.TB, dir string) {
	t.Helper()
	for name, b := range fs {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// with is a copy in which one file is another.
func (fs files) with(name string, b []byte) files {
	c := maps.Clone(fs)
	if c[name] = b; b == nil {
		delete(c, name)
	}
	return c
}

func (fs files) segments() []string {
	var names []string
	for n := range fs {
		if strings.HasSuffix(n, ".seg") {
			names = append(names, n)
		}
	}
	slices.Sort(names)
	return names
}

// records cuts a segment into length and body, without digests.
func records(b []byte) (list [][]byte) {
	for len(b) > 0 {
		n := 4 + int(binary.BigEndian.Uint32(b))
		list = append(list, b[:n])
		b = b[n+32:]
	}
	return list
}

// chained is what an attacker without the key can do at best: a chain that is
// right. It is written here from the document alone.
func chained(list [][]byte) []byte {
	var out []byte
	h := make([]byte, 32)
	for _, r := range list {
		d := sm3.Sum(slices.Concat([]byte("faasd-sec/v1 anomaly\x00"), h, r))
		h = d[:]
		out = append(append(out, r...), h...)
	}
	return out
}

// typ is a record's key 0.
func typ(r []byte) byte { return r[6] }

const (
	isHeader, isEvent, isCheckpoint = 1, 2, 3
)

// signedEnd is where the last checkpoint of a segment ends, and its record's index.
func signedEnd(b []byte) (end, index int) {
	at := 0
	for i, r := range records(b) {
		if at += len(r) + 32; typ(r) == isCheckpoint {
			end, index = at, i
		}
	}
	return end, index
}

func reasons(rep *anomaly.Report) string {
	var b bytes.Buffer
	for _, x := range rep.Breaks {
		b.WriteString(x.Error() + "\n")
	}
	return b.String()
}

func removeFile(t testing.TB, dir, name string) {
	t.Helper()
	if err := os.Remove(filepath.Join(dir, name)); err != nil {
		t.Fatal(err)
	}
}

func fingerprintOf(t testing.TB, s crypto.Signer) sealed.Fingerprint {
	t.Helper()
	pub, err := sealed.PublicKeyOf(s.Public())
	if err != nil {
		t.Fatal(err)
	}
	return pub.Fingerprint()
}
