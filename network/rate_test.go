package network

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"testing"
	"time"
)

func TestBothDirectionsAreShapedToTheirRates(t *testing.T) {
	r := newRig(t)
	for _, c := range []struct{ in, out int64 }{{20e6, 80e6}, {80e6, 20e6}} {
		t.Run(fmt.Sprintf("%d in %d out", c.in, c.out), func(t *testing.T) {
			w := want(world + "/32:5001/tcp")
			w.Ingress, w.Egress, w.Ports = c.in, c.out, []Port{{"tcp", 2400, 5000}}
			p, _ := r.attach("fast", w)
			defer r.detach("fast")
			within10(t, "ingress", c.in, rate(t, p.listen(t, "0.0.0.0:5000"), theWorld, hostOut+":2400"))
			// What the host itself sends is not let through faster.
			within10(t, "ingress from the host", c.in, rateFrom(t, p.listen(t, "0.0.0.0:5000"), fromHost, "127.0.0.1:2400"))
			within10(t, "egress", c.out, rate(t, theWorld.listen(t, world+":5001"), p, world+":5001"))
		})
	}
}

func within10(t *testing.T, what string, reserved int64, got float64) {
	t.Helper()
	off := got/float64(reserved) - 1
	t.Logf("%s: %.2f of %.0f Mbit/s, %+.1f %%", what, got/1e6, float64(reserved)/1e6, 100*off)
	if off > 0.1 || off < -0.1 {
		t.Errorf("%s: %.2f Mbit/s is not within 10 %% of %.0f", what, got/1e6, float64(reserved)/1e6)
	}
}

func rate(t *testing.T, l net.Listener, from *place, to string) float64 {
	t.Helper()
	return rateFrom(t, l, from.dial, to)
}

// rateFrom is the bits per second of TCP payload that the listener receives,
// over three seconds that begin after the first half.
func rateFrom(t *testing.T, l net.Listener, dial func(string, time.Duration) (net.Conn, error), to string) float64 {
	t.Helper()
	defer l.Close()
	out, err := dial(to, soon)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	in, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	go func() { // ends with the connection
		buf := make([]byte, 64<<10)
		for {
			if _, err := out.Write(buf); err != nil {
				return
			}
		}
	}()
	read := func(d time.Duration) (int64, time.Duration) {
		start := time.Now()
		in.SetReadDeadline(start.Add(d))
		n, err := io.Copy(io.Discard, in)
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("the connection ended: %v", err)
		}
		return n, time.Since(start)
	}
	read(500 * time.Millisecond)
	n, took := read(3 * time.Second)
	return float64(n) * 8 / took.Seconds()
}
