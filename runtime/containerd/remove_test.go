package containerd

import (
	"errors"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// containerd may be too slow, or away, when a sandbox is removed.
func TestARemoveThatFailedCanBeTriedAgain(t *testing.T) {
	eachShim(t, aRemoveThatFailedCanBeTriedAgain)
}

func aRemoveThatFailedCanBeTriedAgain(t *testing.T, b *bench) {
	r := b.open(t)
	spec := b.spec(t, r, b.basic(t, r))
	made, _ := b.start(t, r, spec)
	s := made.(*Sandbox)
	if err := s.proc.signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	select {
	case <-s.gone:
	case <-time.After(20 * time.Second):
		t.Fatal("its end is not seen")
	}
	usual := r.cfg.CallTimeout
	r.cfg.CallTimeout = 1
	err := s.Remove(t.Context(), 0)
	r.cfg.CallTimeout = usual
	if err == nil {
		t.Fatal("it was removed without containerd")
	}
	if err := s.Remove(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{spec.SocketDir, r.dir(s.ID())} {
		if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left: %v", dir, err)
		}
	}
}
