package keybroker_test

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/sealed/unseal"
)

// childDir in the environment makes this test binary a broker that takes deposits
// and says which it acknowledged, until it is killed.
const childDir = "KEYBROKER_TEST_CHILD_DIR"

func TestKilledBrokerKeepsEveryAcknowledgedDeposit(t *testing.T) {
	killed(t, func(r *rig, seq uint64) []byte { return r.deposit(r.owner, r.descriptor(seq)) }, func(r *rig, last uint64) {
		// What was acknowledged refuses what is older, so it is there.
		if err := r.give(r.deposit(r.owner, r.descriptor(last))); api.CodeOf(err) != api.CodeConflict {
			t.Fatalf("sequence %d was acknowledged and is gone: %v", last, err)
		}
	})
}

func TestKilledBrokerKeepsEveryAcknowledgedTrafficStatement(t *testing.T) {
	// Descriptors at 100, 200, and so on, each with a statement that names the one before.
	pair := func(r *rig, n uint64) []*sealed.Descriptor {
		var list []*sealed.Descriptor
		for i := n; i <= n+1; i++ {
			list = append(list, r.descriptor(i*100, func(d *sealed.Descriptor) { d.Config.ExecMS = i }))
		}
		return list
	}
	killed(t, func(r *rig, n uint64) []byte {
		list := pair(r, n)
		return r.split(r.owner, r.traffic(list[1].Sequence+50, list...), list)
	}, func(r *rig, last uint64) {
		list := pair(r, last)
		if err := r.give(r.split(r.owner, r.traffic(list[1].Sequence+50, list...), list)); api.CodeOf(err) != api.CodeConflict {
			t.Fatalf("statement %d was acknowledged and is gone: %v", last, err)
		}
		// Descriptor, statement and both keys came together: of this one, or of the
		// one that was being written, which is looked at first: it names a descriptor of
		// the other one too.
		for _, n := range []uint64{last + 1, last} {
			list := pair(r, n)
			if r.released(list[1]) != nil {
				continue
			}
			if err := r.released(list[0]); err != nil {
				t.Fatalf("statement %d without the keys it names: %v", n, err)
			}
			return
		}
		t.Fatalf("the keys of statement %d are not released", last)
	})
}

// killed has a child of this test give a broker message after message, kills it with
// SIGKILL, twice, and checks each time what a broker makes of the vault. last is the
// number of the last message that was acknowledged.
func killed(t *testing.T, message func(r *rig, n uint64) []byte, check func(r *rig, last uint64)) {
	if os.Getenv(childDir) != "" {
		giveForEver(t, message)
		return
	}
	dir := t.TempDir()
	var last uint64
	for round := range 2 {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$")
		cmd.Env = append(os.Environ(), childDir+"="+dir, "KEYBROKER_TEST_FROM="+strconv.FormatUint(last, 10), "TMPDIR="+dir) // what it leaves goes with dir
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		acknowledged := 0
		for lines.Scan() {
			if n, ok := strings.CutPrefix(lines.Text(), "acknowledged "); ok {
				if last, err = strconv.ParseUint(n, 10, 64); err != nil {
					t.Fatal(err)
				}
				if acknowledged++; acknowledged == 10+round*7 {
					break
				}
			}
		}
		// SIGKILL, somewhere in the middle of the next one.
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		for lines.Scan() {
			if n, ok := strings.CutPrefix(lines.Text(), "acknowledged "); ok {
				last, _ = strconv.ParseUint(n, 10, 64)
			}
		}
		if err := cmd.Wait(); err == nil || acknowledged == 0 {
			t.Fatalf("the child ended by itself after %d deposits: %v", acknowledged, err)
		}
		r := newRig(t, func(r *rig) { r.dir, r.now = dir, time.Now() })
		if n, err := r.b.Functions(); n != 1 || err != nil {
			t.Fatalf("%d functions, %v", n, err)
		}
		r.owner, r.fn, r.old = ownerOf(t, dir, "owner"), ownerOf(t, dir, "fn"), ownerOf(t, dir, "old")
		check(r, last)
	}
}

func giveForEver(t *testing.T, message func(r *rig, n uint64) []byte) {
	r := newRig(t, func(r *rig) { r.dir, r.now = os.Getenv(childDir), time.Now() })
	r.owner, r.fn, r.old = ownerOf(t, r.dir, "owner"), ownerOf(t, r.dir, "fn"), ownerOf(t, r.dir, "old")
	from, err := strconv.ParseUint(os.Getenv("KEYBROKER_TEST_FROM"), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	for seq := from + 1; ; seq++ {
		if err := r.give(message(r, seq)); err != nil {
			// The one that was being written when the last child was killed.
			continue
		}
		fmt.Printf("acknowledged %d\n", seq)
	}
}

// ownerOf keeps one identity for all processes of the test.
func ownerOf(t *testing.T, dir, name string) *unseal.Identity {
	t.Helper()
	store, err := unseal.OpenKeystore(dir + "/owner")
	if err != nil {
		t.Fatal(err)
	}
	if names, _ := store.List(); !slices.Contains(names, name) {
		if err := store.Save(name, identity(t), pass, unseal.KeyFileOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	id, err := store.Load(name, pass)
	if err != nil {
		t.Fatal(err)
	}
	return id
}
