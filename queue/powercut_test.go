package queue

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/blob"
	"github.com/faasd-sec/faasd-sec/store"
)

const writerEnv = "FAASD_SEC_TEST_QUEUE_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(writerEnv); dir != "" {
		if err := acceptUntilKilled(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(2)
		}
		return
	}
	os.Exit(m.Run())
}

// acceptUntilKilled is the child process. It accepts calls and finishes some of
// them, and tells of each step once it was acknowledged.
func acceptUntilKilled(dir string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	s, err := store.Open(ctx, store.DefaultConfig(filepath.Join(dir, "etcd"), slog.New(slog.DiscardHandler)))
	if err != nil {
		return err
	}
	etcd, prefix := s.Etcd()
	q, err := Open(ctx, etcd, DefaultConfig("a", prefix, slog.New(slog.DiscardHandler)))
	if err != nil {
		return err
	}
	blobs, err := blob.Open(filepath.Join(dir, "blobs"), 1<<20)
	if err != nil {
		return err
	}
	go func() { _ = q.Run(ctx) }()
	var out sync.Mutex
	say := func(what, id string) {
		out.Lock()
		defer out.Unlock()
		fmt.Println(what, id)
	}
	var n atomic.Int64
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for ctx.Err() == nil {
				i := n.Add(1)
				c := call(fmt.Sprintf("%06d", i))
				body := []byte(strings.Repeat(c.ID, 100))
				if i%50 == 0 { // a large one
					digest, size, release, err := blobs.Put(strings.NewReader(strings.Repeat(c.ID, 20_000)))
					if err != nil {
						return
					}
					c.Body.Blob, c.Body.Size, body = digest, size, nil
					_, _, err = q.Accept(ctx, c, nil, Key{})
					release()
					if err == nil {
						say("blob", c.ID+" "+digest)
					}
					continue
				}
				if _, _, err := q.Accept(ctx, c, body, Key{}); err == nil {
					say("accepted", c.ID)
				}
			}
		})
	}
	for range 4 {
		wg.Go(func() {
			for ctx.Err() == nil {
				turn, _ := q.Next()
				if turn == nil {
					time.Sleep(time.Millisecond)
					continue
				}
				l, err := turn.Claim(ctx)
				if err != nil {
					continue
				}
				if err := l.Finish(ctx, Result{Status: 200}, []byte("result of "+l.Call.ID)); err == nil {
					say("finished", l.Call.ID)
				}
			}
		})
	}
	wg.Wait()
	return ctx.Err()
}

// loopMount makes an ext4 in a file and mounts it; image is the file.
func loopMount(t *testing.T, image, at string) {
	t.Helper()
	if err := os.MkdirAll(at, 0o700); err != nil {
		t.Fatal(err)
	}
	if b, err := exec.CommandContext(t.Context(), "mount", "-o", "loop", image, at).CombinedOutput(); err != nil {
		if os.Getenv("REQUIRE_ALL") == "" {
			t.Skipf("mount: %v %s", err, b)
		}
		t.Fatalf("mount: %v %s", err, b)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if b, err := exec.CommandContext(ctx, "umount", at).CombinedOutput(); err != nil {
			t.Errorf("umount %s: %v %s", at, err, b)
		}
	})
}

// What was acknowledged before the power went is there afterwards: the backing
// file of a stopped writer's file system is what a disk would hold, without what
// only the page cache of the file system has.
func TestPowerCutLosesNoAcceptedCall(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("REQUIRE_ALL") != "" {
			t.Fatal("needs root")
		}
		t.Skip("needs root")
	}
	dir := t.TempDir()
	image := filepath.Join(dir, "disk")
	f, err := os.Create(image)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(1 << 30); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if b, err := exec.CommandContext(t.Context(), "mkfs.ext4", "-q", image).CombinedOutput(); err != nil {
		if os.Getenv("REQUIRE_ALL") == "" {
			t.Skipf("mkfs.ext4: %v %s", err, b)
		}
		t.Fatalf("mkfs.ext4: %v %s", err, b)
	}
	loopMount(t, image, filepath.Join(dir, "live"))

	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	child := exec.CommandContext(ctx, os.Args[0], "-test.run=^$")
	child.Env = append(os.Environ(), writerEnv+"="+filepath.Join(dir, "live"))
	child.Stderr = t.Output()
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	steps := map[string][]string{}
	lines := bufio.NewScanner(out)
	count := 0
	for lines.Scan() {
		what, rest, _ := strings.Cut(lines.Text(), " ")
		steps[what] = append(steps[what], rest)
		if count++; count == 4000 {
			if err := child.Process.Signal(syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			break
		}
	}
	if count < 4000 {
		t.Fatalf("only %d steps: %v", count, child.Wait())
	}
	// What it said before it stopped and we did not read yet was acknowledged too,
	// but need not be looked at. Nothing writes now.
	copied := filepath.Join(dir, "copy")
	if err := copyFile(image, copied); err != nil {
		t.Fatal(err)
	}
	_ = child.Process.Kill()
	_, _ = io.Copy(io.Discard, out)
	_ = child.Wait()

	loopMount(t, copied, filepath.Join(dir, "after"))
	blobs, err := blob.Open(filepath.Join(dir, "after", "blobs"), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	etcd, prefix := etcdOf(t, filepath.Join(dir, "after", "etcd"))
	m := open(t, etcd, prefix, "a")
	for _, id := range steps["accepted"] {
		s, err := m.State(t.Context(), id)
		if err != nil {
			t.Fatalf("accepted call %s: %v", id, err)
		}
		if s.Waiting != nil {
			if b, err := m.Body(t.Context(), id); err != nil || string(b) != strings.Repeat(id, 100) {
				t.Fatalf("body of %s: %d bytes, %v", id, len(b), err)
			}
		}
	}
	for _, id := range steps["finished"] {
		s, err := m.State(t.Context(), id)
		if err != nil || s.Result == nil {
			t.Fatalf("finished call %s: %+v, %v", id, s, err)
		}
	}
	for _, rest := range steps["blob"] {
		id, digest, _ := strings.Cut(rest, " ")
		if s, err := m.State(t.Context(), id); err != nil {
			t.Fatalf("call %s: %+v, %v", id, s, err)
		}
		r, err := blobs.Get(digest)
		if err != nil {
			t.Fatalf("body of %s: %v", id, err)
		}
		b, err := io.ReadAll(r)
		if err != nil || string(b) != strings.Repeat(id, 20_000) {
			t.Errorf("body of %s: %d bytes, %v", id, len(b), err)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
	t.Logf("acknowledged before the cut and there after it: %d accepted, %d with a large body, %d finished", len(steps["accepted"]), len(steps["blob"]), len(steps["finished"]))
}

func copyFile(from, to string) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.Create(to)
	if err != nil {
		return err
	}
	if _, err := io.Copy(dst, src); err != nil {
		dst.Close()
		return err
	}
	return dst.Close()
}
