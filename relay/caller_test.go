package relay

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
)

// silent is an upstream that sends its first events and then nothing until its
// test goes on, or its caller is gone.
type silent struct {
	first string        // sent at once; "" not even a header
	next  chan string   // then these, until it is closed
	gone  chan struct{} // closed when the request ended under it
}

func newSilent(first string) *silent {
	return &silent{first: first, next: make(chan string, 16), gone: make(chan struct{})}
}

func (s *silent) serve(w http.ResponseWriter, r *http.Request) {
	if strings.HasSuffix(r.URL.Path, "/quick") {
		io.WriteString(w, "quick")
		return
	}
	io.Copy(io.Discard, r.Body)
	if s.first != "" {
		w.Header().Set("Content-Type", "text/event-stream")
		io.WriteString(w, s.first)
		w.(http.Flusher).Flush()
	}
	for {
		select {
		case <-r.Context().Done():
			close(s.gone)
			return
		case text, ok := <-s.next:
			if !ok {
				return
			}
			io.WriteString(w, text)
			w.(http.Flusher).Flush()
		}
	}
}

// leaves reports whether the upstream is told in time.
func (s *silent) leaves(t *testing.T, w *world) {
	t.Helper()
	select {
	case <-s.gone:
	case <-time.After(15 * time.Second): // far below the exchange's own end
		t.Fatal("the upstream works on for nobody")
	}
	w.settled()
}

// stays fails if the upstream is cut off within some looks.
func (s *silent) stays(t *testing.T) {
	t.Helper()
	select {
	case <-s.gone:
		t.Fatal("a caller that still reads was taken for one that left")
	case <-time.After(3 * lookEvery): // nothing is to happen
	}
}

func (w *world) dial(request string) net.Conn {
	w.t.Helper()
	network := "tcp"
	if strings.HasPrefix(w.gateway, "/") {
		network = "unix"
	}
	c, err := net.Dial(network, w.gateway)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { c.Close() })
	w.send(c, request)
	return c
}

func (w *world) send(c net.Conn, request string) {
	w.t.Helper()
	if err := c.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		w.t.Fatal(err)
	}
	if _, err := io.WriteString(c, request); err != nil {
		w.t.Fatal(err)
	}
}

const (
	request = "POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"
	quick   = "POST /quick HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"
)

