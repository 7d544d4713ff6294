// Command function is what the benchmark deploys: a fasthttp server that
// echoes, so that the function itself costs as little as its floor does.
package main

import (
	"log"
	"net"
	"os"

	"github.com/valyala/fasthttp"
)

func main() {
	ln, err := net.FileListener(os.NewFile(3, "listen"))
	if err != nil {
		log.Fatal(err)
	}
	s := &fasthttp.Server{
		MaxRequestBodySize: 512 << 20, NoDefaultServerHeader: true,
		StreamRequestBody: true, Handler: echo,
	}
	log.Fatal(s.Serve(ln))
}

// echo answers small bodies at once and lets large ones flow through.
func echo(ctx *fasthttp.RequestCtx) {
	size := ctx.Request.Header.ContentLength()
	if body := ctx.RequestBodyStream(); body != nil && (size < 0 || size > 1<<20) {
		ctx.SetConnectionClose()
		ctx.SetBodyStream(body, -1)
		return
	}
	ctx.SetBody(ctx.PostBody())
}
