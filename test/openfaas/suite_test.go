package openfaas

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// What OpenFaaS's own suite for providers does, one after the other and on a
// machine as small as this one.

func testManyFunctions(t *testing.T, c *cluster) {
	const many = 20 // of half a core each, where nothing is said: more than two cores lend
	name := func(i int) string { return fmt.Sprintf("many-%d", i) }
	for i := range many {
		c.function(t, name(i), "env", message{"envVars": message{"number": name(i)}})
		eventually(t, "what was deployed is available", func() error {
			s, err := c.cli.status(name(i))
			if err == nil && s.AvailableReplicas != 1 {
				err = fmt.Errorf("%d replicas of %s", s.AvailableReplicas, name(i))
			}
			return err
		})
	}
	for range 2 {
		for i := range many {
			c.want(t, c.cli.invoke("POST", name(i), ""), 200, "number="+name(i))
		}
	}
	for i := range many {
		if s, err := c.cli.status(name(i)); err != nil || s.Replicas != 1 {
			t.Errorf("%s: %+v, %v; one replica is wanted whether or not there is room", name(i), s, err)
		}
	}
}

func testReplicasAtOnce(t *testing.T, c *cluster) {
	is := func(name string, n int) {
		t.Helper()
		if s, err := c.cli.status(name); err != nil || s.Replicas != n {
			t.Errorf("%s: %+v, %v; want %d", name, s, err, n)
		}
	}
	c.function(t, "at-least", "sha512sum", message{"labels": message{"com.openfaas.scale.min": "2"}})
	is("at-least", 2)
	c.function(t, "from-zero", "sha512sum", nil)
	is("from-zero", 1)
	c.want(t, c.cli.send("POST", "/system/scale-function/from-zero", message{"service": "from-zero", "replicas": 0}), 202, "")
	is("from-zero", 0)
	c.want(t, c.cli.invoke("POST", "from-zero", ""), 200, "  -")
}

func testScaleByThroughput(t *testing.T, c *cluster) {
	load := func(name string) {
		var callers sync.WaitGroup
		for range 2 {
			callers.Go(func() {
				tick := time.NewTicker(200 * time.Millisecond)
				defer tick.Stop()
				for range 50 {
					<-tick.C
					if err := want(c.cli.invoke("POST", name, "", func(r *http.Request) { r.Close = true }), 200, "  -"); err != nil {
						t.Error(name, err)
					}
				}
			})
		}
		callers.Wait()
	}
	labels := func(low, high string) message {
		return message{"labels": message{"com.openfaas.scale.min": low, "com.openfaas.scale.max": high}}
	}
	c.function(t, "throughput", "sha512sum", labels("1", "2"))
	c.function(t, "pinned", "sha512sum", labels("2", "2"))
	var both sync.WaitGroup
	both.Go(func() { load("throughput") })
	both.Go(func() { load("pinned") })
	both.Wait()
	for _, name := range []string{"throughput", "pinned"} {
		if s, err := c.cli.status(name); err != nil || s.Replicas != 2 {
			t.Errorf("%s under 10 calls a second: %+v, %v", name, s, err)
		}
	}
	began := time.Now()
	within(t, time.Minute, "no load, one replica", func() error {
		s, err := c.cli.status("throughput")
		if err == nil && s.Replicas != 1 {
			err = fmt.Errorf("%d replicas after %v", s.Replicas, time.Since(began))
		}
		return err
	})
	if s, err := c.cli.status("pinned"); err != nil || s.Replicas != 2 {
		t.Errorf("pinned without load: %+v, %v", s, err)
	}
}

func testLogsAtOnce(t *testing.T, c *cluster) {
	c.function(t, "logger", "sha512sum", nil)
	for range 20 {
		c.want(t, c.cli.invoke("POST", "logger", ""), 200, "  -")
		lines, err := c.cli.logs("logger", 2)
		if err != nil || len(lines) != 2 {
			t.Fatalf("%v, %v", lines, err)
		}
		for i, starts := range []string{"Forking fprocess", "Wrote 132 Bytes"} {
			if text := strings.TrimLeft(lines[i].Text, "0123456789/: "); lines[i].Name != "logger" || !strings.HasPrefix(text, starts) {
				t.Fatalf("line %d is %+v, want %q", i, lines[i], starts)
			}
		}
	}
}

func testSecretUpdate(t *testing.T, c *cluster) {
	c.want(t, c.cli.secret("POST", "changing", "openfaas-fn", "before"), 201, "")
	t.Cleanup(func() { c.cli.secret("DELETE", "changing", "openfaas-fn", "") })
	d := message{"service": "changing", "image": testImage, "envProcess": "cat /var/openfaas/secrets/changing", "secrets": []string{"changing"}}
	c.function(t, "changing", "cat /var/openfaas/secrets/changing", d)
	c.want(t, c.cli.invoke("POST", "changing", ""), 200, "before")
	c.want(t, c.cli.secret("PUT", "changing", "openfaas-fn", "after"), 202, "")
	d["annotations"] = message{"secret-hash": "another"}
	c.want(t, c.cli.deploy(d), 202, "")
	eventually(t, "the new value", func() error { return want(c.cli.invoke("POST", "changing", ""), 200, "after") })
}
