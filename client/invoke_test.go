package client_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"io"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/client"
	"github.com/faasd-sec/faasd-sec/sealed"
)

func TestInvokeSealsEverythingAndOpensTheReply(t *testing.T) {
	c, owner, _ := deployed(t)
	var seen bytes.Buffer
	c.Intercept = func(_ http.ResponseWriter, r *http.Request) bool {
		b, _ := io.ReadAll(r.Body)
		seen.Write(b)
		r.Body = io.NopCloser(bytes.NewReader(b))
		return false
	}
	res, err := owner.Invoke(t.Context(), fn, client.Request{Method: "PUT", Path: "/a/b", Query: "q=1",
		Header: http.Header{"X-Key": {"confidential-header"}}, Body: strings.NewReader("confidential-body")})
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil || string(b) != "confidential-body" {
		t.Fatalf("%q, %v", b, err)
	}
	if res.Status != 201 || res.Header.Get("X-Line") != "PUT /a/b?q=1" || res.Header.Get("Echo-X-Key") != "confidential-header" {
		t.Errorf("status %d, header %v", res.Status, res.Header)
	}
	if res.Meta.Node != "n1" || res.Meta.Start != "warm" || res.Meta.InServer != time.Millisecond || res.Meta.Revision != c.Revision {
		t.Errorf("meta %+v", res.Meta)
	}
	if bytes.Contains(seen.Bytes(), []byte("confidential")) || bytes.Contains(seen.Bytes(), []byte("/a/b")) {
		t.Error("the gateway saw plaintext")
	}
}

func TestBodiesOfEverySizeComeBack(t *testing.T) {
	_, owner, _ := deployed(t)
	for _, n := range []int{0, 1, 64<<10 - 1, 64 << 10, 64<<10 + 1, 3 << 20} {
		for _, stream := range []bool{false, true} {
			want := make([]byte, n)
			rand.Read(want)
			res, err := owner.Invoke(t.Context(), fn, client.Request{Body: struct{ io.Reader }{bytes.NewReader(want)}, Stream: stream})
			if err != nil {
				t.Fatalf("%d bytes, stream %v: %v", n, stream, err)
			}
			got, err := io.ReadAll(res.Body)
			res.Body.Close()
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%d bytes, stream %v: %d came back, %v", n, stream, len(got), err)
			}
		}
	}
}

// With Stream the reply to the first piece arrives before the second is written.
func TestStreamingIsFullDuplex(t *testing.T) {
	_, owner, _ := deployed(t)
	pr, pw := io.Pipe()
	go pw.Write([]byte("one"))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	res, err := owner.Invoke(ctx, fn, client.Request{Body: pr, Stream: true})
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	for _, word := range []string{"one", "two", "three"} {
		if word != "one" {
			if _, err := pw.Write([]byte(word)); err != nil {
				t.Fatal(err)
			}
		}
		got := make([]byte, len(word))
		if _, err := io.ReadFull(res.Body, got); err != nil || string(got) != word {
			t.Fatalf("%q, %v", got, err)
		}
	}
	pw.Close()
	if rest, err := io.ReadAll(res.Body); err != nil || len(rest) != 0 {
		t.Fatalf("%q, %v", rest, err)
	}
}

func TestLargeBodiesPassInFlatMemory(t *testing.T) {
	_, owner, _ := deployed(t)
	const size = 64 << 20
	res, err := owner.Invoke(t.Context(), fn, client.Request{Body: io.LimitReader(zeros{}, size), Stream: true})
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var before, peak uint64
	buf := make([]byte, 1<<20)
	var total int64
	for {
		n, err := res.Body.Read(buf)
		total += int64(n)
		if total%(8<<20) < int64(n) {
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			if before == 0 {
				before = m.HeapAlloc
			}
			peak = max(peak, m.HeapAlloc)
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if total != size {
		t.Errorf("%d bytes came back", total)
	}
	if peak > before+24<<20 {
		t.Errorf("heap grew from %d to %d MiB", before>>20, peak>>20)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestOnlyAPinnedOwnersDescriptorIsUsed(t *testing.T) {
	c, owner, _ := deployed(t)
	caller := identity(t)
	invoke := func(cl *client.Client) error {
		res, err := cl.Invoke(t.Context(), fn, client.Request{})
		if err == nil {
			res.Body.Close()
		}
		return err
	}
	wantCode(t, invoke(c.client(caller)), api.CodeForbidden)
	pins := new(client.Pins)
	pinned := func(cfg *client.Config) { cfg.Pins = pins }
	if err := pins.SetOwner(c.URL, "openfaas-fn", c.Owner); err != nil {
		t.Fatal(err)
	}
	wantCode(t, invoke(c.client(caller, pinned)), "")
	if err := pins.SetOwner(c.URL, string(fn), sealed.Fingerprint{1}); err != nil {
		t.Fatal(err)
	}
	wantCode(t, invoke(c.client(caller, pinned)), api.CodeForbidden)
	wantCode(t, invoke(c.client(caller, pinned, firstUse)), api.CodeForbidden)
	wantCode(t, invoke(owner), "")
	first := new(client.Pins)
	cl := c.client(caller, firstUse, func(cfg *client.Config) { cfg.Pins = first })
	wantCode(t, invoke(cl), "")
	if got, ok := first.Owner(c.URL, fn); !ok || got != c.Owner {
		t.Error("the first use was not remembered")
	}
}

func TestAForgedDescriptorIsRefused(t *testing.T) {
	c, owner, _ := deployed(t)
	good := c.Record.Descriptor
	serve := func(desc []byte) {
		c.Record = &api.Revision{Descriptor: desc}
	}
	for name, at := range map[string]int{"payload": 40, "signature": len(good) - 3} {
		bad := bytes.Clone(good)
		bad[at] ^= 1
		serve(bad)
		pins := new(client.Pins)
		cl := c.client(identity(t), firstUse, func(cfg *client.Config) { cfg.Pins = pins })
		if _, err := cl.Invoke(t.Context(), fn, client.Request{}); err == nil {
			t.Errorf("%s changed: accepted", name)
		}
		if len(pins.List()) != 0 {
			t.Errorf("%s changed: its claimed owner was pinned", name)
		}
	}
	serve(nil)
	_, err := c.client(identity(t), firstUse).Invoke(t.Context(), fn, client.Request{})
	wantCode(t, err, api.CodeInvalid)
	serve(good)
	_, err = owner.Invoke(t.Context(), "other.openfaas-fn", client.Request{})
	wantCode(t, err, api.CodeForbidden)
}

func TestGatewayURLsAreChecked(t *testing.T) {
	for _, u := range []string{"", "127.0.0.1:8080", "ftp://x", "http://u:p@x", "http://x/path", "http://x?q=1", "http://"} {
		_, err := client.New(client.Config{Gateway: u})
		wantCode(t, err, api.CodeInvalid)
	}
	cl, err := client.New(client.Config{Gateway: "http://127.0.0.1:1"})
	if err != nil {
		t.Fatal(err)
	}
	_, err = cl.List(t.Context())
	wantCode(t, err, api.CodeUnavailable)
}
