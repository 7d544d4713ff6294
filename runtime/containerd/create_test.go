package containerd

import (
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/runtime/runtimetest"
)

func TestASandboxAnswersOnItsSocket(t *testing.T) {
	b := need(t)
	r := b.open(t)
	s, a := b.start(t, r, b.spec(t, r, b.basic(t, r)))
	if _, err := a.Do(runtimetest.Command{Do: "ping"}); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(t.Context(), time.Second); err != nil {
		t.Fatal(err)
	}
}
