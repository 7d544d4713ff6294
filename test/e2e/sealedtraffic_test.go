package e2e

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/client"
	"github.com/faasd-sec/faasd-sec/enrol"
	"github.com/faasd-sec/faasd-sec/pki"
	"github.com/faasd-sec/faasd-sec/sealed/unseal"
)

// TestSealedTraffic divides the calls of a sealed function between two revisions,
// by a statement that its owner signs.
func TestSealedTraffic(t *testing.T) {
	c := up(t, 2)
	name := api.FunctionName("which.openfaas-fn")
	deploy := func(color string) api.FunctionStatus {
		t.Helper()
		c.deploy(t, "which", tiny(nil), func(d *client.Deployment) { d.Bundle.Env = map[string]string{"COLOR": color} })
		// The one before serves for a moment more who has its descriptor.
		within(t, 30*time.Second, color+" answers", func() bool { return strings.Contains(c.must(t, name, "/env?name=COLOR", ""), color) })
		return c.status(t, name)
	}
	blue := deploy("blue")
	green := deploy("green")
	if blue.Revision == green.Revision || green.Sequence <= blue.Sequence {
		t.Fatalf("%s and %s", blue.Revision, green.Revision)
	}
	ask := c.askBroker(t, name)
	within(t, 30*time.Second, "blue has ended", func() bool { return len(c.status(t, name).Serving) == 0 })

	// A caller who runs already.
	running := c.another(t)
	if res, err := running.Invoke(t.Context(), name, client.Request{Path: "/env"}); err != nil || res.Meta.Revision.String() != green.Revision {
		t.Fatal(err)
	}

	d, err := c.client.Divide(t.Context(), name, map[string]int{blue.Revision[:12]: 90, green.Revision: 10}, time.Hour, c.keyring)
	if err != nil {
		t.Fatal(err)
	}
	if got := ask(blue.Revision); got != api.CodeKeyRefused { // for want of evidence
		t.Errorf("blue, which is named: %s", got)
	}
	st := c.status(t, name)
	if st.Revision != green.Revision || len(st.Traffic) == 0 || len(st.Serving) != 2 || d.Percent[blue.Revision] != 90 {
		t.Errorf("%+v, %+v", st, d)
	}

	// Another caller, who has not seen any of it.
	fresh := c.another(t)
	call := func(cl *client.Client, id string) string {
		t.Helper()
		res, err := cl.Invoke(t.Context(), name, client.Request{Path: "/env", Query: "name=COLOR", CallID: id})
		if err != nil {
			t.Errorf("%s: %v", id, err)
			return ""
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		if err != nil || res.Status != http.StatusOK {
			t.Errorf("%s: %d %s %v", id, res.Status, b, err)
		}
		for _, s := range []api.FunctionStatus{blue, green} {
			color := map[string]string{blue.Revision: "blue", green.Revision: "green"}[s.Revision]
			if strings.Contains(string(b), color) {
				if res.Meta.Revision.String() != s.Revision {
					t.Errorf("%s: %s answered for %s", id, color, res.Meta.Revision)
				}
				return color
			}
		}
		t.Errorf("%s: %q", id, b)
		return ""
	}
	within(t, 30*time.Second, "who runs already hears of it", func() bool { return call(running, "call-1") == "blue" })
	const calls = 1000
	var mu sync.Mutex
	seen, colors, ids := map[string]int{}, map[string]string{}, make(chan int, calls)
	for i := range calls {
		ids <- i
	}
	close(ids)
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := range ids {
				id := fmt.Sprintf("call-%d", i)
				color := call([]*client.Client{fresh, c.client}[w%2], id)
				mu.Lock()
				seen[color]++
				colors[id] = color
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if off := math.Abs(float64(seen["blue"])*100/calls - 90); off > 2 || len(colors) != calls {
		t.Errorf("%v of %d calls, want 90 %% blue", seen, calls)
	}
	t.Logf("%v", seen)
	for i := range 50 {
		id := fmt.Sprintf("call-%d", i)
		if again := call(c.client, id); again != colors[id] {
			t.Errorf("%s came to %s, and then to %s", id, colors[id], again)
		}
	}

	// All of it outlives the daemons.
	c.kill(t, "keybroker", syscall.SIGKILL)
	c.kill(t, "coordinator", syscall.SIGKILL)
	c.served(t, "coordinator")
	within(t, 30*time.Second, "the key broker knows the statement again", func() bool { return ask(blue.Revision) == api.CodeKeyRefused })
	if now := c.status(t, name); !bytes.Equal(now.Traffic, st.Traffic) || len(now.Serving) != 2 {
		t.Errorf("after a crash: %+v", now)
	}
	for i := range 20 {
		id := fmt.Sprintf("call-%d", i)
		if again := call(fresh, id); again != colors[id] {
			t.Errorf("%s came to %s, and after a crash to %s", id, colors[id], again)
		}
	}

	// Calls that are queued keep to it too.
	for i := range 20 {
		id := fmt.Sprintf("call-%d", i)
		p, err := fresh.InvokeLater(t.Context(), name, client.Request{Path: "/env", Query: "name=COLOR", CallID: id}, client.Later{})
		if err != nil {
			t.Fatal(err)
		}
		var b []byte
		within(t, 30*time.Second, id+" has its result", func() bool {
			res, err := fresh.Result(t.Context(), p)
			if err != nil {
				return false
			}
			b, err = io.ReadAll(res.Body)
			res.Body.Close()
			return err == nil
		})
		if !strings.Contains(string(b), colors[id]) {
			t.Errorf("%s, queued, came to %q, and before to %s", id, b, colors[id])
		}
	}

	// All to the latest: blue ends, and its keys are destroyed.
	if d, err = c.client.Divide(t.Context(), name, map[string]int{green.Revision: 100}, time.Hour, c.keyring); err != nil {
		t.Fatal(err)
	}
	if got := ask(blue.Revision); got != api.CodeStaleRevision {
		t.Errorf("blue, which is named no more: %s", got)
	}
	if got := ask(green.Revision); got != api.CodeKeyRefused {
		t.Errorf("green: %s", got)
	}
	within(t, 30*time.Second, "blue has ended", func() bool { return len(c.status(t, name).Serving) == 0 })
	for i := range 50 { // the one that holds the old statement hears of the new one, and seals again
		if got := call(fresh, fmt.Sprintf("call-%d", i)); got != "green" {
			t.Fatalf("%s after blue has no share", got)
		}
	}

	// What was said before comes to nothing, though it has not expired.
	if a := c.postTraffic(t, name, st.Traffic); a.code != api.CodeConflict {
		t.Errorf("the former statement again: %+v", a)
	}
	if got := ask(blue.Revision); got != api.CodeStaleRevision {
		t.Errorf("blue after a replay: %s", got)
	}

	// All to the other: that one is signed anew.
	if d, err = c.client.Divide(t.Context(), name, map[string]int{blue.Revision: 100}, time.Hour, c.keyring); err != nil || d.Anew == nil {
		t.Fatalf("%+v, %v", d, err)
	}
	if _, err := c.client.AwaitRollout(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	if err := c.client.EndRollout(t.Context(), name, c.keyring); err != nil {
		t.Fatal(err)
	}
	if got := ask(green.Revision); got != api.CodeStaleRevision {
		t.Errorf("green after the way back: %s", got)
	}
	within(t, 30*time.Second, "all calls go back to blue", func() bool { return call(fresh, "back") == "blue" })
}

// another is another client of the same caller.
func (c *cluster) another(t *testing.T) *client.Client {
	t.Helper()
	cl, err := client.New(client.Config{Gateway: c.gateway, Identity: c.id, Pins: c.pins})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	return cl
}

// askBroker asks the key broker for keys as a node that has no evidence would, and
// says why it refuses: of a revision whose keys it would release for want of that.
func (c *cluster) askBroker(t *testing.T, name api.FunctionName) func(revision string) api.Code {
	t.Helper()
	ca, err := pki.Load(filepath.Join(c.State(), "coordinator", enrol.CADir))
	if err != nil {
		t.Fatal(err)
	}
	key, cert, err := ca.Issue(pki.RoleNode, "other-1", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	id, err := pki.NewIdentity(key, cert, ca.CertificatePEM())
	if err != nil {
		t.Fatal(err)
	}
	tr := &http.Transport{TLSClientConfig: pki.ClientConfig(id, pki.RoleKeyBroker, pki.AnyID)}
	t.Cleanup(tr.CloseIdleConnections)
	addr := c.part(t, "keybroker").flag("listen")
	return func(revision string) api.Code {
		t.Helper()
		eph, err := unseal.NewKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		pub := eph.PublicKey()
		statement, err := cbor.Marshal(api.Statement{Ephemeral: pub[:], Nonce: make([]byte, 16), IssuedAtMs: time.Now().UnixMilli()})
		if err != nil {
			t.Fatal(err)
		}
		body, err := json.Marshal(api.ReleaseRequest{Function: string(name), Revision: revision, Statement: statement})
		if err != nil {
			t.Fatal(err)
		}
		resp, err := (&http.Client{Transport: tr, Timeout: 10 * time.Second}).Post("https://"+addr+api.BrokerPathRelease, api.ContentTypeJSON, bytes.NewReader(body))
		if err != nil {
			return api.CodeUnavailable
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			return api.CodeUnavailable
		}
		return api.ParseProblem(resp.StatusCode, b).Code
	}
}

type problemAnswer struct {
	status int
	code   api.Code
}

// postTraffic gives the gateway a statement, in a request that the owner signs.
func (c *cluster) postTraffic(t *testing.T, name api.FunctionName, statement []byte) problemAnswer {
	t.Helper()
	body, err := json.Marshal(api.Traffic{Statement: statement})
	if err != nil {
		t.Fatal(err)
	}
	resp, err := (&http.Client{Transport: c.signed()}).Post(c.gateway+api.GatewayPathFunctions+"/"+string(name)+"/traffic", api.ContentTypeJSON, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return problemAnswer{resp.StatusCode, api.ParseProblem(resp.StatusCode, b).Code}
}
