package node

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/runtime/runtimetest"
)

func recordOf(i int, until time.Time) taskRecord {
	r := taskRecord{until: until.UnixMilli()}
	binary.BigEndian.PutUint64(r.id[:], uint64(i)+1)
	return r
}

func (r taskRecord) text() string { return hex.EncodeToString(r.id[:]) }

// logAt opens a log that keeps what it is given over new files.
func logAt(t testing.TB, path string) *taskLog {
	t.Helper()
	until, _, err := readTasks(path, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	l := &taskLog{path: path, live: func() (out []taskRecord) {
		for id, at := range until {
			r := taskRecord{until: at.UnixMilli()}
			if _, err := hex.Decode(r.id[:], []byte(id)); err != nil {
				t.Fatal(err)
			}
			out = append(out, r)
		}
		return out
	}}
	if err := l.open(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.close)
	return l
}

func TestTaskIsRunOnceOverRestarts(t *testing.T) {
	w := newWorld(t)
	f := w.known("f")
	ran, refused := api.Needs{Task: strings.Repeat("0a", 16)}, api.Needs{Task: strings.Repeat("0b", 16)}
	if code, _ := w.ask(f, ran); code != "ok" {
		t.Fatal(code)
	}
	w.n.removeAll()
	w.fake.Fail(runtimetest.OpCreate, errors.New("no"))
	if code, _ := w.ask(f, refused); code != "start_failed" {
		t.Fatal(code)
	}
	// One that an agent gave back unopened has not run either.
	unopened := api.Needs{Task: strings.Repeat("0c", 16)}
	w.work = func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set(api.HeaderUnopened, "1")
		rw.WriteHeader(http.StatusServiceUnavailable)
	}
	if status, _, _ := w.do("POST", api.NodePathInvoke+f.target(), w.message(f, 10), api.HeaderNeeds, `{"task":"`+unopened.Task+`","resources":{}}`); status != http.StatusServiceUnavailable {
		t.Fatal(status)
	}
	w.work = nil
	for range 3 {
		w.crash()
		if code, refused := w.ask(f, ran); code != "replay" || refused {
			t.Errorf("after a crash: %s, refused %t", code, refused)
		}
	}
	for what, needs := range map[string]api.Needs{"refused": refused, "unopened": unopened} {
		if code, _ := w.ask(f, needs); code != "ok" {
			t.Errorf("a task that did not run (%s), after a crash: %s", what, code)
		}
	}
	w.empty()
}

func TestTaskThatCannotBeWrittenDownDoesNotRun(t *testing.T) {
	w := newWorld(t)
	f := w.known("f")
	id := api.Needs{Task: strings.Repeat("0d", 16)}
	// A directory in the place of the next file: the log is unsure, and cannot begin anew.
	path := filepath.Join(w.cfg.StateDir, taskFile)
	w.n.taskLog.disk.Lock()
	w.n.taskLog.unsure = true
	w.n.taskLog.disk.Unlock()
	if err := os.Mkdir(path+".new", 0o700); err != nil {
		t.Fatal(err)
	}
	if code, refused := w.ask(f, id); code != "unavailable" || !refused || w.delivered.Load() != 0 {
		t.Errorf("%s, refused %t, %d delivered", code, refused, w.delivered.Load())
	}
	if status, _, _ := w.invoke(f); status != 200 {
		t.Errorf("a plain invocation: %d", status)
	}
	if err := os.Remove(path + ".new"); err != nil {
		t.Fatal(err)
	}
	if code, _ := w.ask(f, id); code != "ok" {
		t.Errorf("once the disk takes it: %s", code)
	}
	w.crash()
	if code, _ := w.ask(f, id); code != "replay" {
		t.Errorf("after a crash: %s", code)
	}
	w.empty()
}

