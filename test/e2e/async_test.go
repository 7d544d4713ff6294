package e2e

import (
	"context"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/emmansun/gmsm/sm3"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/client"
	"github.com/faasd-sec/faasd-sec/coordinator"
	"github.com/faasd-sec/faasd-sec/local"
	"github.com/faasd-sec/faasd-sec/sealed"
)

// later sends an asynchronous call.
func (c *cluster) later(t testing.TB, fn api.FunctionName, body string, how client.Later) *client.Pending {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	p, err := c.client.InvokeLater(ctx, fn, client.Request{Body: strings.NewReader(body)}, how)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// outcome waits for a call's result and opens it.
func (c *cluster) outcome(t testing.TB, p *client.Pending) (*client.Response, []byte, error) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		resp, err := c.client.Result(t.Context(), p)
		if errors.Is(err, client.ErrNotYet) && time.Now().Before(deadline) {
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		b, err := io.ReadAll(resp.Body)
		return resp, b, errors.Join(err, resp.Body.Close())
	}
}

func queued(d *client.Deployment) { d.MaxQueued = time.Hour }

func TestAsynchronousCallsAreRunAndTheirResultsOpened(t *testing.T) {
	got := make(chan *http.Request, 4)
	bodies := make(chan []byte, 4)
	receiver := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		bodies <- b
		got <- r
	}))
	defer receiver.Close()
	c := up(t, 1, func(cfg *local.Config) { cfg.Args = []string{"-callback-allow", "127.0.0.0/8"} })
	fn := c.deploy(t, "echo", queued)

	t.Run("small, large and very large", func(t *testing.T) {
		for _, size := range []int{5, 200 << 10, 3 << 20} {
			body := strings.Repeat("x", size)
			p := c.later(t, fn, body, client.Later{})
			saved, err := c.client.Marshal(p)
			if err != nil {
				t.Fatal(err)
			}
			if p, err = c.client.Unmarshal(saved); err != nil {
				t.Fatal(err)
			}
			for range 2 { // as often as one likes
				resp, b, err := c.outcome(t, p)
				if err != nil || resp.Status != 200 || string(b) != body {
					t.Fatalf("%d bytes: %+v, %d back, %v", size, resp, len(b), err)
				}
			}
		}
	})
	t.Run("callback", func(t *testing.T) {
		p := c.later(t, fn, "hello", client.Later{Callback: receiver.URL + "/done?x=1", Once: true})
		var r *http.Request
		var body []byte
		select {
		case body = <-bodies:
			r = <-got
		case <-time.After(20 * time.Second):
			t.Fatal("nobody called back")
		}
		h := r.Header
		if h.Get(api.HeaderCallID) != p.CallID || h.Get(api.HeaderFunctionName) != "echo" || h.Get(api.HeaderFunctionStatus) != "200" || h.Get(api.HeaderDuration) == "" {
			t.Errorf("%v", h)
		}
		resp, err := c.client.Opened(p, body)
		if err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(resp.Body); err != nil || string(b) != "hello" {
			t.Errorf("%q, %v", b, err)
		}
		keys, err := c.client.CallbackKeys(t.Context())
		if err != nil || len(keys.Keys) != 1 {
			t.Fatal(keys, err)
		}
		pub, err := sealed.ParsePublicKeyText(keys.Keys[0].Public)
		if err != nil || pub.Fingerprint().String() != h.Get(api.HeaderSignatureKey) {
			t.Fatal(err, h)
		}
		sig, err := hex.DecodeString(h.Get(api.HeaderSignature))
		if err != nil {
			t.Fatal(err)
		}
		sum := sm3.Sum(body)
		signed := coordinator.CallbackMessage(h.Get(api.HeaderTimestamp), receiver.URL+"/done?x=1", p.CallID, "echo", "200", api.ContentTypeSealed, hex.EncodeToString(sum[:]))
		if !sealed.Verify(pub, sig, coordinator.LabelCallback, signed) {
			t.Error("the callback's signature does not hold")
		}
	})
	t.Run("cancelled while it runs", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		p, err := c.client.InvokeLater(ctx, fn, client.Request{Path: "/sleep", Query: "ms=5000"}, client.Later{})
		if err != nil {
			t.Fatal(err)
		}
		if err := c.client.CancelCall(ctx, p.CallID); err != nil {
			t.Fatal(err)
		}
		if _, _, err := c.outcome(t, p); api.CodeOf(err) != api.CodeCancelled {
			t.Error(err)
		}
	})
	t.Run("a stranger's key neither cancels nor looks", func(t *testing.T) {
		other := newOwner(t, c.Cluster)
		p := c.later(t, fn, "mine", client.Later{})
		if err := other.client.CancelCall(t.Context(), p.CallID); api.CodeOf(err) != api.CodeForbidden && api.CodeOf(err) != api.CodeConflict {
			t.Error(err)
		}
		if _, err := other.client.AsyncCall(t.Context(), p.CallID); api.CodeOf(err) != api.CodeForbidden {
			t.Error(err)
		}
	})
	t.Run("accepted, then the coordinator is killed", func(t *testing.T) {
		var ps []*client.Pending
		for i := range 20 {
			ps = append(ps, c.later(t, fn, strconv.Itoa(i), client.Later{}))
		}
		c.kill(t, "coordinator", syscall.SIGKILL)
		c.served(t, "coordinator")
		for i, p := range ps {
			_, b, err := c.outcome(t, p)
			if api.CodeOf(err) == api.CodeReplay { // it ran, and its result went with the daemon
				continue
			}
			if err != nil || string(b) != strconv.Itoa(i) {
				t.Errorf("%d: %q, %v", i, b, err)
			}
		}
	})
}

