package client_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/client"
	"github.com/faasd-sec/faasd-sec/sealed"
)

// followed is a caller whose pins keep up with a file that others write.
type followed struct {
	*cluster
	t    *testing.T
	dir  string
	path string
	cl   *client.Client
	told []error
}

func follow(t *testing.T) *followed {
	t.Helper()
	c, _, _ := deployed(t)
	f := &followed{cluster: c, t: t, dir: t.TempDir()}
	f.path = filepath.Join(f.dir, client.PinsFile)
	pins, err := client.OpenPins(f.dir)
	if err != nil {
		t.Fatal(err)
	}
	pins.Follow(func(err error) { f.told = append(f.told, err) })
	f.cl = c.client(identity(t), func(cfg *client.Config) { cfg.Pins = pins })
	return f
}

// pin is what another process does.
func (f *followed) pin(what string, owner sealed.Fingerprint) {
	f.t.Helper()
	pins, err := client.OpenPins(f.dir)
	if err == nil {
		err = pins.SetOwner(f.URL, what, owner)
	}
	if err != nil {
		f.t.Fatal(err)
	}
}

func (f *followed) write(b []byte) {
	f.t.Helper()
	if err := os.WriteFile(f.path, b, 0o600); err != nil {
		f.t.Fatal(err)
	}
}

func (f *followed) wants(code api.Code) {
	f.t.Helper()
	res, err := f.cl.Invoke(f.t.Context(), fn, client.Request{})
	if err == nil {
		res.Body.Close()
	}
	wantCode(f.t, err, code)
}

func TestPinsThatFollowKnowWhoIsPinnedLater(t *testing.T) {
	f := follow(t)
	f.wants(api.CodeForbidden)
	f.pin(string(fn), f.Owner)
	f.wants("")
	f.pin(string(fn), sealed.Fingerprint{1}) // the descriptor is known by now
	f.wants(api.CodeForbidden)
	f.pin(string(fn), f.Owner)
	f.wants("")
	if err := os.Remove(f.path); err != nil {
		t.Fatal(err)
	}
	f.wants(api.CodeForbidden)
	if len(f.told) != 4 {
		t.Errorf("told %d times of four changes: %v", len(f.told), f.told)
	}
}

func TestABrokenFileLeavesThePinsAsTheyWere(t *testing.T) {
	f := follow(t)
	f.pin("openfaas-fn", f.Owner)
	f.wants("")
	good, err := os.ReadFile(f.path)
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"", "{", `{"version":99}`, string(good[:len(good)/2])} {
		f.told = nil
		f.write([]byte(bad))
		f.wants("")
		f.wants("")
		if len(f.told) != 1 || f.told[0] == nil {
			t.Errorf("%q: told %v", bad, f.told)
		}
	}
	if err := os.Remove(f.path); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(f.path, 0o700); err != nil { // what cannot be read is broken too
		t.Fatal(err)
	}
	f.wants("")
	if err := os.Remove(f.path); err != nil {
		t.Fatal(err)
	}
	f.told = nil
	f.write(good)
	f.wants("")
	if len(f.told) != 1 || f.told[0] != nil {
		t.Errorf("repaired: told %v", f.told)
	}
}

// A broken file adds nobody either.
func TestABrokenFileTrustsNobodyNew(t *testing.T) {
	f := follow(t)
	f.write([]byte(`{"version":1,"gateways":{"` + f.URL + `":{"owners":{"` + string(fn) + `":"` + f.Owner.String() + `"`))
	f.wants(api.CodeForbidden)
	f.wants(api.CodeForbidden)
	if len(f.told) != 1 || f.told[0] == nil {
		t.Errorf("told %v", f.told)
	}
}

// A change that the file's times and size do not show is found by who would be
// refused.
func TestAMissReadsTheFileWhateverItLooksLike(t *testing.T) {
	f := follow(t)
	f.pin(string(fn), sealed.Fingerprint{1})
	f.wants(api.CodeForbidden)
	before, err := os.Stat(f.path)
	if err != nil {
		t.Fatal(err)
	}
	other := t.TempDir()
	pins, err := client.OpenPins(other)
	if err == nil {
		err = pins.SetOwner(f.URL, string(fn), f.Owner)
	}
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(other, client.PinsFile))
	if err != nil {
		t.Fatal(err)
	}
	f.write(b) // in place
	if err := os.Chtimes(f.path, time.Time{}, before.ModTime()); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(f.path); err != nil || info.Size() != before.Size() || !info.ModTime().Equal(before.ModTime()) {
		t.Fatal("the file looks like another one")
	}
	f.wants("")
}

// What is pinned by a process that follows does not undo what others pinned.
func TestPinsThatFollowKeepWhatOthersPinned(t *testing.T) {
	dir := t.TempDir()
	mine, err := client.OpenPins(dir)
	if err != nil {
		t.Fatal(err)
	}
	mine.Follow(func(error) {})
	theirs, err := client.OpenPins(dir)
	if err == nil {
		err = theirs.SetOwner("http://g", "theirs", sealed.Fingerprint{1})
	}
	if err == nil {
		err = mine.SetOwner("http://g", "mine", sealed.Fingerprint{2})
	}
	if err != nil {
		t.Fatal(err)
	}
	if got, err := client.OpenPins(dir); err != nil || len(got.List()) != 2 {
		t.Errorf("%v, %v", got.List(), err)
	}
	if err := os.WriteFile(filepath.Join(dir, client.PinsFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := mine.SetOwner("http://g", "more", sealed.Fingerprint{3}); api.CodeOf(err) != api.CodeInvalid {
		t.Errorf("a broken file was written over: %v", err)
	}
}
