package opener

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/manifest"
	"github.com/faasd-sec/faasd-sec/manifest/ask"
	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/sealed/unseal"
)

type clock struct{ t time.Time }

func (c *clock) now() time.Time { return c.t }

func newOpener(t *testing.T, dir string, c *clock, pass string) (*Opener, error) {
	t.Helper()
	return New(Config{StateDir: dir, Passphrase: []byte(pass), KeyLife: 4 * time.Hour, Random: rand.Reader, Clock: c.now,
		Log: slog.New(slog.DiscardHandler)})
}

func mustOpener(t *testing.T, dir string, c *clock) *Opener {
	t.Helper()
	o, err := newOpener(t, dir, c, "correct horse")
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func closed(t *testing.T, o *Opener) {
	t.Helper()
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
}

func info(t *testing.T, o *Opener) []ask.Key {
	t.Helper()
	r, err := o.answer(mustRequest(t, &ask.Request{Version: ask.Version, Call: ask.CallInfo}))
	if err != nil {
		t.Fatal(err)
	}
	return r.Keys
}

func mustRequest(t *testing.T, q *ask.Request) []byte {
	t.Helper()
	b, err := ask.EncodeRequest(q)
	if err != nil {
		t.Fatal(err)
	}
	return b[4:]
}

func TestKeysRotateAndTwoAreLive(t *testing.T) {
	dir, c := t.TempDir(), &clock{time.Unix(1_800_000_000, 0)}
	o := mustOpener(t, dir, c)
	first := info(t, o)
	if len(first) != 1 || first[0].NotAfter-first[0].NotBefore != 4*3600 {
		t.Fatalf("%+v", first)
	}
	owner, err := unseal.NewIdentity(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	open := func(to sealed.PublicKey) error {
		m := &manifest.Manifest{Task: sealed.ID{1}, Suite: 1, Revision: sealed.Digest{2}}
		b, err := manifest.Seal(m, to, owner.Signer(), "f.ns", c.t, nil)
		if err != nil {
			t.Fatal(err)
		}
		_, err = o.answer(mustRequest(t, &ask.Request{Version: ask.Version, Call: ask.CallOpen, Function: "f.ns", Revision: sealed.Digest{2},
			Owner: owner.SigningKey().Fingerprint(), Sealed: b}))
		return err
	}
	step := func(d time.Duration) {
		c.t = c.t.Add(d)
		if err := o.rotate(); err != nil {
			t.Fatal(err)
		}
	}
	step(2*time.Hour - time.Second)
	if len(info(t, o)) != 1 {
		t.Error("a new key too early")
	}
	step(2 * time.Second)
	two := info(t, o)
	if len(two) != 2 || two[1].Public != first[0].Public || open(two[0].Public) != nil || open(two[1].Public) != nil {
		t.Fatalf("half way: %+v", two)
	}
	closed(t, o)
	o = mustOpener(t, dir, c) // a restart keeps both
	if err := open(two[1].Public); err != nil {
		t.Errorf("after a restart: %v", err)
	}
	same := func(a, b ask.Key) bool {
		return a.Public == b.Public && a.NotBefore == b.NotBefore && a.NotAfter == b.NotAfter && a.Identity == b.Identity && a.Verify()
	}
	if again := info(t, o); len(again) != 2 || !same(again[0], two[0]) || !same(again[1], two[1]) {
		t.Fatalf("after a restart: %+v", again)
	}
	step(2 * time.Hour)
	three := info(t, o)
	if len(three) != 2 || three[1].Public != two[0].Public {
		t.Fatalf("after a life: %+v", three)
	}
	if err := open(first[0].Public); api.CodeOf(err) != "unknown_key" {
		t.Errorf("a destroyed key opens: %v", err)
	}
	if files, _ := os.ReadDir(filepath.Join(dir, "keys")); len(files) != 2 {
		t.Errorf("%d key files", len(files))
	}
	// A clock set back brings nothing back and loses nothing.
	step(-10 * time.Hour)
	if len(info(t, o)) != 2 || o.now().Unix() != 1_800_000_000+4*3600+1 {
		t.Errorf("after the clock went back: %+v", info(t, o))
	}
	// Long asleep: all keys are over, a new one is there at once.
	step(100 * time.Hour)
	if k := info(t, o); len(k) != 1 || open(k[0].Public) != nil {
		t.Errorf("after a long sleep: %+v", k)
	}
	closed(t, o)
}

// A machine that starts with its clock years ahead draws a key of that time. Once the
// clock is right a restart must have a key for now.
func TestKeyDrawnByAClockThatWasAheadStandsInNobodysWay(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	dir, c := t.TempDir(), &clock{now.AddDate(10, 0, 0)}
	closed(t, mustOpener(t, dir, c))
	c.t = now
	o := mustOpener(t, dir, c)
	defer closed(t, o)
	if k := info(t, o); len(k) != 1 || k[0].NotBefore != uint64(now.Unix()) {
		t.Fatalf("live keys: %+v", k)
	}
	for range 6 { // there is room for the rotation beside it
		c.t = c.t.Add(2*time.Hour + time.Second)
		if err := o.rotate(); err != nil {
			t.Fatal(err)
		}
		if k := info(t, o); len(k) != 2 {
			t.Fatalf("live keys: %+v", k)
		}
	}
}

func TestDamagedStateIsRefusedNotReplaced(t *testing.T) {
	dir, c := t.TempDir(), &clock{time.Now()}
	closed(t, mustOpener(t, dir, c))
	if _, err := newOpener(t, dir, c, "another horse"); err == nil {
		t.Error("a wrong passphrase opened the keys")
	}
	if _, err := newOpener(t, dir, c, "short"); api.CodeOf(err) != api.CodeInvalid {
		t.Errorf("a short passphrase: %v", err)
	}
	left := filepath.Join(dir, "keys", ".123.tmp")
	if err := os.WriteFile(left, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	closed(t, mustOpener(t, dir, c))
	if _, err := os.Stat(left); err == nil {
		t.Error("what an interrupted write left is still there")
	}
	files, err := filepath.Glob(filepath.Join(dir, "keys", "*.key"))
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	b, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(dir, "keys", strings.Repeat("0", 32)+".key")
	for name, edit := range map[string]func() error{
		"a flipped bit": func() error {
			x := bytes.Clone(b)
			x[30] ^= 1
			return os.WriteFile(files[0], x, 0o600)
		},
		"cut":          func() error { return os.WriteFile(files[0], b[:10], 0o600) },
		"another name": func() error { return os.WriteFile(other, b, 0o600) },
	} {
		if err := edit(); err != nil {
			t.Fatal(err)
		}
		if _, err := newOpener(t, dir, c, "correct horse"); err == nil {
			t.Errorf("%s: opened", name)
		}
		if err := os.WriteFile(files[0], b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(other); err != nil {
		t.Fatal(err)
	}
	closed(t, mustOpener(t, dir, c))
}

// serve runs an opener's server in this process.
func serve(t *testing.T, cfg ServerConfig) (socket string) {
	t.Helper()
	dir := t.TempDir()
	o := mustOpener(t, filepath.Join(dir, "state"), &clock{time.Now()})
	socket = filepath.Join(dir, "run", "s")
	ln, err := Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]os.FileMode{socket: 0o600, filepath.Dir(socket): 0o700} {
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != want {
			t.Errorf("%s has mode %v, want %v", path, st.Mode(), want)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- o.Serve(ctx, ln, cfg) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		closed(t, o)
	})
	return socket
}

func dial(t *testing.T, socket string) net.Conn {
	t.Helper()
	c, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestStrangersAreHungUpOn(t *testing.T) {
	cfg := DefaultServerConfig(1)
	cfg.AllowedUIDs = []int{os.Geteuid() + 1}
	client, err := ask.New(ask.DefaultConfig(serve(t, cfg)))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if _, err := client.Info(t.Context()); api.CodeOf(err) != api.CodeUnavailable {
		t.Error(err)
	}
}

func TestClientTrustsOneUser(t *testing.T) {
	cfg := ask.DefaultConfig(serve(t, DefaultServerConfig(1)))
	cfg.ServerUID++
	client, err := ask.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if _, err := client.Info(t.Context()); api.CodeOf(err) != api.CodeUnavailable {
		t.Error(err)
	}
}

func TestBadFramesEndTheirConnectionAlone(t *testing.T) {
	cfg := DefaultServerConfig(1)
	cfg.Idle, cfg.Deadline = 30*time.Second, 100*time.Millisecond
	socket := serve(t, cfg)
	length := func(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }
	for name, raw := range map[string][]byte{
		"zero": length(0), "huge": length(1 << 31), "over": length(ask.MaxFrame + 1), "slow body": append(length(100), 1, 2, 3),
	} {
		c := dial(t, socket)
		if _, err := c.Write(raw); err != nil {
			t.Fatal(err)
		}
		if n, err := c.Read(make([]byte, 1)); err == nil || os.IsTimeout(err) || n != 0 {
			t.Errorf("%s: not hung up on: %v", name, err)
		}
	}
	cfg.Deadline = 30 * time.Second // whatever else the machine does
	c := dial(t, serve(t, cfg))
	for _, body := range [][]byte{[]byte("hello"), mustRequest(t, &ask.Request{Version: 9, Call: 1}),
		mustRequest(t, &ask.Request{Version: 1, Call: 9, Function: "f.ns", Revision: sealed.Digest{1}, Owner: sealed.Fingerprint{1}}),
		mustRequest(t, &ask.Request{Version: 1, Call: ask.CallOpen, Function: "F.ns", Revision: sealed.Digest{1}, Owner: sealed.Fingerprint{1}}),
		mustRequest(t, &ask.Request{Version: 1, Call: ask.CallOpen, Function: "f.ns", Owner: sealed.Fingerprint{1}})} {
		if _, err := c.Write(append(length(uint32(len(body))), body...)); err != nil {
			t.Fatal(err)
		}
		frame, err := ask.ReadFrame(c, make([]byte, ask.MaxFrame))
		if err != nil {
			t.Fatal(err)
		}
		r, err := ask.DecodeReply(frame)
		if err != nil || r.Code != string(api.CodeInvalid) {
			t.Errorf("%x: %+v, %v", body, r, err)
		}
	}
}

func TestConnectionsAreBounded(t *testing.T) {
	cfg := DefaultServerConfig(1)
	cfg.Conns, cfg.Idle = 2, 10*time.Second
	socket := serve(t, cfg)
	q, err := ask.EncodeRequest(&ask.Request{Version: 1, Call: ask.CallInfo})
	if err != nil {
		t.Fatal(err)
	}
	a, b, c := dial(t, socket), dial(t, socket), dial(t, socket)
	for _, x := range []net.Conn{a, b} {
		if _, err := x.Write(q); err != nil {
			t.Fatal(err)
		}
		if _, err := ask.ReadFrame(x, make([]byte, ask.MaxFrame)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.Write(q); err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(50 * time.Millisecond))
	if _, err := io.ReadFull(c, make([]byte, 1)); !os.IsTimeout(err) {
		t.Fatalf("a third connection was served: %v", err)
	}
	a.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := ask.ReadFrame(c, make([]byte, ask.MaxFrame)); err != nil {
		t.Errorf("it was not served after another left: %v", err)
	}
}

func FuzzAnswer(f *testing.F) {
	o, err := New(Config{StateDir: f.TempDir(), Passphrase: []byte("correct horse"), KeyLife: DefaultKeyLife, Random: rand.Reader, Clock: time.Now,
		Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { o.Close() })
	q, err := ask.EncodeRequest(&ask.Request{Version: 1, Call: ask.CallOpen, Function: "f.ns", Revision: sealed.Digest{1}, Owner: sealed.Fingerprint{1}, Sealed: []byte("FSG1"), Blob: []byte(blobMagic)})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(q[4:])
	out := make([]byte, ask.MaxFrame+4)
	f.Fuzz(func(t *testing.T, in []byte) {
		n := o.handle(in, out)
		if n < 5 || int(binary.BigEndian.Uint32(out)) != n-4 {
			t.Fatalf("a reply of %d bytes", n)
		}
		if _, err := ask.DecodeReply(out[4:n]); err != nil {
			t.Fatal(err)
		}
	})
}

// A directory that a group may enter, and not write to, is one that the operator
// made for a coordinator under another user.
func TestListenForAGroup(t *testing.T) {
	for mode, want := range map[os.FileMode]os.FileMode{0o750: 0o660, 0o770: 0, 0o755: 0} {
		dir := filepath.Join(t.TempDir(), "run")
		if err := errors.Join(os.Mkdir(dir, 0o700), os.Chmod(dir, mode)); err != nil {
			t.Fatal(err)
		}
		ln, err := Listen(filepath.Join(dir, "s"))
		if want == 0 {
			if err == nil {
				t.Errorf("mode %v is taken", mode)
				ln.Close()
			}
			continue
		}
		if err != nil {
			t.Fatalf("mode %v: %v", mode, err)
		}
		if st, err := os.Stat(filepath.Join(dir, "s")); err != nil || st.Mode().Perm() != want {
			t.Errorf("mode %v: the socket has %v, want %v", mode, st.Mode().Perm(), want)
		}
		ln.Close()
	}
}
