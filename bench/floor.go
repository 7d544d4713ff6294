package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/valyala/fasthttp"
)

// serveFloor is a floor's server process: "echo NETWORK ADDR", or "proxy
// NETWORK ADDR NETWORK ADDR", which passes every request on.
func serveFloor(args []string) error {
	if len(args) < 3 {
		return fmt.Errorf("usage: floor echo|proxy NETWORK ADDR [NETWORK ADDR]")
	}
	ln, err := net.Listen(args[1], args[2])
	if err != nil {
		return err
	}
	h := func(ctx *fasthttp.RequestCtx) { ctx.SetBody(ctx.PostBody()) }
	if args[0] == "proxy" {
		up := upstream(args[3], args[4])
		h = func(ctx *fasthttp.RequestCtx) {
			ctx.Request.SetRequestURI("/")
			if err := up.Do(&ctx.Request, &ctx.Response); err != nil {
				ctx.Error(err.Error(), 502)
			}
		}
	}
	s := &fasthttp.Server{Handler: h, MaxRequestBodySize: 64 << 20, NoDefaultServerHeader: true}
	return s.Serve(ln)
}

func upstream(network, addr string) *fasthttp.HostClient {
	return &fasthttp.HostClient{Addr: "peer", MaxConns: 1024, MaxResponseBodySize: 64 << 20,
		Dial: func(string) (net.Conn, error) { return net.DialTimeout(network, addr, time.Second) }}
}

// floors are the running floor processes.
type floors struct {
	procs          []*exec.Cmd
	direct, oneHop [2]string // network, address
	twoHop         [2]string
}

// startFloors runs: a direct unix echo; one proxy before it; two proxies, as
// the coordinator's and the node's hop.
func startFloors(ctx context.Context, o options) (_ *floors, err error) {
	f := &floors{}
	defer func() {
		if err != nil {
			f.stop()
		}
	}()
	echo := [2]string{"unix", filepath.Join(o.scratch, "echo.sock")}
	one := [2]string{"tcp", freeAddr()}
	two := [2]string{"tcp", freeAddr()}
	for _, args := range [][]string{
		{"echo", echo[0], echo[1]},
		{"proxy", one[0], one[1], echo[0], echo[1]},
		{"proxy", two[0], two[1], one[0], one[1]},
	} {
		cmd := exec.CommandContext(ctx, o.selfPath, append([]string{"floor"}, args...)...)
		cmd.Stderr = os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			return nil, err
		}
		f.procs = append(f.procs, cmd)
		if err := waitDial(ctx, args[1], args[2]); err != nil {
			return nil, err
		}
	}
	f.direct, f.oneHop, f.twoHop = echo, one, two
	return f, nil
}

func (f *floors) stop() {
	for _, p := range f.procs {
		_ = p.Process.Kill()
		_ = p.Wait()
	}
}

func freeAddr() string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "127.0.0.1:0"
	}
	defer ln.Close()
	return ln.Addr().String()
}

func waitDial(ctx context.Context, network, addr string) error {
	deadline := time.Now().Add(5 * time.Second)
	for {
		c, err := net.DialTimeout(network, addr, time.Second)
		if err == nil {
			return c.Close()
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			return err
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// plainCall is one plain request to a floor.
func plainCall(c *fasthttp.HostClient, body []byte) error {
	req, resp := fasthttp.AcquireRequest(), fasthttp.AcquireResponse()
	defer fasthttp.ReleaseRequest(req)
	defer fasthttp.ReleaseResponse(resp)
	req.SetRequestURI("/")
	req.Header.SetHost("peer")
	req.Header.SetMethod(fasthttp.MethodPost)
	req.SetBodyRaw(body)
	if err := c.Do(req, resp); err != nil {
		return err
	}
	if len(resp.Body()) != len(body) {
		return fmt.Errorf("%d bytes came back of %d", len(resp.Body()), len(body))
	}
	return nil
}