// Whatever a crash leaves of the last writes, what was said to be kept is found.
func TestTornTailIsNoTaskAndLosesNone(t *testing.T) {
	path := filepath.Join(t.TempDir(), taskFile)
	l, until := logAt(t, path), time.Now().Add(time.Hour)
	const n = 5
	for i := range n {
		if err := l.keep(recordOf(i, until)); err != nil {
			t.Fatal(err)
		}
	}
	l.close()
	if err := l.keep(recordOf(n, until)); err == nil {
		t.Error("kept after the end")
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	next := recordOf(n, until).append(nil)
	for cut := range len(next) {
		for _, tail := range [][]byte{next[:cut], append(next[:cut:cut], make([]byte, len(next)-cut)...)} {
			if err := os.WriteFile(path, append(whole[:len(whole):len(whole)], tail...), 0o600); err != nil {
				t.Fatal(err)
			}
			got, damaged, err := readTasks(path, time.Now())
			if err != nil || len(got) != n || (damaged > 0) != (len(tail) > 0) {
				t.Fatalf("%d bytes of a record, %d in all: %d tasks, %d damaged, %v", cut, len(tail), len(got), damaged, err)
			}
		}
	}
	// The next life appends behind nothing torn.
	l = logAt(t, path)
	if err := l.keep(recordOf(n, until)); err != nil {
		t.Fatal(err)
	}
	if got, damaged, err := readTasks(path, time.Now()); err != nil || damaged != 0 || len(got) != n+1 {
		t.Errorf("%d tasks, %d damaged, %v", len(got), damaged, err)
	}
	if err := os.WriteFile(path, []byte("something else"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := readTasks(path, time.Now()); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("another file in its place: %v", err)
	}
}

func TestTaskLogStaysSmall(t *testing.T) {
	path := filepath.Join(t.TempDir(), taskFile)
	l := logAt(t, path)
	var wg sync.WaitGroup
	for g := range 32 {
		wg.Go(func() {
			for i := range 1000 {
				if err := l.keep(recordOf(g*1000+i, time.Now().Add(time.Minute))); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	st, err := os.Stat(path)
	if err != nil || st.Size() > int64(len(taskLogMagic)+(taskLogSlack+32)*taskRecordSize) || st.Mode().Perm() != 0o600 {
		t.Errorf("%d bytes, %v, %v", st.Size(), st.Mode(), err)
	}
}

// The process that writes is killed within a write, over and over.
func TestKilledNodeFindsEveryTaskThatBegan(t *testing.T) {
	const env = "FAASD_SEC_TASKLOG"
	if path := os.Getenv(env); path != "" {
		l := logAt(t, path)
		start := time.Now().UnixNano()
		for g := range 4 {
			go func() {
				for i := 0; ; i++ {
					r := recordOf(int(start)+4*i+g, time.Now().Add(time.Hour))
					if err := l.keep(r); err != nil {
						fmt.Println("error", err)
						return
					}
					os.Stdout.WriteString(r.text() + "\n") // one write: it is there or not
				}
			}()
		}
		select {}
	}
	path := filepath.Join(t.TempDir(), taskFile)
	var began []string
	for round := range 5 {
		cmd := exec.Command(os.Args[0], "-test.run", "^"+t.Name()+"$")
		cmd.Env = append(os.Environ(), env+"="+path)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		in := bufio.NewScanner(out)
		for i := 0; i < 20+13*round && in.Scan(); i++ {
			began = append(began, in.Text())
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		for in.Scan() {
			began = append(began, in.Text())
		}
		if err := cmd.Wait(); err == nil {
			t.Fatal("it ended by itself")
		}
		known, _, err := readTasks(path, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		for _, id := range began {
			if _, ok := known[id]; !ok {
				t.Fatalf("round %d: task %q began, and is not known any more", round, id)
			}
		}
	}
	if len(began) < 100 {
		t.Errorf("only %d tasks began", len(began))
	}
}

// BenchmarkTaskKept is what being remembered costs a task: one alone, and many at
// once, who share the disk's time.
func BenchmarkTaskKept(b *testing.B) {
	for _, at := range []int{1, 16} {
		b.Run(fmt.Sprint(at), func(b *testing.B) {
			l := logAt(b, filepath.Join(b.TempDir(), taskFile))
			next := make(chan int)
			var wg sync.WaitGroup
			for range at {
				wg.Go(func() {
					for i := range next {
						if err := l.keep(recordOf(i, time.Now().Add(time.Minute))); err != nil {
							b.Error(err)
						}
					}
				})
			}
			for i := range b.N {
				next <- i
			}
			close(next)
			wg.Wait()
		})
	}
}
