package e2e

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/client"
)

// TestSealedRolloutReplacesWhatIsLost has a replica of the old revision end while the
// new one is on its way: another is started, unless its owner forbade that.
func TestSealedRolloutReplacesWhatIsLost(t *testing.T) {
	c := up(t, 1)
	p := api.Pinned(2)
	fn := c.deploy(t, "lossy", tiny(&p))
	c.available(t, fn, 2)
	old := c.status(t, fn).Revision
	ask := c.askBroker(t, fn)
	ready := func() []string {
		var ids []string
		for _, s := range c.sandboxes(t, fn) {
			if s.Revision == old && (s.State == "ready" || s.State == "frozen") {
				ids = append(ids, s.ID)
			}
		}
		slices.Sort(ids)
		return ids
	}
	roll := func(exec time.Duration, forbid bool) {
		t.Helper()
		d := client.Deployment{Name: fn, ImageRef: "test/lossy", ImageDigest: c.pushTestImage(t, "test/lossy"), Mode: "http",
			Upstream: "http://127.0.0.1:9999", Start: 2 * time.Minute, // nobody ever listens there
			Exec: exec, Attestation: []string{"node-key"}, Keys: c.keyring, NoOverlap: forbid}
		tiny(&p)(&d)
		d.Callers = append(d.Callers, c.fingerprint())
		if _, err := c.client.Deploy(t.Context(), d); err != nil {
			t.Fatal(err)
		}
		if st := c.status(t, fn); st.Revision != old || st.Rollout == nil || st.Rollout.State != api.RolloutRolling {
			t.Fatalf("%+v, %+v", st.Rollout, st.Serving)
		}
	}

	roll(11*time.Second, false)
	if got := ask(old); got != api.CodeKeyRefused { // for want of evidence
		t.Errorf("the old one's keys: %s", got)
	}
	before := ready()
	_, _, _ = c.invoke(t, fn, client.Request{Path: "/crash"})
	within(t, 30*time.Second, "what was lost is replaced", func() bool { now := ready(); return len(now) == 2 && !slices.Equal(now, before) })
	if st := c.status(t, fn); st.Revision != old || st.Rollout.State != api.RolloutRolling {
		t.Errorf("the rollout ended meanwhile: %+v", st.Rollout)
	}
	c.must(t, fn, "/", "the old one serves")

	roll(12*time.Second, true)
	if got := ask(old); got != api.CodeStaleRevision {
		t.Errorf("the old one's keys, which its owner holds back: %s", got)
	}
	_, _, _ = c.invoke(t, fn, client.Request{Path: "/crash"})
	within(t, 30*time.Second, "a replica less", func() bool { return len(ready()) == 1 })
	c.must(t, fn, "/", "the old one serves with what it has")
	for until := time.Now().Add(3 * time.Second); time.Now().Before(until); time.Sleep(100 * time.Millisecond) {
		if n := ready(); len(n) > 1 {
			t.Fatalf("replicas without keys: %v", n)
		}
	}

	// Signed anew it has all it is to have.
	if _, err := c.client.Rollback(t.Context(), fn, old, c.keyring); err != nil {
		t.Fatal(err)
	}
	within(t, 30*time.Second, "two again", func() bool { return len(ready()) == 2 })
	c.must(t, fn, "/", "and serves")
}

// TestSealedTrafficByCommand divides calls with the real commands: traffic, describe,
// invoke and a proxy.
func TestSealedTrafficByCommand(t *testing.T) {
	c := up(t, 1)
	dir := c.configDir(t)
	c.keyring = client.NewKeyring(filepath.Join(dir, "functions", "default"), []byte("passphrase"), rand.Reader)
	if err := client.PinBroker(dir, c.gateway, c.Broker()); err != nil {
		t.Fatal(err)
	}
	name := api.FunctionName("which.openfaas-fn")
	var revisions []api.FunctionStatus
	colors := []string{"blue", "green"}
	for _, color := range colors {
		c.deploy(t, "which", tiny(nil), func(d *client.Deployment) { d.Bundle.Env = map[string]string{"COLOR": color} })
		within(t, 30*time.Second, color+" answers", func() bool { return strings.Contains(c.must(t, name, "/env?name=COLOR", ""), color) })
		revisions = append(revisions, c.status(t, name))
	}
	command, must := c.commands(t, dir)
	short := func(i int) string { return revisions[i].Revision[:12] }

	if out := must("traffic", "which", short(0)+"=30", short(1)+"=70%", "--for", "1h"); !strings.Contains(out, "are divided until") {
		t.Errorf("%q", out)
	}
	out := must("describe", "which")
	for _, want := range []string{"70 % of the calls", "30 % of the calls", "divided"} {
		if !strings.Contains(out, want) {
			t.Errorf("describe lacks %q:\n%s", want, out)
		}
	}
	of := func(id string) string {
		if api.CallSlot(id) < 30 {
			return "blue"
		}
		return "green"
	}
	url, _ := c.startProxy(t)
	for i := range 60 {
		id := fmt.Sprintf("proxied-%d", i)
		req, err := http.NewRequestWithContext(t.Context(), "GET", url+"/function/which/env?name=COLOR", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set(api.HeaderCallID, id)
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil || !strings.Contains(string(b), of(id)) {
			t.Errorf("%s by the proxy: %d %s %v, want %s", id, res.StatusCode, b, err, of(id))
		}
	}
	seen := map[string]bool{}
	for range 12 {
		out := must("invoke", "which", "--path", "/env", "--query", "name=COLOR")
		for _, color := range colors {
			seen[color] = seen[color] || strings.Contains(out, color)
		}
	}
	if !seen["green"] {
		t.Errorf("invoke saw %v", seen)
	}

	// All to the one that is not the latest: it is rolled out under a new number.
	must("traffic", "which", short(0)+"=100")
	st := c.status(t, name)
	if st.Revision != revisions[0].Revision || st.Sequence <= revisions[1].Sequence {
		t.Errorf("%+v", st)
	}
	var list []api.RevisionStatus
	if err := json.Unmarshal([]byte(must("rollback", "which", "--list", "-o", "json")), &list); err != nil || list[0].Revision != revisions[0].Revision {
		t.Errorf("%+v, %v", list, err)
	}
	ask := c.askBroker(t, name)
	if got := ask(revisions[1].Revision); got != api.CodeStaleRevision {
		t.Errorf("keys of what has no share: %s", got)
	}
	if out, err := command("traffic", "which", short(0)+"=50"); err == nil || !strings.Contains(out, "100 in all") {
		t.Errorf("50 percent in all: %q, %v", out, err)
	}
}
