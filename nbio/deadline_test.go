package nbio

import (
	"errors"
	"os"
	"testing"
	"time"
)

// The runtime is told of a later deadline only once the earlier one has passed:
// what waits meanwhile must not notice.
func TestADeadlineThatWasPutOffEndsNothingBefore(t *testing.T) {
	for _, later := range []time.Time{time.Now().Add(time.Hour), {}} {
		networks(t, func(t *testing.T, a, b wrapped) {
			for _, at := range []time.Time{time.Now().Add(20 * time.Millisecond), later} {
				if err := a.SetDeadline(at); err != nil {
					t.Fatal(err)
				}
			}
			wrote := make(chan error, 1)
			go func() { _, err := a.Write(make([]byte, 16<<20)); wrote <- err }()
			read := make(chan error, 1)
			go func() { _, err := a.Read(make([]byte, 1)); read <- err }()
			select { // both wait over the earlier deadline
			case err := <-wrote:
				t.Fatalf("the write ended: %v", err)
			case err := <-read:
				t.Fatalf("the read ended: %v", err)
			case <-time.After(100 * time.Millisecond):
			}
			if _, err := b.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			if err := <-read; err != nil {
				t.Fatal(err)
			}
			for left := 16 << 20; left > 0; {
				n, err := b.Read(make([]byte, 1<<20))
				if err != nil {
					t.Fatal(err)
				}
				left -= n
			}
			if err := <-wrote; err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestADeadlineThatWasPutOffHoldsInTheEnd(t *testing.T) {
	networks(t, func(t *testing.T, a, _ wrapped) {
		began := time.Now()
		for _, after := range []time.Duration{10 * time.Millisecond, time.Hour, 60 * time.Millisecond} {
			if err := a.SetReadDeadline(began.Add(after)); err != nil {
				t.Fatal(err)
			}
		}
		_, err := a.Read(make([]byte, 1))
		if took := time.Since(began); !errors.Is(err, os.ErrDeadlineExceeded) || took < 60*time.Millisecond || took > 10*time.Second {
			t.Fatalf("%v after %v", err, took)
		}
	})
}

func TestAPassedDeadlineIsForgottenWithTheNextOne(t *testing.T) {
	networks(t, func(t *testing.T, a, b wrapped) {
		if err := a.SetReadDeadline(time.Unix(1, 0)); err != nil {
			t.Fatal(err)
		}
		if _, err := a.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal(err)
		}
		if err := a.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := a.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	})
}

func TestAClosedConnectionTakesNoDeadline(t *testing.T) {
	networks(t, func(t *testing.T, a, _ wrapped) {
		if err := a.SetDeadline(time.Now().Add(time.Second)); err != nil {
			t.Fatal(err)
		}
		a.Close()
		if err := a.SetDeadline(time.Now().Add(time.Hour)); err == nil {
			t.Fatal("taken")
		}
	})
}
