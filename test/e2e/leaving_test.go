package e2e

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/client"
	"github.com/faasd-sec/faasd-sec/local"
)

// leaving is a function with one slot, and a way to ask it for something.
type leaving struct {
	// begin asks /silent for a minute of silence, after a first event if first says
	// so. What it returns leaves.
	begin func(t *testing.T, first bool) (leave func())
	call  func(t *testing.T) string // /silent?working
}

// silence is the query for a minute of it.
func silence(first bool) string {
	if first {
		return "ms=60000&first"
	}
	return "ms=60000"
}

// leavingSealed asks by the client.
func leavingSealed(cl *client.Client, fn api.FunctionName) *leaving {
	return &leaving{begin: func(t *testing.T, first bool) func() {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		event := make(chan struct{})
		go func() {
			resp, err := cl.Invoke(ctx, fn, client.Request{Method: http.MethodGet, Path: "/silent", Query: silence(first)})
			if err == nil {
				_, err = bufio.NewReader(resp.Body).ReadString('\n')
				close(event)
				<-ctx.Done()
				_ = resp.Body.Close()
			}
			done <- err
		}()
		if first {
			<-event
		}
		return func() { cancel(); <-done }
	}, call: func(t *testing.T) string {
		resp, err := cl.Invoke(t.Context(), fn, client.Request{Path: "/silent", Query: "working"})
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}}
}

// oneSlot makes a function of which there is one replica with one slot.
func oneSlot(d *client.Deployment) {
	one := api.Pinned(1)
	d.Scale, d.MaxInFlight, d.Exec = &one, 1, 70*time.Second
}

// soon fails unless f comes true in this time.
func soon(t *testing.T, d time.Duration, what string, f func() bool) {
	t.Helper()
	began := time.Now()
	for !f() {
		if time.Since(began) > d {
			t.Fatalf("not within %v: %s", d, what)
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Logf("%s: after %v", what, time.Since(began).Round(10*time.Millisecond))
}

// TestSlotOfACallerWhoLeftIsFree has callers leave without a word while their
// function is silent for a minute, after its first event and before it, by every
// gateway there is. The slot is free within two seconds, and the function knows.
func TestSlotOfACallerWhoLeftIsFree(t *testing.T) {
	c := up(t, 1, func(cfg *local.Config) { cfg.Gateways = true })
	fn, direct := c.deploy(t, "leaving", oneSlot), c.deploy(t, "direct", oneSlot)
	c.pushTestImage(t, "plain/leaving")
	if status, b := c.putPlain(t, "plainly", api.Plain{Image: "plain/leaving", Env: map[string]string{"exec_timeout": "70s", "max_inflight": "1"},
		Labels: map[string]string{api.ScaleLabel + "min": "1", api.ScaleLabel + "max": "1"}}); status != http.StatusOK {
		t.Fatalf("%d %s", status, b)
	}
	via, err := client.New(client.Config{Gateway: c.Gateway(), Via: c.NodeGateway(1), Identity: c.id, Pins: c.pins})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(via.Close)
	proxied := proxied(t, c.client, fn)
	plain := func(url string) *leaving {
		host, path, _ := strings.Cut(strings.TrimPrefix(url, "http://"), "/")
		return &leaving{begin: func(t *testing.T, first bool) func() {
			conn, err := net.Dial("tcp", host)
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(conn, "GET /%s/silent?%s HTTP/1.1\r\nHost: localhost\r\n\r\n", path, silence(first))
			if first {
				resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
				if err == nil {
					_, err = bufio.NewReader(resp.Body).ReadString('\n')
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			return func() { conn.Close() }
		}, call: func(t *testing.T) string {
			resp, err := http.Get("http://" + host + "/" + path + "/silent?working")
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			b, err := io.ReadAll(resp.Body)
			if err != nil || resp.StatusCode != http.StatusOK {
				t.Fatalf("%d %s %v", resp.StatusCode, b, err)
			}
			return string(b)
		}}
	}
	for what, l := range map[string]*leaving{
		"sealed":            leavingSealed(c.client, fn),
		"node's gateway":    leavingSealed(via, direct),
		"plain":             plain(c.Gateway() + "/function/plainly"),
		"through the proxy": plain(strings.TrimSuffix(proxied, "/")),
	} {
		for _, first := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, first event %t", what, first), func(t *testing.T) {
				if n := l.call(t); n != "0" { // warm, from here on
					t.Fatalf("%s are under way already", n)
				}
				leave := l.begin(t, first)
				flying := func() float64 { return c.metric(t, "node-1", "faasd_sec_node_invocations_in_flight") }
				soon(t, 10*time.Second, "the function works", func() bool { return flying() == 1 })
				leave()
				soon(t, 2*time.Second, "the slot is free", func() bool { return flying() == 0 })
				soon(t, 2*time.Second, "the function knows", func() bool { return l.call(t) == "0" })
			})
		}
	}
	idleAgain(t, c)
	if n := c.metric(t, "coordinator", `faasd_sec_invocations_total{code="caller_gone"}`); n < 5 {
		t.Errorf("the coordinator counts %v callers that left", n)
	}
	if n := c.metric(t, "coordinator", `faasd_sec_invocations_total{code="node_lost"}`); n != 0 {
		t.Errorf("%v of them count as the loss of a node", n)
	}
}

// Between machines the end of a caller goes by TLS: to the node as to the
// coordinator.
func TestSlotOfACallerWhoLeftAnotherMachineIsFree(t *testing.T) {
	m := newMachines(t, 1)
	fn := m.deploy(t, "leaving", oneSlot)
	l := leavingSealed(m.client, fn)
	for _, first := range []bool{true, false} {
		if n := l.call(t); n != "0" {
			t.Fatalf("%s are under way already", n)
		}
		leave := l.begin(t, first)
		soon(t, 10*time.Second, "the function works", func() bool {
			st, err := m.client.Describe(t.Context(), fn)
			return err == nil && len(st.Sandboxes) == 1 && st.Sandboxes[0].InFlight == 1
		})
		leave()
		soon(t, 2*time.Second, "the slot is free", func() bool { return l.call(t) == "0" })
	}
}

// TestCallerWhoOnlyStoppedSendingIsAnswered is the other side: of a connection that
// was closed one way alone the rest of the reply comes, with silence in it.
func TestCallerWhoOnlyStoppedSendingIsAnswered(t *testing.T) {
	c := up(t, 1)
	c.pushTestImage(t, "plain/leaving")
	if status, b := c.putPlain(t, "plainly", api.Plain{Image: "plain/leaving"}); status != http.StatusOK {
		t.Fatalf("%d %s", status, b)
	}
	c.call(t, "plainly/silent?working", "")
	for _, query := range []string{"first&ms=3000", "ms=3000"} {
		conn := c.dial(t)
		fmt.Fprintf(conn, "GET /function/plainly/silent?%s HTTP/1.1\r\nHost: localhost\r\n\r\n", query)
		if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		br := bufio.NewReader(conn)
		resp, err := http.ReadResponse(br, nil)
		for err == nil && resp.StatusCode == http.StatusContinue {
			resp, err = http.ReadResponse(br, nil)
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		if err != nil || !strings.HasSuffix(string(b), "data: last\n\n") || strings.Contains(query, "first") != strings.HasPrefix(string(b), "data: first\n\n") {
			t.Errorf("%s: %q, %v", query, b, err)
		}
	}
}
