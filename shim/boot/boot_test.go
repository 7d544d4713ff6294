package boot

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v2"
	"google.golang.org/protobuf/proto"
)

func TestTheAnswerToDeleteIsContainerds(t *testing.T) {
	for _, e := range []Exit{
		{},
		{PID: 77, Code: 137, At: time.Unix(1700000000, 123456789)},
		{PID: 1<<32 - 1, Code: 255, At: time.Unix(1, 0)},
	} {
		var b bytes.Buffer
		if err := WriteExit(&b, e); err != nil {
			t.Fatal(err)
		}
		var r taskapi.DeleteResponse
		if err := proto.Unmarshal(b.Bytes(), &r); err != nil {
			t.Fatal(err)
		}
		if r.Pid != e.PID || r.ExitStatus != e.Code || !r.ExitedAt.AsTime().Equal(e.At) {
			t.Errorf("%+v became %v", e, &r)
		}
	}
}

func TestAnswersAndCommandsSurviveTheLine(t *testing.T) {
	want := Exit{PID: 7, Code: 137, At: time.Unix(5, 6)}
	if got, err := parseAnswer(Answer(want, nil)); err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := parseAnswer(Answer(Exit{}, errors.New("two\nlines"))); err == nil || !strings.Contains(err.Error(), "two; lines") {
		t.Errorf("an error became %v", err)
	}
	for _, line := range []string{"", "ok\n", "ok 1 2\n", "fine 1 2 3\n", "error\n"} {
		if e, err := parseAnswer(line); err == nil {
			t.Errorf("%q gave %+v", line, e)
		}
	}
	if c, err := ParseCommand("forget a-b /run/the bundle\n"); err != nil || c != (Command{Forget, "a-b", "/run/the bundle"}) {
		t.Errorf("%+v %v", c, err)
	}
	for _, line := range []string{"", "\n", "forget\n", "forget \n", "forget x\n", "forget x \n", "forget  /b\n", "delete x /b\n"} {
		if c, err := ParseCommand(line); err == nil {
			t.Errorf("%q was taken for %+v", line, c)
		}
	}
	for _, id := range []string{"", "a b", "a\nb"} {
		if _, err := (Group{}).command(Command{Forget, id, "/b"}, time.Second); err == nil || !strings.Contains(err.Error(), "cannot be named") {
			t.Errorf("id %q: %v", id, err)
		}
	}
}

func TestNamesOfGroups(t *testing.T) {
	a := Group{Address: "/run/" + strings.Repeat("long", 40), Namespace: strings.Repeat("n", 76), Dir: DefaultDir}
	if len(a.TaskSocket()) > 107 {
		t.Errorf("%s is too long for a socket", a.TaskSocket())
	}
	b := a
	b.Namespace += "x"
	if a.TaskSocket() == b.TaskSocket() || a.TaskSocket() == a.ControlSocket() {
		t.Error("two groups share a socket")
	}
}

func TestALockIsHeldByOne(t *testing.T) {
	g := Group{Address: "/a", Namespace: "n", Dir: t.TempDir()}
	one, err := g.Lock(true)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := g.Lock(false); !errors.Is(err, ErrBusy) {
		t.Errorf("a lock that is held: %v", err)
	}
	if err := one.Close(); err != nil {
		t.Fatal(err)
	}
	two, err := g.Lock(false)
	if err != nil {
		t.Fatal(err)
	}
	// One that waits while the holder removes the file gets a lock that holds.
	got := make(chan error, 1)
	go func() {
		three, err := g.Lock(true)
		if err == nil {
			if _, err := g.Lock(false); !errors.Is(err, ErrBusy) {
				t.Errorf("a lock that is held: %v", err)
			}
			err = three.Close()
		}
		got <- err
	}()
	if err := g.Retire(); err != nil {
		t.Fatal(err)
	}
	if err := two.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-got; err != nil {
		t.Error(err)
	}
}