// reply reads a reply's head, and its first event.
func reply(t *testing.T, br *bufio.Reader, event string) *http.Response {
	t.Helper()
	res, err := http.ReadResponse(br, nil)
	for err == nil && res.StatusCode == 100 {
		res, err = http.ReadResponse(br, nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(event))
	if _, err := io.ReadFull(res.Body, got); err != nil || string(got) != event {
		t.Fatalf("%q, %v", got, err)
	}
	return res
}

func rest(t *testing.T, res *http.Response, want string) {
	t.Helper()
	if b, err := io.ReadAll(res.Body); err != nil || string(b) != want {
		t.Fatalf("%q, %v, want %q", b, err, want)
	}
}

func TestCallerThatLeavesASilentStreamEndsIt(t *testing.T) {
	for _, how := range []string{"closes", "resets"} {
		s := newSilent("first")
		w := newWorld(t, s.serve)
		c := w.dial(request)
		reply(t, bufio.NewReader(c), "first")
		if how == "resets" {
			c.(*net.TCPConn).SetLinger(0)
		}
		c.Close()
		s.leaves(t, w)
		if code := api.CodeOf(w.lastErr.get()); code != api.CodeCallerGone {
			t.Errorf("%s: %v", how, w.lastErr.get())
		}
	}
}

func TestCallerThatLeavesBeforeAReplyEndsItsExchange(t *testing.T) {
	s := newSilent("")
	w := newWorld(t, s.serve)
	w.dial(request).Close()
	s.leaves(t, w)
	eventually(t, "the exchange is told why", func() bool { return api.CodeOf(w.sendErr.get()) == api.CodeCallerGone })
}

// A large body goes another way through the relay.
func TestCallerThatLeavesAfterALargeBodyEndsItsExchange(t *testing.T) {
	for _, first := range []string{"", "first"} {
		s := newSilent(first)
		w := newWorld(t, s.serve)
		n := SmallBody + 10
		c := w.dial(fmt.Sprintf("POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", n, strings.Repeat("x", n)))
		if first != "" {
			reply(t, bufio.NewReader(c), first)
		}
		c.Close()
		s.leaves(t, w)
	}
}

// Who has only closed its sending half gets all of its reply.
func TestCallerThatOnlyStopsSendingGetsItsReply(t *testing.T) {
	for _, first := range []string{"", "first"} {
		s := newSilent(first)
		w := newWorld(t, s.serve)
		c := w.dial(request)
		br := bufio.NewReader(c)
		if err := c.(*net.TCPConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		s.stays(t)
		var res *http.Response
		if first != "" {
			res = reply(t, br, first)
			s.stays(t)
		}
		want := ""
		for i := range 3 {
			piece := strings.Repeat(fmt.Sprint(i), 1<<i*10)
			s.next <- piece
			want += piece
			time.Sleep(lookEvery + lookAfter) // a pause in which it is asked
		}
		close(s.next)
		if res == nil {
			res = reply(t, br, "")
		}
		rest(t, res, want)
		w.settled()
		if err := w.lastErr.get(); err != nil {
			t.Errorf("first %q: %v", first, err)
		}
	}
}

// One that stops sending, and leaves later.
func TestCallerThatStopsSendingAndThenLeavesEndsItsExchange(t *testing.T) {
	s := newSilent("first")
	w := newWorld(t, s.serve)
	c := w.dial(request)
	reply(t, bufio.NewReader(c), "first")
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	s.stays(t)
	c.Close()
	s.next <- "more" // each pause is asked about anew
	s.leaves(t, w)
}

// What a caller sends early is its next request, and is served after the reply that
// it waits for: nobody reads it before.
func TestRequestsThatCameEarlyAreServedInTheirTurn(t *testing.T) {
	s := newSilent("first")
	w := newWorld(t, s.serve)
	c := w.dial(request + quick)
	br := bufio.NewReader(c)
	res := reply(t, br, "first")
	w.send(c, quick) // and one while the reply flows
	s.stays(t)
	close(s.next)
	rest(t, res, "")
	for range 2 {
		rest(t, reply(t, br, ""), "quick")
	}
	w.settled()
}

// Nothing goes before or into the reply to the request before.
func TestRequestsInOneGoAndAnEndGetTheirReplies(t *testing.T) {
	s := newSilent("")
	w := newWorld(t, s.serve)
	c := w.dial(quick + quick + request)
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	s.stays(t)
	s.next <- "slow"
	close(s.next)
	br := bufio.NewReader(c)
	for i, want := range []string{"quick", "quick", "slow"} {
		res, err := http.ReadResponse(br, nil)
		if err == nil && i == 2 && res.StatusCode == http.StatusContinue {
			res, err = http.ReadResponse(br, nil)
		}
		if err != nil || res.StatusCode != http.StatusOK {
			t.Fatalf("reply %d: %+v, %v", i, res, err)
		}
		rest(t, res, want)
	}
}

func TestCallerThatLeavesOnAKeptConnectionEndsItsExchange(t *testing.T) {
	s := newSilent("")
	w := newWorld(t, s.serve)
	c := w.dial(quick)
	rest(t, reply(t, bufio.NewReader(c), ""), "quick")
	w.send(c, request)
	c.Close()
	s.leaves(t, w)
}

func TestUnixSocketsTellWhoLeftFromWhoStoppedSending(t *testing.T) {
	for _, first := range []string{"", "first"} {
		s := newSilent(first)
		w := newWorld(t, s.serve, func(w *world) {
			ln, err := net.Listen("unix", filepath.Join(t.TempDir(), "gw.sock"))
			if err != nil {
				t.Fatal(err)
			}
			w.ln = ln
		})
		c := w.dial(request)
		br := bufio.NewReader(c)
		if first != "" {
			reply(t, br, first)
		}
		if err := c.(*net.UnixConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		s.stays(t)
		if n := br.Buffered(); n > 0 {
			t.Errorf("%d bytes were sent to find out", n)
		}
		c.Close()
		s.leaves(t, w)
	}
}

// A process of ours never stops sending alone: on any request of a connection.
func TestProcessOfOursThatStopsSendingIsGone(t *testing.T) {
	s := newSilent("")
	w := newWorld(t, s.serve, func(w *world) { w.ours = true })
	c := w.dial(quick)
	rest(t, reply(t, bufio.NewReader(c), ""), "quick")
	w.send(c, request)
	c.Close()
	s.leaves(t, w)
}

func TestCallerThatLeavesATLSConnectionIsGone(t *testing.T) {
	for _, first := range []string{"", "first"} {
		s := newSilent(first)
		w := newWorld(t, s.serve, func(w *world) {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			w.ln = tls.NewListener(ln, &tls.Config{Certificates: []tls.Certificate{certificate(t)}})
		})
		c, err := tls.Dial("tcp", w.gateway, &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		w.send(c, request)
		if first != "" {
			reply(t, bufio.NewReader(c), first)
		}
		c.Close()
		s.leaves(t, w)
	}
}

func certificate(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(1)}, &x509.Certificate{}, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}
