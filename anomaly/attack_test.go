package anomaly_test

import (
	"bytes"
	"fmt"
	"slices"
	"testing"

	"github.com/faasd-sec/faasd-sec/anomaly"
)

// victim is a log of several segments whose writer was killed: its last segment
// has an unsigned tail of at least two events.
func victim(t *testing.T) (*rig, files) {
	r := newRig(t)
	for range 60 {
		r.fill(1)
		rep := r.verified(r.cfg.Dir)
		if rep.Signed != nil {
			r.until("HEAD", func() bool { return r.log.Stats().Signed == *rep.Signed })
		}
		fs := readFiles(t, r.cfg.Dir)
		if segs := fs.segments(); rep.Unsigned == 2 && len(segs) == 3 {
			if _, signed := signedEnd(fs[segs[2]]); signed > 2 {
				return r, fs
			}
		}
	}
	t.Fatal("the log never looked as the tests need it")
	return nil, nil
}

// judge writes the attacker's files over a scratch directory and verifies them.
type judge struct {
	r   *rig
	dir string
	now files // what is there
}

func (j *judge) verify(t *testing.T, fs files, expect *anomaly.Anchor) *anomaly.Report {
	t.Helper()
	news := files{}
	for name := range j.now {
		if _, ok := fs[name]; !ok {
			removeFile(t, j.dir, name)
		}
	}
	for name, b := range fs {
		if was, ok := j.now[name]; !ok || !bytes.Equal(was, b) {
			news[name] = b
		}
	}
	news.into(t, j.dir)
	j.now = fs
	return j.r.verify(j.dir, expect)
}

func TestEveryChangedByteIsFound(t *testing.T) {
	r, fs := victim(t)
	j := &judge{r: r, dir: t.TempDir()}
	last := fs.segments()[2]
	end, _ := signedEnd(fs[last])
	for name, content := range fs {
		for i := range content {
			b := bytes.Clone(content)
			b[i] ^= 1 << (i % 8)
			rep := j.verify(t, fs.with(name, b), nil)
			if name == last && i >= end {
				// The tail: found all the same where the chain breaks; where it looks as
				// if a crash had cut it, the report says so.
				if rep.OK && rep.Torn == 0 || !rep.OK && !rep.Breaks[0].Unsigned || rep.Signed == nil {
					t.Fatalf("%s, byte %d of the tail: %+v", name, i, rep)
				}
				continue
			}
			if rep.OK {
				t.Fatalf("%s: a change of byte %d was not found", name, i)
			}
			if rep.Breaks[0].Unsigned {
				t.Fatalf("%s: byte %d is signed, the break says it is not: %s", name, i, reasons(rep))
			}
		}
	}
}

func TestEveryTruncationIsFound(t *testing.T) {
	r, fs := victim(t)
	j := &judge{r: r, dir: t.TempDir()}
	segs := fs.segments()
	whole := j.verify(t, fs, nil)
	anchor := lastAnchor(t, r, fs)
	for n, name := range segs {
		content := fs[name]
		end, _ := signedEnd(content)
		step := 1
		if n < 2 {
			step = 5
		}
		for i := 0; i < len(content); i += step {
			cut := fs.with(name, content[:i])
			rep := j.verify(t, cut, nil)
			if n == 2 && i >= end {
				if !rep.OK || rep.Unsigned+boolInt(rep.Torn > 0) > whole.Unsigned || rep.Signed.Seq != whole.Signed.Seq {
					t.Fatalf("the tail cut at %d: %+v", i, rep)
				}
				if rep := j.verify(t, cut, anchor); rep.OK || rep.Breaks[0].Reason != anomaly.ReasonAnchor {
					t.Fatalf("the tail cut at %d, and the anchor is not missed", i)
				}
				continue
			}
			if rep.OK {
				t.Fatalf("%s cut to %d bytes was not found", name, i)
			}
		}
	}
}

