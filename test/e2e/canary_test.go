package e2e

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/client"
	"github.com/faasd-sec/faasd-sec/sealed/unseal"
)

// canaries are texts that must be seen by the caller and inside the task alone.
type canaries struct {
	body, large, stream, header, path, query string // of requests
	tick, tickHeader, tickPath               string // of calls that are sealed ahead
	divided, dividedHeader, dividedPath      string // of calls that a statement divides
	code, env, secret                        string // of the bundle
	reply, log                               string // made by the function out of secret and code
	planted                                  string // put where the hunt must find it
}

func newCanaries(t testing.TB) *canaries {
	draw := func() string {
		const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
		b := make([]byte, 32)
		if _, err := rand.Read(b); err != nil {
			t.Fatal(err)
		}
		for i := range b {
			b[i] = alphabet[int(b[i])%len(alphabet)]
		}
		return string(b)
	}
	c := &canaries{body: draw(), large: draw(), stream: draw(), header: draw(), path: draw(), query: draw(),
		tick: draw(), tickHeader: draw(), tickPath: draw(), divided: draw(), dividedHeader: draw(), dividedPath: draw(),
		code: draw(), env: draw(), secret: draw(), planted: draw()}
	c.reply, c.log = derived("reply", c.secret, c.code), derived("log", c.secret, c.code)
	return c
}

// derived is what the function's /derive makes of what it was given.
func derived(label, secret, code string) string {
	sum := sha256.Sum256([]byte(label + "|" + secret + "|" + code))
	return hex.EncodeToString(sum[:16])
}

