package keybroker_test

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed/unseal"
)

// childDir in the environment makes this test binary a broker that takes deposits
// and says which it acknowledged, until it is killed.
const childDir = "KEYBROKER_TEST_CHILD_DIR"

func TestKilledBrokerKeepsEveryAcknowledgedDeposit(t *testing.T) {
	if os.Getenv(childDir) != "" {
		depositForEver(t)
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
		// What was acknowledged refuses what is older, so it is there.
		r.owner = ownerOf(t, dir)
		if _, err := r.b.Deposit(bytes.NewReader(r.deposit(r.owner, r.descriptor(last)))); api.CodeOf(err) != api.CodeConflict {
			t.Fatalf("sequence %d was acknowledged and is gone: %v", last, err)
		}
	}
}

func depositForEver(t *testing.T) {
	r := newRig(t, func(r *rig) { r.dir, r.now = os.Getenv(childDir), time.Now() })
	r.owner = ownerOf(t, r.dir)
	from, err := strconv.ParseUint(os.Getenv("KEYBROKER_TEST_FROM"), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	for seq := from + 1; ; seq++ {
		d, err := r.b.Deposit(bytes.NewReader(r.deposit(r.owner, r.descriptor(seq))))
		if err != nil {
			// The one that was being written when the last child was killed.
			continue
		}
		fmt.Printf("acknowledged %d\n", d.Sequence)
	}
}

// ownerOf keeps one owner for all processes of the test.
func ownerOf(t *testing.T, dir string) *unseal.Identity {
	t.Helper()
	store, err := unseal.OpenKeystore(dir + "/owner")
	if err != nil {
		t.Fatal(err)
	}
	if names, _ := store.List(); len(names) == 0 {
		if err := store.Save("owner", identity(t), pass, unseal.KeyFileOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	id, err := store.Load("owner", pass)
	if err != nil {
		t.Fatal(err)
	}
	return id
}
