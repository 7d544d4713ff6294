package e2e

import (
	"strings"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/client"
	"github.com/faasd-sec/faasd-sec/local"
)

// TestRollout changes a function under load, has a revision fail, and goes back.
func TestRollout(t *testing.T) {
	c := up(t, 2, func(cfg *local.Config) { cfg.NodeArgs = []string{"-pool-min", "2", "-pool-max", "4"} })
	p := api.DefaultScale()
	p.Min, p.Max, p.Zero = 2, 4, false
	exec := func(d time.Duration) func(*client.Deployment) {
		return func(dep *client.Deployment) { tiny(&p)(dep); dep.Exec = d }
	}
	fn := c.deploy(t, "rolled", exec(10*time.Second))
	c.available(t, fn, 2)
	first := c.status(t, fn).Revision
	c.must(t, fn, "/", "")

	stop := c.load(t, fn, 4, "/sleep?ms=20")
	for i := range 2 {
		c.deploy(t, "rolled", exec(time.Duration(11+i)*time.Second))
		if st := c.status(t, fn); st.Revision == first || st.Rollout == nil || st.Rollout.State != api.RolloutDone {
			t.Errorf("after the rollout: %+v, %+v", st.Rollout, st.Serving)
		}
	}
	within(t, 30*time.Second, "the old ones have ended", func() bool { return len(c.status(t, fn).Serving) == 0 })
	t.Logf("%d calls during two rollouts, none failed", stop())
	c.available(t, fn, 2)
	second := c.status(t, fn).Revision

	// One that never becomes ready.
	stop = c.load(t, fn, 2, "/sleep?ms=20")
	full, err := api.ParseFunctionName("rolled")
	if err != nil {
		t.Fatal(err)
	}
	d := client.Deployment{Name: full, ImageRef: "test/rolled", ImageDigest: c.pushTestImage(t, "test/rolled"), Mode: "http", Upstream: "unix",
		Process: []string{"/fn", "-no-such-flag"}, Start: time.Second, Exec: 20 * time.Second, Attestation: []string{"node-key"}, Keys: c.keyring}
	exec(10 * time.Second)(&d)
	d.Callers = append(d.Callers, c.fingerprint())
	bad, err := c.client.Deploy(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	roll, err := c.client.AwaitRollout(t.Context(), fn)
	if err != nil || roll.State != api.RolloutFailed || roll.To != bad.Revision || roll.Code == "" || roll.Reason == "" {
		t.Fatalf("%+v, %v", roll, err)
	}
	t.Logf("taken back: %s, %s", roll.Code, roll.Reason)
	if st := c.status(t, fn); st.Revision != second {
		t.Errorf("%s serves, %s did", st.Revision, second)
	}
	// Its owner signs the one that serves anew, as deploy and rollback do.
	if _, err := c.client.Rollback(t.Context(), fn, second, c.keyring); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d calls during a rollout that failed, none failed", stop())
	c.must(t, fn, "/", "after it")

	// Back to the first.
	back, err := c.client.Rollback(t.Context(), fn, first[:12], c.keyring)
	if err != nil || back.Revision != first {
		t.Fatalf("%+v, %v", back, err)
	}
	if roll, err = c.client.AwaitRollout(t.Context(), fn); err != nil || roll.State != api.RolloutDone {
		t.Fatalf("%+v, %v", roll, err)
	}
	c.must(t, fn, "/", "as before")
	if st := c.status(t, fn); st.Revision != first {
		t.Errorf("%s serves, %s was asked for", st.Revision, first)
	}
	list, err := c.client.Revisions(t.Context(), fn)
	if err != nil || len(list) < 3 || list[0].Revision != first || !strings.Contains(list[0].State, api.RevisionCurrent) {
		t.Errorf("%+v, %v", list, err)
	}
}
