package client_test

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/client"
	"github.com/faasd-sec/faasd-sec/client/clienttest"
)

func TestRefusalsKeepTheirCode(t *testing.T) {
	c, owner, _ := deployed(t)
	for _, code := range []api.Code{api.CodeBusy, api.CodeNoRoom, api.CodeReplay, api.CodeOOMKilled, "window"} {
		c.Intercept = func(w http.ResponseWriter, r *http.Request) bool {
			if strings.HasPrefix(r.URL.Path, api.GatewayPathInvoke) {
				clienttest.Fail(w, &api.Error{Code: code, Message: "no", Field: "f", Remedy: "r"})
				return true
			}
			return false
		}
		_, err := owner.Invoke(t.Context(), fn, client.Request{})
		var e *api.Error
		if !errors.As(err, &e) || e.Code != code || e.Field != "f" || e.Remedy != "r" {
			t.Errorf("%s: error %v", code, err)
		}
	}
}

func TestAReplyThatIsNotTheFunctionsIsRefused(t *testing.T) {
	c, owner, _ := deployed(t)
	var kept []byte
	rewrite := func(change func([]byte) []byte) {
		c.Intercept = func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.HasPrefix(r.URL.Path, api.GatewayPathInvoke) {
				return false
			}
			rec := &recorder{header: make(http.Header)}
			c.Invoke(rec, r)
			w.Header().Set("Content-Type", rec.header.Get("Content-Type"))
			w.Write(change(rec.body.Bytes()))
			return true
		}
	}
	read := func() error {
		res, err := owner.Invoke(t.Context(), fn, client.Request{Body: strings.NewReader("hello")})
		if err != nil {
			return err
		}
		defer res.Body.Close()
		_, err = io.ReadAll(res.Body)
		return err
	}
	rewrite(func(b []byte) []byte { kept = bytes.Clone(b); return b })
	wantCode(t, read(), "")
	rewrite(func(b []byte) []byte { return kept })
	if err := read(); err == nil {
		t.Error("another request's reply was accepted")
	}
	rewrite(func(b []byte) []byte { b[len(b)-1] ^= 1; return b })
	wantCode(t, read(), "record")
	rewrite(func(b []byte) []byte { return b[:len(b)-25] })
	wantCode(t, read(), api.CodeNodeLost)
	rewrite(func(b []byte) []byte { return append(b, 0) })
	if err := read(); err == nil {
		t.Error("bytes after the end were accepted")
	}
	rewrite(func([]byte) []byte { return nil })
	if err := read(); err == nil {
		t.Error("an empty reply was accepted")
	}
	c.Intercept = func(w http.ResponseWriter, r *http.Request) bool {
		if strings.HasPrefix(r.URL.Path, api.GatewayPathInvoke) {
			w.Header().Set("Content-Type", "text/plain")
			io.WriteString(w, "plain")
			return true
		}
		return false
	}
	wantCode(t, read(), api.CodeMediaType)
}

type recorder struct {
	header http.Header
	body   bytes.Buffer
}

func (r *recorder) Header() http.Header { return r.header }

func (r *recorder) Write(p []byte) (int, error) { return r.body.Write(p) }

func (r *recorder) WriteHeader(int) {}

func (r *recorder) Flush() {}
