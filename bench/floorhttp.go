package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/valyala/fasthttp"
)

// serveFloor is a floor's server process: "echo ADDR", "proxy ADDR TO" over
// HTTP, "pipe-echo ADDR" and "pipe ADDR TO" for bare bytes. An address is
// "tcp:HOST:PORT" or "unix:PATH". It ends with its standard input, which is its
// parent's end of a pipe.
func serveFloor(args []string) error {
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	if len(args) < 2 || len(args) < 3 && (args[0] == "proxy" || args[0] == "pipe") {
		return fmt.Errorf("usage: floor echo|pipe-echo ADDR, floor proxy|pipe ADDR TO")
	}
	at, err := parseEndpoint(args[1])
	if err != nil {
		return err
	}
	var to endpoint
	if len(args) > 2 {
		if to, err = parseEndpoint(args[2]); err != nil {
			return err
		}
	}
	ln, err := net.Listen(at.network, at.addr)
	if err != nil {
		return err
	}
	switch args[0] {
	case "echo":
		return serveHTTP(ln, func(ctx *fasthttp.RequestCtx) { ctx.SetBody(ctx.PostBody()) })
	case "proxy":
		next := to.client()
		return serveHTTP(ln, func(ctx *fasthttp.RequestCtx) {
			ctx.Request.SetRequestURI("/")
			if err := next.Do(&ctx.Request, &ctx.Response); err != nil {
				ctx.Error(err.Error(), fasthttp.StatusBadGateway)
			}
		})
	case "pipe-echo":
		return servePipe(ln, func(c net.Conn) { both(c, c) })
	case "pipe":
		return servePipe(ln, func(c net.Conn) {
			up, err := to.dial()
			if err != nil {
				return
			}
			defer up.Close()
			var wg sync.WaitGroup
			wg.Go(func() { both(up, c) })
			both(c, up)
			wg.Wait()
		})
	}
	return fmt.Errorf("floor: %q is none of echo, proxy, pipe-echo, pipe", args[0])
}

func serveHTTP(ln net.Listener, h fasthttp.RequestHandler) error {
	s := &fasthttp.Server{Handler: h, MaxRequestBodySize: 64 << 20, NoDefaultServerHeader: true}
	return s.Serve(ln)
}

func servePipe(ln net.Listener, serve func(net.Conn)) error {
	for {
		c, err := ln.Accept()
		if err != nil {
			return err
		}
		go func() { // ends with the connection
			defer c.Close()
			serve(c)
		}()
	}
}

// both copies what comes from src to dst and passes the end on. The kernel
// moves the bytes where it can.
func both(dst, src net.Conn) {
	_, _ = io.Copy(dst, src) // a broken connection shows at the other end
	if w, ok := dst.(interface{ CloseWrite() error }); ok {
		_ = w.CloseWrite()
	}
}

// endpoint is where a floor's process listens.
type endpoint struct{ network, addr string }

func (e endpoint) String() string { return e.network + ":" + e.addr }

func (e endpoint) dial() (net.Conn, error) { return net.DialTimeout(e.network, e.addr, time.Second) }

func parseEndpoint(s string) (endpoint, error) {
	for _, network := range []string{"tcp", "unix"} {
		if addr, ok := strings.CutPrefix(s, network+":"); ok && addr != "" {
			return endpoint{network, addr}, nil
		}
	}
	return endpoint{}, fmt.Errorf("floor: %q is neither tcp:HOST:PORT nor unix:PATH", s)
}

func (e endpoint) client() *fasthttp.HostClient {
	return &fasthttp.HostClient{Addr: "peer", MaxConns: 4096, MaxResponseBodySize: 64 << 20, ReadTimeout: time.Minute, WriteTimeout: time.Minute,
		Dial: func(string) (net.Conn, error) { return e.dial() }}
}

// floors are the running floor processes, laid out as our hops are: the caller
// by TCP to the first, unix sockets from there on.
type floors struct {
	procs          []*exec.Cmd
	stdin          []io.Closer
	direct, twoHop endpoint
	pipe           endpoint             // bare bytes over as many hops
	twoHopC        *fasthttp.HostClient // kept, for calls of 1 KiB
}

// startFloors runs an HTTP echo behind two proxies and a byte echo behind two
// pipes. They end with stop.
func startFloors(ctx context.Context, o options) (_ *floors, err error) {
	f := &floors{}
	defer func() {
		if err != nil {
			f.stop()
		}
	}()
	sock := func(name string) endpoint { return endpoint{"unix", filepath.Join(o.scratch, name)} }
	var tcp [2]endpoint
	for i := range tcp {
		if tcp[i], err = freeEndpoint(); err != nil {
			return nil, err
		}
	}
	echo, node, pipeEcho, pipeNode := sock("e"), sock("n"), sock("pe"), sock("pn")
	for _, args := range [][]string{
		{"echo", echo.String()}, {"proxy", node.String(), echo.String()}, {"proxy", tcp[0].String(), node.String()},
		{"pipe-echo", pipeEcho.String()}, {"pipe", pipeNode.String(), pipeEcho.String()}, {"pipe", tcp[1].String(), pipeNode.String()},
	} {
		cmd := exec.CommandContext(ctx, o.selfPath, append([]string{"floor"}, args...)...)
		cmd.Stderr = os.Stderr
		// Its own group: the terminal's Ctrl-C reaches it through stop.
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		in, err := cmd.StdinPipe()
		if err != nil {
			return nil, fmt.Errorf("start a floor: %w", err)
		}
		f.stdin = append(f.stdin, in)
		if err := cmd.Start(); err != nil {
			return nil, fmt.Errorf("start a floor: %w", err)
		}
		f.procs = append(f.procs, cmd)
		at, err := parseEndpoint(args[1])
		if err != nil {
			return nil, err
		}
		if err := waitDial(ctx, at); err != nil {
			return nil, fmt.Errorf("floor %s: %w", args[0], err)
		}
	}
	f.direct, f.twoHop, f.pipe = echo, tcp[0], tcp[1]
	f.twoHopC = f.twoHop.client()
	return f, nil
}

func (f *floors) stop() {
	for _, in := range f.stdin {
		_ = in.Close()
	}
	for _, p := range f.procs {
		_ = p.Process.Kill()
		_ = p.Wait()
	}
}

func freeEndpoint() (endpoint, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return endpoint{}, fmt.Errorf("find a free port: %w", err)
	}
	defer ln.Close()
	return endpoint{"tcp", ln.Addr().String()}, nil
}

// waitDial returns when somebody listens.
func waitDial(ctx context.Context, e endpoint) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		c, err := e.dial()
		if err == nil {
			return c.Close()
		}
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-tick.C:
		}
	}
}

// plainCall makes plain requests and checks that all came back.
func plainCall(c *fasthttp.HostClient, path string, body []byte) func(context.Context) error {
	return func(context.Context) error {
		req, resp := fasthttp.AcquireRequest(), fasthttp.AcquireResponse()
		defer fasthttp.ReleaseRequest(req)
		defer fasthttp.ReleaseResponse(resp)
		req.SetRequestURI(path)
		req.Header.SetHost("peer")
		req.Header.SetMethod(fasthttp.MethodPost)
		req.SetBodyRaw(body)
		if err := c.Do(req, resp); err != nil {
			return err
		}
		if resp.StatusCode() != fasthttp.StatusOK || len(resp.Body()) != len(body) {
			return fmt.Errorf("status %d, %d bytes came back of %d", resp.StatusCode(), len(resp.Body()), len(body))
		}
		return nil
	}
}
