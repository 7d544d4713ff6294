package agent

import (
	"bytes"
	"io"
	"net"
	"testing"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/sealed/unseal"
)

// BenchmarkAgentInvoke1KiB is a warm sealed invocation of 1 KiB: the caller
// seals, the agent opens, a function in another process echoes, the agent
// re-seals, the caller opens; two unix sockets, grants cached.
func BenchmarkAgentInvoke1KiB(b *testing.B) {
	benchmarkInvoke(b, 1<<10)
}

// BenchmarkAgentInvoke64KiB is the same with 64 KiB.
func BenchmarkAgentInvoke64KiB(b *testing.B) { benchmarkInvoke(b, 64<<10) }

func benchmarkInvoke(b *testing.B, size int) {
	w := newWorld(b, func(w *world) {
		w.desc.Config.Argv = []string{testBinary, "fn", "fast"}
		w.cfg.ReplaySize = 1 << 20
	}).start()
	body := bytes.Repeat([]byte("x"), size)
	hc := benchClient(w.cfg.httpSocket())
	defer hc.CloseIdleConnections()
	g, err := w.grants.Get(sealed.GrantParams{Role: sealed.RoleRequest, Recipient: w.desc.Decryption[0].Key,
		Sender: w.caller.Signer(), ReplyKey: w.caller.DecryptionKey(), Context: w.revision, Name: w.desc.FullName()})
	if err != nil {
		b.Fatal(err)
	}
	defer g.Release()
	keys, err := unseal.NewKeySet(unseal.Key{Decrypter: w.caller.Decrypter()})
	if err != nil {
		b.Fatal(err)
	}
	cache, err := unseal.NewCache(unseal.DefaultCacheConfig())
	if err != nil {
		b.Fatal(err)
	}
	o, err := unseal.NewOpener(unseal.Config{Keys: keys, Cache: cache})
	if err != nil {
		b.Fatal(err)
	}
	head := sealed.RequestHead{Method: "POST", Path: "/echo"}
	req, resp := fasthttp.AcquireRequest(), fasthttp.AcquireResponse()
	defer fasthttp.ReleaseRequest(req)
	defer fasthttp.ReleaseResponse(resp)
	var buf []byte
	b.SetBytes(int64(size))
	b.ReportAllocs()
	for b.Loop() {
		var mh sealed.MessageHeader
		var link sealed.Link
		buf, mh, link, err = g.AppendRequest(buf[:0], sealed.MessageParams{Issued: time.Now(), Life: 10 * time.Second}, head, body)
		if err != nil {
			b.Fatal(err)
		}
		req.Reset()
		resp.Reset()
		req.SetRequestURI("http://agent" + api.AgentPathInvoke)
		req.Header.SetMethod("POST")
		req.Header.SetContentType(api.ContentTypeSealed)
		req.SetBodyRaw(buf)
		if err := hc.Do(req, resp); err != nil {
			b.Fatal(err)
		}
		if resp.StatusCode() != 200 {
			b.Fatalf("%d %s", resp.StatusCode(), resp.Body())
		}
		p, err := o.ExpectReply(unseal.ExpectReply{ID: mh.ID, Link: link, Name: w.desc.FullName(), Context: w.revision, Sender: w.desc.SigningKey})
		if err != nil {
			b.Fatal(err)
		}
		m, err := p.Open(bytes.NewReader(resp.Body()))
		if err != nil {
			b.Fatal(err)
		}
		r, err := m.Stream()
		if err != nil {
			b.Fatal(err)
		}
		n, err := io.Copy(io.Discard, r)
		m.Close()
		if err != nil || n != int64(size) {
			b.Fatalf("%d bytes, %v", n, err)
		}
	}
}

// BenchmarkFloorTwoUnixHops is the floor: the same function behind one fasthttp
// proxy, plain, over the same kind of sockets.
func BenchmarkFloorTwoUnixHops1KiB(b *testing.B) {
	dir := b.TempDir()
	fn, err := net.Listen("unix", dir+"/fn")
	if err != nil {
		b.Fatal(err)
	}
	inner := &fasthttp.Server{Handler: func(ctx *fasthttp.RequestCtx) { ctx.SetBody(ctx.PostBody()) }}
	go func() { _ = inner.Serve(fn) }()
	defer inner.Shutdown()
	up := benchClient(dir + "/fn")
	defer up.CloseIdleConnections()
	px, err := net.Listen("unix", dir+"/px")
	if err != nil {
		b.Fatal(err)
	}
	outer := &fasthttp.Server{Handler: func(ctx *fasthttp.RequestCtx) {
		if err := up.Do(&ctx.Request, &ctx.Response); err != nil {
			ctx.Error(err.Error(), 502)
		}
	}}
	go func() { _ = outer.Serve(px) }()
	defer outer.Shutdown()
	hc := benchClient(dir + "/px")
	defer hc.CloseIdleConnections()
	body := bytes.Repeat([]byte("x"), 1<<10)
	req, resp := fasthttp.AcquireRequest(), fasthttp.AcquireResponse()
	defer fasthttp.ReleaseRequest(req)
	defer fasthttp.ReleaseResponse(resp)
	b.SetBytes(1 << 10)
	b.ReportAllocs()
	for b.Loop() {
		req.Reset()
		resp.Reset()
		req.SetRequestURI("http://agent/echo")
		req.Header.SetMethod("POST")
		req.SetBodyRaw(body)
		if err := hc.Do(req, resp); err != nil || len(resp.Body()) != len(body) {
			b.Fatal(err)
		}
	}
}

func benchClient(path string) *fasthttp.HostClient {
	return &fasthttp.HostClient{Addr: "agent", NoDefaultUserAgentHeader: true,
		Dial: func(string) (net.Conn, error) { return net.Dial("unix", path) }}
}