// lastAnchor is the last event's, which is in the unsigned tail.
func lastAnchor(t *testing.T, r *rig, fs files) *anomaly.Anchor {
	t.Helper()
	b := fs[fs.segments()[2]]
	a := &anomaly.Anchor{Seq: uint64(len(r.events(r.cfg.Dir))), Digest: [32]byte(b[len(b)-32:])}
	if rep := r.verify(r.cfg.Dir, a); !rep.OK {
		t.Fatal(reasons(rep))
	}
	return a
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// Whole records removed, swapped and repeated, by somebody who mends the chain.
func TestEveryMovedRecordIsFoundThoughTheChainIsMended(t *testing.T) {
	r, fs := victim(t)
	j := &judge{r: r, dir: t.TempDir()}
	for n, name := range fs.segments() {
		list := records(fs[name])
		_, signed := signedEnd(fs[name])
		tries := map[string][][]byte{}
		for i := range list {
			tries[fmt.Sprint("without ", i)] = slices.Delete(slices.Clone(list), i, i+1)
			tries[fmt.Sprint("twice ", i)] = slices.Insert(slices.Clone(list), i, list[i])
			if i > 0 && !bytes.Equal(list[i], list[i-1]) {
				s := slices.Clone(list)
				s[i], s[i-1] = s[i-1], s[i]
				tries[fmt.Sprint("swapped ", i)] = s
			}
		}
		for what, s := range tries {
			var i int
			var op string
			fmt.Sscan(what, &op, &i)
			rep := j.verify(t, fs.with(name, chained(s)), nil)
			inTail := n == 2 && (i > signed+1 || i == signed+1 && op != "swapped")
			if !inTail && rep.OK {
				t.Errorf("%s %s was not found", name, what)
			}
			if inTail && rep.OK && rep.Unsigned == 0 {
				t.Errorf("%s %s: the report does not say that the tail is unsigned", name, what)
			}
			if inTail && !rep.OK && !rep.Breaks[0].Unsigned {
				t.Errorf("%s %s: %s", name, what, reasons(rep))
			}
		}
		// Without mending.
		for i := range list {
			var b []byte
			for k, rec := range list {
				if k != i {
					b = append(append(b, rec...), digestOf(fs[name], k)...)
				}
			}
			if rep := j.verify(t, fs.with(name, b), nil); rep.OK && !(n == 2 && i == len(list)-1) {
				t.Errorf("%s without record %d was not found", name, i)
			}
		}
	}
}

func digestOf(segment []byte, k int) []byte {
	at := 0
	for i, r := range records(segment) {
		at += len(r) + 32
		if i == k {
			return segment[at-32 : at]
		}
	}
	return nil
}

// An event is edited and everything that needs no key is mended: digests, and the
// links of the following segments.
func TestEditedEventsAreFoundThoughAllLinksAreMended(t *testing.T) {
	r, fs := victim(t)
	j := &judge{r: r, dir: t.TempDir()}
	segs := fs.segments()
	forged := fs
	var was, is [][]byte // link digests to put in the place of others
	for _, name := range segs {
		list := slices.Clone(records(fs[name]))
		for i := range list {
			list[i] = bytes.Replace(bytes.Clone(list[i]), []byte("hello."), []byte("other."), 1)
			for k := range was {
				list[i] = bytes.ReplaceAll(list[i], was[k], is[k])
			}
		}
		b := chained(list)
		was, is = append(was, fs[name][len(fs[name])-32:]), append(is, b[len(b)-32:])
		forged = forged.with(name, b)
	}
	rep := j.verify(t, forged, nil)
	if rep.OK || rep.Breaks[0].Segment != 1 || rep.Breaks[0].Unsigned {
		t.Fatalf("%+v", rep)
	}
	// With checkpoints that fit the new chain as well only the signatures are left.
	list := slices.Clone(records(fs[segs[0]]))
	for i := range list {
		if typ(list[i]) == isCheckpoint {
			sofar := chained(list[:i])
			list[i] = bytes.Replace(bytes.Clone(list[i]), digestOf(fs[segs[0]], i-1), sofar[len(sofar)-32:], 1)
		} else if typ(list[i]) == isEvent {
			list[i] = bytes.Replace(bytes.Clone(list[i]), []byte("hello."), []byte("other."), 1)
		}
	}
	rep = j.verify(t, fs.with(segs[0], chained(list)), nil)
	if rep.OK || rep.Breaks[0].Segment != 1 || rep.Breaks[0].Reason != anomaly.ReasonSignature {
		t.Fatal(reasons(rep))
	}
	// In the tail the same is possible, and the report says what the tail is worth.
	list = slices.Clone(records(fs[segs[2]]))
	at := len(list) - 1
	list[at] = bytes.Replace(bytes.Clone(list[at]), []byte("hello."), []byte("other."), 1)
	if rep := j.verify(t, fs.with(segs[2], chained(list)), nil); !rep.OK || rep.Unsigned != 2 {
		t.Fatalf("%+v", rep)
	}
	if rep := j.verify(t, fs.with(segs[2], chained(list)), lastAnchor(t, r, fs)); rep.OK || rep.Breaks[0].Reason != anomaly.ReasonAnchor {
		t.Fatalf("%+v", rep)
	}
}

func TestEveryMissingOrMisplacedFileIsFound(t *testing.T) {
	r, fs := victim(t)
	j := &judge{r: r, dir: t.TempDir()}
	s := fs.segments()
	none := fs.with(s[0], nil).with(s[1], nil).with(s[2], nil)
	for what, c := range map[string]struct {
		fs     files
		reason anomaly.Reason
	}{
		"first":       {fs.with(s[0], nil), anomaly.ReasonMissing},
		"middle":      {fs.with(s[1], nil), anomaly.ReasonMissing},
		"last":        {fs.with(s[2], nil), anomaly.ReasonHead},
		"last two":    {fs.with(s[2], nil).with(s[1], nil), anomaly.ReasonHead},
		"first two":   {fs.with(s[0], nil).with(s[1], nil), anomaly.ReasonMissing},
		"all":         {none, anomaly.ReasonHead},
		"HEAD":        {fs.with("HEAD", nil), anomaly.ReasonHead},
		"swapped":     {fs.with(s[0], fs[s[1]]).with(s[1], fs[s[0]]), anomaly.ReasonIdentity},
		"renumbered":  {none.with(s[0], fs[s[1]]).with(s[1], fs[s[2]]), anomaly.ReasonIdentity},
		"emptied":     {fs.with(s[1], []byte{}), anomaly.ReasonOrder},
		"repeated":    {fs.with("0000000004.seg", fs[s[2]]), anomaly.ReasonUnsealed},
		"two of one":  {fs.with("0000000002.damaged", fs[s[1]]), anomaly.ReasonIdentity},
		"set aside":   {fs.with(s[2], nil).with("0000000003.damaged", fs[s[2]]), anomaly.ReasonUnsealed},
		"junk at end": {fs.with(s[1], append(bytes.Clone(fs[s[1]]), 0, 0, 0, 9)), anomaly.ReasonOrder},
	} {
		rep := j.verify(t, c.fs, nil)
		if rep.OK || rep.Breaks[0].Reason != c.reason {
			t.Errorf("%s: %s, want %s", what, reasons(rep), c.reason)
		}
	}
}

func TestPartsOfAnotherLogAreFound(t *testing.T) {
	r, fs := victim(t)
	j := &judge{r: r, dir: t.TempDir()}
	// Another log of the same key: say, of another directory or time.
	other := newRig(t, func(c *anomaly.Config) { c.Signer = r.cfg.Signer })
	for len(readFiles(t, other.cfg.Dir).segments()) < 3 {
		other.fill(1)
	}
	theirs := readFiles(t, other.cfg.Dir)
	for _, name := range append(fs.segments(), "HEAD") {
		if rep := j.verify(t, fs.with(name, theirs[name]), nil); rep.OK {
			t.Errorf("%s of another log was not found", name)
		}
	}
	if rep := j.verify(t, theirs, lastAnchor(t, r, fs)); rep.OK {
		t.Error("another log as a whole has the anchor")
	}
	// Another key.
	_, stranger := newKey(t)
	rep, err := anomaly.Verify(t.Context(), r.cfg.Dir, stranger, nil)
	if err != nil || rep.OK || !slices.ContainsFunc(rep.Breaks, func(b anomaly.Break) bool { return b.Reason == anomaly.ReasonKey }) {
		t.Fatalf("%+v, %v", rep, err)
	}
}

// The whole directory is put back to what it was: consistent in itself.
func TestRollBackOfTheDirectoryIsFoundByAnAnchor(t *testing.T) {
	r, fs := victim(t)
	r.fill(6)
	later := r.verified(r.cfg.Dir).Signed
	if got := r.log.Stats().Signed; got != *later {
		t.Fatalf("the writer says %v, the report %v", got, later)
	}
	j := &judge{r: r, dir: t.TempDir()}
	if rep := j.verify(t, fs, nil); !rep.OK {
		t.Fatal(reasons(rep))
	}
	if rep := j.verify(t, fs, later); rep.OK || rep.Breaks[0].Reason != anomaly.ReasonAnchor {
		t.Fatalf("%+v", rep)
	}
	earlier := j.verify(t, fs, nil).Signed
	if rep := r.verify(r.cfg.Dir, earlier); !rep.OK {
		t.Fatal(reasons(rep))
	}
	wrong := *earlier
	wrong.Digest[0] ^= 1
	if rep := r.verify(r.cfg.Dir, &wrong); rep.OK || rep.Breaks[0].Reason != anomaly.ReasonAnchor {
		t.Fatalf("%+v", rep)
	}
}
