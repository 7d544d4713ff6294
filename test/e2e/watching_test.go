package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/anomaly"
	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/client"
	"github.com/faasd-sec/faasd-sec/local"
	"github.com/faasd-sec/faasd-sec/sealed"
)

// line is one line of the gateway's anomalies.
type line struct {
	Log, Node, Kind, Code, Function, Sandbox, Error string
	Numbers                                         map[string]int64
}

// anomalies reads all logs through the gateway.
func (c *cluster) anomalies(t testing.TB, query url.Values) (out []line) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	err := c.client.Anomalies(ctx, query, func(b []byte) error {
		var l line
		if err := json.Unmarshal(b, &l); err != nil {
			return err
		}
		if l.Error != "" {
			t.Errorf("log of %s: %s", l.Log, l.Error)
		}
		out = append(out, l)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestWhatGoesWrongIsInTheAnomalyLog has functions pass their memory limit, end
// with exit code 3, and be held back by their CPU limit: each is in the node's log
// with the right numbers and nothing of a payload, the log verifies with the key
// that the node vouches for, and a copy of it too.
func TestWhatGoesWrongIsInTheAnomalyLog(t *testing.T) {
	var state string
	c := up(t, 1, func(cfg *local.Config) {
		state = cfg.State
		cfg.NodeArgs = append(cfg.NodeArgs, "-monitor-every", "200ms", "-anomaly-for", "1s")
	})
	const word = "canary-word-of-a-payload"
	call := func(fn, path string) { // how it ends is what other tests are about
		p, q, _ := strings.Cut(path, "?")
		_, _, err := c.invoke(t, api.FunctionName(fn+".openfaas-fn"), client.Request{Path: p, Query: q, Body: strings.NewReader(word)})
		t.Logf("%s%s: %v", fn, path, err)
	}
	small := func(d *client.Deployment) { d.Resources.CPU = 100 }
	c.deploy(t, "greedy")
	c.deploy(t, "crashing")
	c.deploy(t, "busy", small)
	call("greedy", "/oom")
	call("crashing", "/crash")

	find := func(kind, code, fn string) (line, bool) {
		for _, l := range c.anomalies(t, nil) {
			if l.Kind == kind && l.Code == code && l.Function == fn+".openfaas-fn" {
				return l, true
			}
		}
		return line{}, false
	}
	expect := func(kind, code, fn string, right func(map[string]int64) bool) {
		t.Helper()
		waitFor(t, 20*time.Second, kind+" of "+fn, func() error {
			if _, ok := find(kind, code, fn); !ok {
				return errors.New("it is not there")
			}
			return nil
		})
		if l, _ := find(kind, code, fn); !right(l.Numbers) || l.Sandbox == "" || l.Node == "" || l.Log != l.Node {
			t.Errorf("%s of %s: %+v", kind, fn, l)
		}
	}
	expect("oom", "function", "greedy", func(n map[string]int64) bool { return n["limit"] == 64<<20 })
	expect("abnormal-stop", "function", "greedy", func(n map[string]int64) bool { return n["signal"] == 9 })
	expect("abnormal-stop", "function", "crashing", func(n map[string]int64) bool { return n["exit_code"] == 3 && n["signal"] == 0 })

	done := make(chan struct{})
	go func() { defer close(done); call("busy", "/spin?ms=6000") }()
	expect("throttled", "cpu", "busy", func(n map[string]int64) bool {
		return n["limit"] == 100 && n["throttled_us"] > 0 && n["throttled_periods"] > 0 && n["duration_ms"] >= 1000
	})
	list, err := c.client.Tasks(t.Context(), url.Values{api.QueryFunction: {"busy.openfaas-fn"}, api.QueryHistory: {"1"}})
	if err != nil || len(list.Missing) > 0 || len(list.Tasks) != 1 {
		t.Fatalf("%+v, %v", list, err)
	}
	if task := list.Tasks[0]; task.Usage.CPU == 0 || task.Usage.ThrottledUs == 0 || task.Usage.Memory == 0 || task.Usage.PIDs == 0 ||
		task.History == nil || len(task.History.CPU) == 0 || task.Limits.CPU != 100 {
		t.Errorf("%+v", task)
	}
	<-done
	waitFor(t, 20*time.Second, "the writable file systems of a task to be looked at", func() error {
		list, err := c.client.Tasks(t.Context(), nil)
		if err != nil {
			return err
		}
		for _, task := range list.Tasks {
			if task.Usage.StorageSize >= 16<<20 {
				return nil
			}
		}
		return fmt.Errorf("%+v", list)
	})

	nodes, err := c.client.NodeDetails(t.Context(), true)
	if err != nil || len(nodes.Nodes) != 1 || nodes.Nodes[0].Status == nil || nodes.Coordinator == nil {
		t.Fatalf("%+v, %v", nodes, err)
	}
	st := nodes.Nodes[0].Status
	if st.Machine.MemoryTotal == 0 || st.Running == 0 || st.History == nil || st.LogKey == nil || st.LogKey.Member != st.Node {
		t.Fatalf("%+v", st)
	}
	// The command line reads the same, and the key is bound to the certificate.
	env := append(os.Environ(), "FAASD_SEC_GATEWAY="+c.Gateway(), "HOME="+t.TempDir())
	cli := func(args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), bin(t, "faasd-sec"), args...)
		cmd.Env = env
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("faasd-sec %v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	if out := cli("audit", "keys", "--ca", filepath.Join(state, "coordinator", "ca", "ca.crt")); strings.Count(out, "by its certificate") != 2 {
		t.Errorf("audit keys:\n%s", out)
	}
	if out := cli("audit", "show", "--cluster", "--kind", "abnormal-stop"); !strings.Contains(out, "exit_code=3") {
		t.Errorf("audit show:\n%s", out)
	}
	if out := cli("top", "--once"); !strings.Contains(out, "busy") {
		t.Errorf("top:\n%s", out)
	}
	dirs, err := filepath.Glob(filepath.Join(state, "*", "anomalies"))
	if err != nil || len(dirs) < 2 {
		t.Fatalf("anomaly logs: %v, %v", dirs, err)
	}
	trusted, err := sealed.ParseFingerprint(st.LogKey.Fingerprint)
	if err != nil {
		t.Fatal(err)
	}
	verified := 0
	for _, dir := range dirs {
		copied := filepath.Join(t.TempDir(), "copy")
		if err := os.Mkdir(copied, 0o700); err != nil {
			t.Fatal(err)
		}
		segments, err := filepath.Glob(filepath.Join(dir, "*.seg"))
		if err != nil {
			t.Fatal(err)
		}
		// It is being written: what is copied later reaches what HEAD signs.
		for _, path := range append([]string{filepath.Join(dir, "HEAD")}, segments...) {
			b, err := os.ReadFile(path)
			if err == nil {
				err = os.WriteFile(filepath.Join(copied, filepath.Base(path)), b, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		rep, err := anomaly.Verify(t.Context(), copied, trusted, nil)
		if err != nil {
			t.Fatal(err)
		}
		if rep.Node == st.Node {
			verified++
			if !rep.OK || rep.Events < 4 {
				t.Errorf("%s: %+v", dir, rep)
			}
		}
		entries, err := os.ReadDir(copied)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			b, err := os.ReadFile(filepath.Join(copied, e.Name()))
			if err != nil {
				t.Fatal(err)
			}
			for _, w := range []string{word, "/oom", "/crash", "ms=6000"} {
				if bytes.Contains(b, []byte(w)) {
					t.Errorf("%s/%s holds %q", dir, e.Name(), w)
				}
			}
		}
	}
	if verified != 1 {
		t.Errorf("%d logs of the node were verified", verified)
	}
}

// TestAKilledNodeIsAMissedHeartbeat kills a node's daemon, which is started again:
// the coordinator notes that it went without a word.
func TestAKilledNodeIsAMissedHeartbeat(t *testing.T) {
	c := up(t, 1)
	c.kill(t, "node-1", syscall.SIGKILL)
	waitFor(t, time.Minute, "the node's end to be noted", func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		seen := false
		err := c.client.Anomalies(ctx, url.Values{api.QueryKind: {"heartbeat-missed"}}, func(b []byte) error {
			var l line
			err := json.Unmarshal(b, &l)
			seen = seen || l.Node == "node-1" && l.Log == "coordinator-1" && (l.Code == "node" || l.Code == "dead")
			return err
		})
		if err == nil && !seen {
			err = errors.New("it is not")
		}
		return err
	})
}
