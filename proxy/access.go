package proxy

import (
	"crypto/sha256"
	"crypto/subtle"
	"net"
	"net/url"
	"strings"

	"github.com/valyala/fasthttp"

	"github.com/faasd-sec/faasd-sec/api"
)

// headerFetchSite is where browsers say which site a request came from.
const headerFetchSite = "Sec-Fetch-Site"

// access decides who may use the proxy.
type access struct {
	token *[sha256.Size]byte // nil: whoever reaches it
	local bool               // it listens on loopback, without a token
}

// newAccess takes the token; "" for none. local says that the listener is on
// loopback.
func newAccess(token string, local bool) (access, error) {
	if token == "" {
		return access{local: local}, nil
	}
	if len(token) < minToken {
		return access{}, api.Invalid("token_file", "draw a longer one, as in: openssl rand -hex 32", "the token is shorter than 16 characters")
	}
	sum := sha256.Sum256([]byte(token))
	return access{token: &sum}, nil
}

// check refuses a request that may not act with the proxy's keys. Tokens are
// compared by their digests, in a time that tells nothing of them.
func (a access) check(ctx *fasthttp.RequestCtx) error {
	if a.token != nil {
		got, ok := strings.CutPrefix(string(ctx.Request.Header.Peek(fasthttp.HeaderProxyAuthorization)), "Bearer ")
		sum := sha256.Sum256([]byte(got))
		if subtle.ConstantTimeCompare(sum[:], a.token[:]) != 1 || !ok {
			return &api.Error{Code: api.CodeUnauthorized, Field: fasthttp.HeaderProxyAuthorization, Message: "the proxy's token is missing or wrong",
				Remedy: "send \"Proxy-Authorization: Bearer TOKEN\" with the token of the proxy's token_file"}
		}
		return nil
	}
	if !a.local {
		return nil // a unix socket, whose mode decides
	}
	// A web page that a browser on this machine shows can send requests to
	// loopback too: under its own name that resolves to here, or across origins.
	if host := string(ctx.Request.Header.Host()); !loopbackName(host) {
		return &api.Error{Code: api.CodeForbidden, Field: "Host", Message: "without a token the proxy serves loopback names alone",
			Remedy: "call it as 127.0.0.1 or localhost, or set token_file"}
	}
	if o := string(ctx.Request.Header.Peek(fasthttp.HeaderOrigin)); o != "" {
		if u, err := url.Parse(o); err != nil || u.Host != string(ctx.Request.Header.Host()) {
			return &api.Error{Code: api.CodeForbidden, Field: "Origin", Message: "without a token the proxy serves no pages of other origins",
				Remedy: "set token_file, and send the token"}
		}
	}
	// A picture or a link of a page sends no Origin; then this header tells.
	switch site := string(ctx.Request.Header.Peek(headerFetchSite)); site {
	case "", "same-origin", "none":
	default:
		return &api.Error{Code: api.CodeForbidden, Field: headerFetchSite, Message: "without a token the proxy serves no pages of other origins",
			Remedy: "set token_file, and send the token"}
	}
	return nil
}

func loopbackName(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	ip := net.ParseIP(strings.Trim(host, "[]"))
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
