package upstream

import (
	"io"
	"net"
	"time"

	"github.com/valyala/fasthttp"
)

// Hijack answers ctx's request with the status 101 and the headers that ctx's
// response has, and then passes bytes on between its connection and to until one
// of them ends, or until is over. end, which is called once in every case, must
// make reads and writes of to return.
func Hijack(ctx *fasthttp.RequestCtx, protocol string, until time.Time, to io.ReadWriter, end func()) {
	h := &ctx.Response.Header
	h.SetStatusCode(fasthttp.StatusSwitchingProtocols)
	h.SetNoDefaultContentType(true)
	h.Set(fasthttp.HeaderConnection, "Upgrade")
	h.Set(fasthttp.HeaderUpgrade, protocol)
	ctx.HijackSetNoResponse(true) // a server that fails to write it would not come to the handler
	ctx.Hijack(func(c net.Conn) {
		err := c.SetDeadline(until)
		if err == nil {
			_, err = c.Write(h.Header())
		}
		if err != nil {
			end()
			return
		}
		Splice(c, to, func() {
			_ = c.SetDeadline(time.Unix(1, 0)) // one that takes none is broken, and reading it returns anyway
			end()
		})
	})
}
