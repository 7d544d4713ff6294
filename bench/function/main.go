// Command function is what the benchmark deploys as a Go function: a fasthttp
// server that echoes, so that the function itself costs as little as its floor
// does.
//
// It listens on file descriptor 3, or on the TCP address in BENCH_LISTEN. With BENCH_DIAL set it connects to that unix
// socket instead, writes one byte, which is how the floors measure a start, and
// echoes bytes from then on, which is how they measure that it runs again.
package main

import (
	"io"
	"log"
	"net"
	"os"

	"github.com/valyala/fasthttp"
)

func main() {
	if path := os.Getenv("BENCH_DIAL"); path != "" {
		dial(path)
		return
	}
	ln, err := listen()
	if err != nil {
		log.Fatal(err)
	}
	s := &fasthttp.Server{
		MaxRequestBodySize: 512 << 20, NoDefaultServerHeader: true,
		StreamRequestBody: true, Handler: echo,
	}
	log.Fatal(s.Serve(ln))
}

func listen() (net.Listener, error) {
	if address := os.Getenv("BENCH_LISTEN"); address != "" {
		return net.Listen("tcp", address)
	}
	return net.FileListener(os.NewFile(3, "listen"))
}

// dial tells who measures that this process runs.
func dial(path string) {
	c, err := net.Dial("unix", path)
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte("1")); err != nil {
		log.Fatal(err)
	}
	_, _ = io.Copy(c, c) // its end, however it comes, is ours
}

// echo answers small bodies at once and lets large ones flow through. A GET,
// which has no body, is answered with a word.
func echo(ctx *fasthttp.RequestCtx) {
	if ctx.IsGet() {
		ctx.SetBodyString("hello")
		return
	}
	size := ctx.Request.Header.ContentLength()
	if body := ctx.RequestBodyStream(); body != nil && (size < 0 || size > 1<<20) {
		ctx.SetConnectionClose()
		ctx.SetBodyStream(body, -1)
		return
	}
	ctx.SetBody(ctx.PostBody())
}