// serve answers commands on the group's control socket.
func serve(t *testing.T, g Group, answer func(line string) string) {
	t.Helper()
	l, err := net.Listen("unix", g.ControlSocket())
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { _ = l.Close(); <-done })
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if line, err := bufio.NewReader(c).ReadString('\n'); err == nil {
				_, _ = c.Write([]byte(answer(line)))
			}
			_ = c.Close()
		}
	}()
}

func TestStartAnnouncesTheTaskAndRecordsTheAddress(t *testing.T) {
	g := Group{Address: "/a", Namespace: "n", Dir: t.TempDir()}
	bundle := t.TempDir()
	var heard []string
	serve(t, g, func(line string) string { heard = append(heard, line); return Answer(Exit{}, nil) })
	url, err := Start(g, "task1", bundle, Server{Program: "/does/not/exist"})
	if err != nil || url != g.URL() {
		t.Fatalf("%q, %v", url, err)
	}
	if b, err := os.ReadFile(filepath.Join(bundle, "address")); err != nil || string(b) != url {
		t.Errorf("the bundle says %q, %v", b, err)
	}
	if fmt.Sprint(heard) != "[expect task1 "+bundle+"\n]" {
		t.Errorf("the shim heard %q", heard)
	}
}

func TestAServerThatCannotBeStartedFailsTheStart(t *testing.T) {
	g := Group{Address: "/a", Namespace: "n", Dir: t.TempDir()}
	if _, err := Start(g, "task1", t.TempDir(), Server{Program: "/does/not/exist", Args: []string{"x"}}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	if _, err := os.Lstat(g.TaskSocket()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket of no server: %v", err)
	}
}

func TestDelete(t *testing.T) {
	g := Group{Address: "/a", Namespace: "n", Dir: t.TempDir()}
	bundle := t.TempDir()
	// Deleted already: nobody is asked.
	if e, err := Delete(g, "x", bundle); err != nil || e.Code != Killed {
		t.Errorf("%+v, %v", e, err)
	}
	if err := os.WriteFile(filepath.Join(bundle, "address"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Delete(g, "x", bundle); !errors.Is(err, ErrNotDone) {
		t.Errorf("without a shim: %v", err)
	}
	want := Exit{PID: 3, Code: 4, At: time.Unix(5, 0)}
	answers := []string{Answer(Exit{}, errors.New("busy")), "", Answer(want, nil)}
	serve(t, g, func(string) string { a := answers[0]; answers = answers[1:]; return a })
	for range 2 {
		if _, err := Delete(g, "x", bundle); !errors.Is(err, ErrNotDone) {
			t.Errorf("a shim that does not do it: %v", err)
		}
	}
	if e, err := Delete(g, "x", bundle); err != nil || e != want {
		t.Errorf("%+v, %v", e, err)
	}
	for range 2 {
		if err := Deleted(bundle); err != nil {
			t.Error(err)
		}
	}
}

// files are those of a group.
func files(t *testing.T, g Group) int {
	t.Helper()
	entries, err := os.ReadDir(g.Dir)
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func TestAKilledProcessIsBuried(t *testing.T) {
	g := Group{Address: "/a", Namespace: "n", Dir: t.TempDir()}
	lock, err := g.Lock(true)
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{g.TaskSocket(), g.ControlSocket()} {
		f, err := listen(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil { // as with the process: the file stays
			t.Fatal(err)
		}
	}
	if err := g.Bury(); err != nil || files(t, g) != 3 {
		t.Errorf("while another one is started: %v, %d files left", err, files(t, g))
	}
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := g.Bury(); err != nil || files(t, g) != 0 {
			t.Errorf("%v, %d files left", err, files(t, g))
		}
	}
	serve(t, g, func(string) string { return Answer(Exit{}, nil) })
	if err := g.Bury(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(g.ControlSocket()); err != nil {
		t.Errorf("one that serves: %v", err)
	}
}
