package anomaly_test

import (
	"bytes"
	"crypto/rand"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/anomaly"
)

func newRandom() io.Reader { return rand.Reader }

// childDir in the environment makes this test binary a writer that goes on until
// it is killed.
const childDir = "ANOMALY_TEST_CHILD_DIR"

func TestKilledWriterLeavesALogThatOpensAndVerifies(t *testing.T) {
	cfg := anomaly.DefaultConfig()
	cfg.SegmentBytes, cfg.MaxBytes, cfg.FlushEvery, cfg.CheckpointEvents, cfg.Node = 4<<10, 32<<10, 0, 5, "node-1"
	if dir := os.Getenv(childDir); dir != "" {
		writeForEver(t, cfg, dir)
		return
	}
	dir := t.TempDir()
	key := filepath.Join(dir, "key")
	signer, err := anomaly.OpenKey(key, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Dir, cfg.Signer = filepath.Join(dir, "log"), signer
	r := &rig{t: t, cfg: cfg, key: fingerprintOf(t, signer)}
	last, recovered := uint64(0), 0
	var anchor *anomaly.Anchor
	verify := func() *anomaly.Report {
		rep := r.verify(cfg.Dir, anchor)
		if anchor != nil && rep.PrunedSeq >= anchor.Seq { // the child was fast, or we were slow
			rep = r.verify(cfg.Dir, nil)
		}
		return rep
	}
	for round := range 12 {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$")
		cmd.Env = append(os.Environ(), childDir+"="+dir, "TMPDIR="+dir)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		// Killed at another point each time, in the middle of whatever it does.
		r.until("the child to write", func() bool {
			rep, err := anomaly.Verify(t.Context(), cfg.Dir, r.key, nil)
			if err == nil && !rep.OK {
				t.Fatalf("round %d, while it is written: %s", round, reasons(rep))
			}
			return err == nil && rep.LastSeq > last+uint64(7*round)
		})
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err == nil {
			t.Fatal("the child ended by itself")
		}
		if rep := verify(); !rep.OK {
			t.Fatalf("round %d, as it was left: %s", round, reasons(rep))
		}
		r.reopen()
		r.close()
		rep := verify()
		if !rep.OK || !rep.Closed || rep.Unsigned != 0 || rep.LastSeq <= last {
			t.Fatalf("round %d: %+v", round, rep)
		}
		last, anchor = rep.LastSeq, rep.Signed
		for _, e := range r.events(cfg.Dir) {
			if e.Kind == anomaly.Damaged {
				t.Fatalf("round %d: %+v", round, e)
			}
			if e.Kind == anomaly.Recovered {
				recovered++
			}
		}
	}
	if recovered == 0 {
		t.Error("no opening found what was left open")
	}
}

func writeForEver(t *testing.T, cfg anomaly.Config, dir string) {
	signer, err := anomaly.OpenKey(filepath.Join(dir, "key"), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Dir, cfg.Signer = filepath.Join(dir, "log"), signer
	l, err := anomaly.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; ; i++ {
		l.Append(sample(i))
		if i%3 == 0 {
			time.Sleep(200 * time.Microsecond) // a pace; nothing waits for it
		}
	}
}

// crashed is a directory as a killed writer leaves it, in a rig whose writer has
// ended and does not know.
func crashed(t *testing.T, change func(fs files) files) (*rig, files) {
	r, fs := victim(t)
	r.close()
	fs = change(fs)
	dir := t.TempDir()
	fs.into(t, dir)
	r.cfg.Dir = dir
	return r, fs
}

func TestTornRecordIsCutAndTold(t *testing.T) {
	for _, c := range []struct {
		cut      int
		zeroes   int
		unsigned int64
	}{{0, 0, 2}, {1, 0, 1}, {40, 0, 1}, {0, 300, 2}, {0, 3, 2}} {
		r, _ := crashed(t, func(fs files) files {
			name := fs.segments()[2]
			b := fs[name][:len(fs[name])-c.cut]
			return fs.with(name, append(bytes.Clone(b), make([]byte, c.zeroes)...))
		})
		before := r.verified(r.cfg.Dir)
		if (before.Torn > 0) != (c.cut > 0 || c.zeroes > 0) {
			t.Fatalf("%+v", before)
		}
		r.reopen()
		r.log.Append(sample(1))
		r.close()
		if rep := r.verified(r.cfg.Dir); rep.LastSeq != before.LastSeq+2 {
			t.Fatalf("%+v after %+v", rep, before)
		}
		list := r.events(r.cfg.Dir)
		e := list[len(list)-2]
		if e.Kind != anomaly.Recovered || e.Numbers["unsigned"] != c.unsigned || e.Numbers["bytes"] != before.Torn {
			t.Fatalf("%+v", e)
		}
	}
}

func TestDamageIsSetAsideAndTold(t *testing.T) {
	for name, change := range map[string]func(fs files, last string) files{
		"a byte in the middle": func(fs files, last string) files {
			b := bytes.Clone(fs[last])
			b[700] ^= 1
			return fs.with(last, b)
		},
		"a length in the middle": func(fs files, last string) files {
			b := bytes.Clone(fs[last])
			b[len(records(b)[0])+32+2] ^= 2
			return fs.with(last, b)
		},
		"cut below HEAD": func(fs files, last string) files {
			return fs.with(last, fs[last][:len(records(fs[last])[0])+len(records(fs[last])[1])+64])
		},
		"emptied":              func(fs files, last string) files { return fs.with(last, []byte{}) },
		"last removed":         func(fs files, last string) files { return fs.with(last, nil) },
		"all removed but HEAD": func(fs files, _ string) files { return files{"HEAD": fs["HEAD"]} },
		"HEAD removed":         func(fs files, _ string) files { return fs.with("HEAD", nil) },
		"HEAD is not one":      func(fs files, _ string) files { return fs.with("HEAD", []byte("x")) },
		"killed while it set aside": func(fs files, last string) files {
			return fs.with(last, nil).with("0000000003.damaged", fs[last][:900])
		},
	} {
		t.Run(name, func(t *testing.T) {
			r, had := crashed(t, func(fs files) files { return change(fs, fs.segments()[2]) })
			r.reopen()
			r.log.Append(sample(1))
			r.close()
			r.reopen() // a second start finds nothing new
			r.close()
			rep := r.verify(r.cfg.Dir, nil)
			if rep.OK {
				t.Fatal("the damage is forgotten")
			}
			now := readFiles(t, r.cfg.Dir)
			for n, b := range had {
				if n != "HEAD" && !bytes.Equal(now[n], b) && !bytes.Equal(now["0000000003.damaged"], b) {
					t.Errorf("%s was changed or removed", n)
				}
			}
			damaged := 0
			seen := map[uint64]bool{}
			for _, e := range r.events(r.cfg.Dir) {
				if e.Kind == anomaly.Damaged {
					damaged++
				}
				if seen[e.Seq] {
					t.Errorf("event %d twice", e.Seq)
				}
				seen[e.Seq] = true
			}
			if damaged != 1 {
				t.Errorf("%d events say so", damaged)
			}
		})
	}
}
