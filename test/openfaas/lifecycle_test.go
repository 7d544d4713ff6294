package openfaas

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// testReadyLate has a function that answers /_/ready with 503 at first: until then
// it is not available, and no call reaches it.
func testReadyLate(t *testing.T, c *cluster) {
	const late = 3 * time.Second
	c.function(t, "late", "env", message{"envVars": message{"ready_after": late.String()}})
	if s, err := c.cli.status("late"); err != nil || s.AvailableReplicas != 0 {
		t.Errorf("%d replicas are available, %v", s.AvailableReplicas, err)
	}
	r := c.cli.invoke("GET", "late", "")
	c.want(t, r, 200, "Fork_Number=1")
	_, age, _ := strings.Cut(r.body, "Watchdog_Age=")
	age, _, _ = strings.Cut(age, "\n")
	if d, err := time.ParseDuration(age); err != nil || d < late {
		t.Errorf("it was called at the age of %q, %v", age, err)
	}
	c.function(t, "never", "env", message{"envVars": message{"ready_after": "1h"}, "annotations": message{"com.faasd-sec.start-timeout": "1s"}})
	c.internal(t, c.cli.invoke("GET", "never", ""), 503, "ready")
	if s, err := c.cli.status("never"); err != nil || s.AvailableReplicas != 0 {
		t.Errorf("%d replicas are available, %v", s.AvailableReplicas, err)
	}
}

// testNoEndpoint deploys what cannot be found, and what cannot be started.
func testNoEndpoint(t *testing.T, c *cluster) {
	own := strings.TrimPrefix(c.cli.gateway, "http://")
	for image, is := range map[string]struct {
		status int
		says   string
	}{
		own + "/test/none:latest": {400, "image"}, // its registry says that there is none
		own + "/test/watchdog:v0": {400, "image"},
		"127.0.0.1:1/test/x:v1":   {503, "127.0.0.1:1/test/x:v1"}, // nobody says anything
	} {
		r := c.cli.deploy(message{"service": "unfound", "image": image})
		if err := want(r, is.status, is.says); err != nil || !strings.HasPrefix(r.header.Get("Content-Type"), "text/plain") {
			t.Errorf("%s: %v %v", image, err, r.header)
		}
	}
	c.want(t, c.cli.describe("unfound", ""), 404, "")
	c.function(t, "dying", "cat", message{"envVars": message{"die": "1"}})
	c.internal(t, c.cli.invoke("GET", "dying", ""), 503, "")
	eventually(t, "why is in its log", func() error { return c.logged("dying", "it does not serve") })
	c.function(t, "broken", "cat", message{"image": brokenImage})
	c.internal(t, c.cli.invoke("GET", "broken", ""), 503, "")
	for _, fn := range []string{"dying", "broken"} {
		if s, err := c.cli.status(fn); err != nil || s.AvailableReplicas != 0 {
			t.Errorf("%s: %d replicas are available, %v", fn, s.AvailableReplicas, err)
		}
	}
}

// testStop has functions that are replaced or removed while they work: what is under
// way ends, then they are asked to end, and they have a grace for it.
func testStop(t *testing.T, c *cluster) {
	c.function(t, "ending", "sleep 10s", message{"envVars": message{"linger": "2s", "marker": "ending-1"}})
	under := c.begin(t, "ending")
	old, err := c.cli.logs("ending", 1)
	if err != nil || len(old) != 1 {
		t.Fatalf("%v, %v", old, err)
	}
	c.function(t, "ending", "env", message{"envVars": message{"marker": "ending-2"}})
	eventually(t, "the update runs", func() error { return running("ending-2", "/usr/bin/watchdog") })
	select {
	case r := <-under:
		t.Fatalf("the update waited for the call: %+v", r)
	default:
	}
	c.want(t, received(t, under), 200, "slept")
	c.want(t, c.cli.invoke("GET", "ending", ""), 200, "marker=ending-2")
	eventually(t, "the former one is asked to end", func() error { return running("ending-1", "sleep 2s") })
	eventually(t, "it is gone", func() error { return gone("ending-1") })
	lines, err := c.cli.logs("ending", 0)
	if err != nil {
		t.Fatal(err)
	}
	asked := 0
	for _, l := range lines {
		if strings.Contains(l.Text, "SIGTERM received") && l.Instance == old[0].Instance {
			asked++
		}
	}
	if asked != 1 {
		t.Errorf("the former one was asked to end %d times: %+v", asked, lines)
	}

	c.function(t, "leaving", "sleep 2s", message{"envVars": message{"linger": "1m", "marker": "leaving"}})
	under = c.begin(t, "leaving")
	c.want(t, c.cli.remove("leaving", ""), 202, "")
	c.want(t, c.cli.invoke("GET", "leaving", ""), 404, "")
	c.want(t, received(t, under), 200, "slept")
	eventually(t, "what is removed is asked to end", func() error { return running("leaving", "sleep 1m0s") })
	began := time.Now()
	eventually(t, "it is killed", func() error { return gone("leaving") })
	if d := time.Since(began); d < 2*time.Second {
		t.Errorf("it had a grace of %s", d)
	}
}

// commandLines are those of the processes on this machine whose environment has the
// marker.
func commandLines(marker string) (list []string) {
	files, _ := filepath.Glob("/proc/[0-9]*/environ") // the pattern is well-formed
	for _, f := range files {
		env, err := os.ReadFile(f)
		if err != nil || !bytes.Contains(env, []byte("\x00marker="+marker+"\x00")) {
			continue // it has ended
		}
		if b, err := os.ReadFile(filepath.Join(filepath.Dir(f), "cmdline")); err == nil {
			list = append(list, strings.ReplaceAll(strings.TrimRight(string(b), "\x00"), "\x00", " "))
		}
	}
	return list
}

func running(marker, command string) error {
	list := commandLines(marker)
	for _, l := range list {
		if l == command {
			return nil
		}
	}
	return fmt.Errorf("%q does not run, but %q", command, list)
}

func gone(marker string) error {
	if list := commandLines(marker); len(list) > 0 {
		return fmt.Errorf("%q still run", list)
	}
	return nil
}

// testNodeDeath kills the function, and then the node, under calls: the caller is
// told, and what comes later is served.
func testNodeDeath(t *testing.T, c *cluster) {
	c.function(t, "crashing", "crash", nil)
	c.internal(t, c.cli.invoke("GET", "crashing", ""), 502, "")
	c.function(t, "bereft", "sleep 3s", nil)
	under := c.begin(t, "bereft")
	if err := c.Signal("node-1", syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	c.internal(t, received(t, under), 502, "node")
	eventually(t, "it serves again", func() error { return want(c.cli.invoke("GET", "bereft", ""), 200, "slept") })
}