// asyncCount is how many calls the test with kills makes: FAASD_SEC_ASYNC_CALLS, or
// 50,000.
func asyncCount(t testing.TB) int {
	text := os.Getenv("FAASD_SEC_ASYNC_CALLS")
	if text == "" {
		return 50_000
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("FAASD_SEC_ASYNC_CALLS=%q: write a number", text)
	}
	return n
}

// TestKilledDaemonsLoseNoAcceptedCall sends many calls while one daemon after the
// other is killed: each that was accepted ends in a result or a dead letter.
func TestKilledDaemonsLoseNoAcceptedCall(t *testing.T) {
	n := asyncCount(t)
	c := up(t, 2)
	fn := c.deploy(t, "echo", queued)
	c.must(t, fn, "/", "warm")

	var mu sync.Mutex
	accepted := make(map[string]*client.Pending, n)
	next := make(chan int)
	var senders sync.WaitGroup
	began := time.Now()
	for range 32 {
		senders.Go(func() {
			for i := range next {
				for { // what was refused, or of unknown fate, is sent anew under another id
					ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
					p, err := c.client.InvokeLater(ctx, fn, client.Request{Body: strings.NewReader(strconv.Itoa(i))}, client.Later{})
					cancel()
					if err == nil {
						mu.Lock()
						accepted[p.CallID] = p
						mu.Unlock()
						break
					}
					if t.Context().Err() != nil {
						return
					}
					time.Sleep(50 * time.Millisecond)
				}
			}
		})
	}
	victims := []string{"coordinator", "node-1", "keybroker", "node-2", "manifest-opener"}
	for i := range n {
		if i > 0 && i%(n/(len(victims)+1)) == 0 && i/(n/(len(victims)+1)) <= len(victims) {
			victim := victims[i/(n/(len(victims)+1))-1]
			c.kill(t, victim, syscall.SIGKILL)
			if victim == "coordinator" {
				c.served(t, victim)
			}
		}
		next <- i
	}
	close(next)
	senders.Wait()
	sent := time.Since(began)
	if len(accepted) != n {
		t.Fatalf("%d accepted, %d sent", len(accepted), n)
	}
	within(t, 8*time.Minute, "nothing waits or runs", func() bool {
		calls, err := c.client.AsyncCalls(t.Context(), url.Values{"limit": {"1"}})
		return err == nil && len(calls) == 0
	})
	ended := time.Since(began)
	done, dead, attempts := 0, map[string]int{}, 0
	for id := range accepted { // unsigned: a result is sealed to who may read it
		resp, err := quick.Get(c.gateway + api.GatewayPathResults + id)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		n, _ := strconv.Atoi(resp.Header.Get(api.HeaderAttempts))
		attempts += n
		switch {
		case err == nil && resp.StatusCode == 200 && len(b) > 0:
			done++
		case err == nil && resp.Header.Get(api.HeaderState) == api.AsyncDead:
			dead[string(api.ParseProblem(resp.StatusCode, b).Code)]++
		default:
			t.Errorf("accepted call %s: %d %s %v", id, resp.StatusCode, b, err)
		}
	}
	opened := 0
	for _, p := range accepted {
		if opened++; opened > 100 {
			break
		}
		if _, _, err := c.outcome(t, p); err != nil && dead[string(api.CodeOf(err))] == 0 {
			t.Error(err)
		}
	}
	for code := range dead { // what an agent has opened before it was killed runs no second time there
		if code != string(api.CodeReplay) && code != string(api.CodeNodeLost) {
			t.Errorf("dead letters of code %s: %d", code, dead[code])
		}
	}
	t.Logf("%d accepted in %v, all ended after %v: %d results, dead letters %v, %d attempts", n, sent.Round(time.Millisecond), ended.Round(time.Millisecond), done, dead, attempts)
}