// finder looks for all canaries and for the function's private keys.
func (c *canaries) finder(t testing.TB, keys map[string][]byte) *finder {
	t.Helper()
	var all []needle
	for what, text := range map[string]string{
		"request body": c.body, "large body": c.large, "streamed body": c.stream, "streamed reply": strings.ToUpper(c.stream),
		"tick": c.tick, "tick's header": c.tickHeader, "tick's path": c.tickPath,
		"divided call": c.divided, "divided header": c.dividedHeader, "divided path": c.dividedPath,
		"header": c.header, "path": c.path, "query": c.query, "code": c.code, "environment": c.env, "secret": c.secret,
		"reply": c.reply, "log": c.log, "planted": c.planted,
	} {
		all = append(all, forms(what, text)...)
	}
	for what, scalar := range keys {
		all = append(all, keyForms(what, scalar)...)
	}
	f, err := newFinder(all)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// privateKeys are the scalars of a function's keys, as its owner keeps them.
func (c *cluster) privateKeys(t testing.TB, dir string) map[string][]byte {
	t.Helper()
	store, err := unseal.OpenKeystore(dir)
	if err != nil {
		t.Fatal(err)
	}
	names, err := store.List()
	if err != nil || len(names) == 0 {
		t.Fatalf("no keys in %s: %v", dir, err)
	}
	out := map[string][]byte{}
	for _, n := range names {
		id, err := store.Load(n, []byte("test"))
		if err != nil {
			t.Fatal(err)
		}
		out[keySigning], out[keyDecryption] = id.Signer().Scalar(), id.Decrypter().Scalar()
	}
	return out
}

const (
	keySigning    = "signing key"
	keyDecryption = "decryption key"
)

// sighting is what one observer saw: secret -> where, and in which form.
type sightings map[string][]string

func (s sightings) note(n needle, where string) {
	s[n.secret] = append(s[n.secret], n.form+" in "+where)
}

// TestOperatorSeesNoPayloadCodeOrResult plays the operator: it records all
// traffic of a working cluster, reads the memory of every daemon while it works
// and afterwards, and every file they wrote, and looks for what was sealed.
//
// Where a secret belongs, the same search must find it: in the function's and
// the agent's memory, and in a process, a file and a packet planted for that.
func TestOperatorSeesNoPayloadCodeOrResult(t *testing.T) {
	needTools(t, "tcpdump")
	began := time.Now()
	c := up(t, 2)
	can := newCanaries(t)
	h := &hunt{t: t, c: c, can: can, began: began, dial: (&net.Dialer{}).DialContext}
	h.marks()
	capture := startCapture(t, "", "lo", h.ports())

	fn := h.deploy()
	h.call(fn, "cold")
	h.call(fn, "warm")
	h.large(fn)
	h.streamed(fn)
	h.logs(fn)
	h.search(fn)

	// While it works: memory that is free a moment later is in use now.
	stop := h.load(fn)
	working := h.searchProcesses("working")
	h.noCoreFiles()
	h.searchFiles("working")
	stop()
	h.inside(working, map[string][]string{
		// A small body is gone from the function's memory with the next call.
		"function": {"large body", "streamed body", "header", "path", "query", "code", "environment", "secret", "reply", "log"},
		"agent":    {"environment", keySigning, keyDecryption},
	})
	// Again after the function is gone, with what is left lying about.
	waitFor(t, 20*time.Second, "the idle function to be stopped", h.idle)
	h.call(fn, "cold")
	if err := c.client.Remove(t.Context(), fn); err != nil {
		t.Fatal(err)
	}
	waitFor(t, 20*time.Second, "the function to be stopped", h.idle)
	h.searchProcesses("removed")
	h.searchFiles("removed")
	h.searchTraffic(capture)
	h.plantedProcess()
	h.report()
}

// hunt is the search and its book.
type hunt struct {
	t     *testing.T
	c     *cluster
	can   *canaries
	began time.Time
	keys  string // the owner's own directory of keys
	ours  []string
	find  *finder
	dial  func(ctx context.Context, network, addr string) (net.Conn, error) // for the planted packet

	rows []row
}

// row is one observer in the table.
type row struct {
	who, phase string
	allowed    func(secret string) bool
	searched   int64
	seen       sightings
}

// search makes the finder for all canaries and the function's keys.
func (h *hunt) search(fn api.FunctionName) {
	h.t.Helper()
	h.find = h.can.finder(h.t, h.c.privateKeys(h.t, h.keysOf(fn)))
}

// marks sets what tells the cluster's processes from all others.
func (h *hunt) marks() {
	want := map[string]int{"coordinator": 1, "keybroker": 1, "manifest-opener": 1, "node": 2, "containerd": 1}
	var procs []proc
	waitFor(h.t, 10*time.Second, "the cluster's processes to be as many as they should", func() (err error) {
		if procs, err = procsOf(h.c.State()); err != nil {
			return err
		}
		have := map[string]int{}
		for _, p := range procs {
			have[p.role]++ // a child has its parent's arguments until it executes its own program
		}
		for role, n := range want {
			if have[role] != n {
				return fmt.Errorf("found %d %s processes, want %d: the search would miss some", have[role], role, n)
			}
		}
		return nil
	})
	h.ours = []string{h.c.State()}
	for _, p := range procs {
		h.t.Logf("watching %v: %s", p, p.args)
		if args := strings.Fields(p.args); p.role == "node" {
			// Its sandboxes' shims name the socket below the run directory.
			h.ours = append(h.ours, filepath.Dir(args[slices.Index(args, "-run")+1]))
		}
	}
	slices.Sort(h.ours)
	h.ours = slices.Compact(h.ours)
}

// ports is a filter for all traffic of the cluster.
func (h *hunt) ports() string {
	procs, err := procsOf(h.ours...)
	if err != nil {
		h.t.Fatal(err)
	}
	var pids []int
	for _, p := range procs {
		pids = append(pids, p.pid)
	}
	ports, err := portsOf(pids)
	if err != nil {
		h.t.Fatal(err)
	}
	if len(ports) < 8 { // gateway, cluster, broker, three for gossip, one API for each node, and metrics
		h.t.Fatalf("found ports %v only: the capture would miss traffic", ports)
	}
	return "port " + strings.Trim(strings.ReplaceAll(fmt.Sprint(ports), " ", " or port "), "[]")
}

// deploy puts the canaries of the bundle where a function's code, environment
// and secrets are.
func (h *hunt) deploy(change ...func(*client.Deployment)) api.FunctionName {
	h.keys = h.t.TempDir()
	h.c.keyring = client.NewKeyring(h.keys, []byte("test"), rand.Reader)
	return h.redeploy(change...)
}

// redeploy does so again, with the same keys.
func (h *hunt) redeploy(change ...func(*client.Deployment)) api.FunctionName {
	code := h.t.TempDir()
	if err := os.WriteFile(filepath.Join(code, "code.txt"), []byte(h.can.code), 0o644); err != nil {
		h.t.Fatal(err)
	}
	return h.c.deploy(h.t, "canary", append([]func(*client.Deployment){func(d *client.Deployment) {
		d.BundlePath, d.Idle = "/srv/code", 3*time.Second
		d.Bundle = client.Bundle{Dir: code, Env: map[string]string{"CANARY": h.can.env},
			Secrets: map[string][]byte{"token": []byte(h.can.secret)}}
	}}, change...)...)
}

// call uses every part of a request and makes sure that each arrived, so that
// there is something to find.
func (h *hunt) call(fn api.FunctionName, start string) {
	t := h.t
	t.Helper()
	resp, body, err := h.c.invoke(t, fn, client.Request{Path: "/" + h.can.path, Query: "q=" + h.can.query,
		Header: http.Header{"X-Test": {h.can.header}}, Body: strings.NewReader(h.can.body)})
	if err != nil {
		t.Fatal(err)
	}
	if string(body) != h.can.body || resp.Header.Get("X-Echo-Header") != h.can.header ||
		resp.Header.Get("X-Echo-Path") != "/"+h.can.path || resp.Header.Get("X-Echo-Query") != "q="+h.can.query {
		t.Fatalf("the echo is not what was sent: %d %q %v", resp.Status, body, resp.Header)
	}
	if fresh(resp.Meta.Start) != (start == "cold") {
		t.Errorf("the call was served %s, want %s", resp.Meta.Start, start)
	}
	if got := h.c.must(t, fn, "/read?path=/srv/code/code.txt", ""); got != h.can.code {
		t.Fatalf("the function's code: %q", got)
	}
	if got := h.c.must(t, fn, "/env", ""); !strings.Contains(got, "CANARY="+h.can.env) {
		t.Fatalf("the function's environment: %q", got)
	}
	if got := h.c.must(t, fn, "/derive?secret=/var/openfaas/secrets/token&code=/srv/code/code.txt", ""); got != h.can.reply {
		t.Fatalf("the function's own result: %q", got)
	}
}

// large sends and gets 1 MiB.
func (h *hunt) large(fn api.FunctionName) {
	h.t.Helper()
	body := strings.Repeat(h.can.large+"\n", 1<<20/33)
	if got := h.c.must(h.t, fn, "/", body); got != body {
		h.t.Fatalf("the large echo has %d bytes, want %d", len(got), len(body))
	}
}

// streamed sends a body that is handed on while it comes.
func (h *hunt) streamed(fn api.FunctionName) {
	h.t.Helper()
	pr, pw := io.Pipe()
	go func() { // ends with the body, or with the pipe when the call is over
		for range 64 {
			if _, err := io.WriteString(pw, h.can.stream+"\n"); err != nil {
				return
			}
			time.Sleep(2 * time.Millisecond)
		}
		pw.Close()
	}()
	defer pr.Close()
	_, body, err := h.c.invoke(h.t, fn, client.Request{Path: "/upper", Body: pr, Stream: true})
	if err != nil {
		h.t.Fatal(err)
	}
	if want := strings.Repeat(strings.ToUpper(h.can.stream)+"\n", 64); string(body) != want {
		h.t.Fatalf("the streamed reply has %d bytes, want %d", len(body), len(want))
	}
}

// logs makes sure that the owner gets the line that the function printed.
func (h *hunt) logs(fn api.FunctionName) {
	h.t.Helper()
	waitFor(h.t, 10*time.Second, "the log line", func() error {
		ctx, cancel := context.WithTimeout(h.t.Context(), 5*time.Second)
		defer cancel()
		found := errors.New("found")
		err := h.c.client.Logs(ctx, fn, false, func(l client.LogLine, err error) error {
			if err == nil && strings.Contains(l.Text, h.can.log) {
				return found
			}
			return err
		})
		if err == found {
			return nil
		}
		return fmt.Errorf("it is not in the log: %w", err)
	})
}

// load calls the function again and again until stop.
func (h *hunt) load(fn api.FunctionName) (stop func()) {
	ctx, cancel := context.WithCancel(h.t.Context())
	var wg sync.WaitGroup
	body := strings.Repeat(h.can.large+"\n", 2000)
	for i := range 4 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for ctx.Err() == nil {
				req := client.Request{Path: "/" + h.can.path, Query: "q=" + h.can.query, Header: http.Header{"X-Test": {h.can.header}},
					Body: strings.NewReader(h.can.body)}
				switch i {
				case 1:
					req.Body = strings.NewReader(body)
				case 2:
					req = client.Request{Path: "/derive", Query: "secret=/var/openfaas/secrets/token&code=/srv/code/code.txt"}
				case 3:
					req = client.Request{Path: "/upper", Body: strings.NewReader(strings.Repeat(h.can.stream, 64)), Stream: true}
				}
				resp, err := h.c.client.Invoke(ctx, fn, req)
				if err == nil {
					_, err = io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
				}
				if err != nil && ctx.Err() == nil {
					h.t.Errorf("call %d during the search: %v", i, err)
					return
				}
			}
		}()
	}
	return func() { cancel(); wg.Wait() }
}

// idle returns nil when no sandbox of a function is left. Those of the pool stay,
// and are searched like all others.
func (h *hunt) idle() error {
	for _, part := range []string{"node-1", "node-2"} {
		if n := h.c.metric(h.t, part, "faasd_sec_node_sandboxes"); n != 0 {
			return fmt.Errorf("%v sandboxes on %s", n, part)
		}
	}
	return nil
}
