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
		Handler: func(ctx *fasthttp.RequestCtx) { ctx.SetBody(ctx.PostBody()) },
	}
	log.Fatal(s.Serve(ln))
}
