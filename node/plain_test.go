package node

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/faasd-sec/faasd-sec/api"
)

// A function's reply has all of its headers but those by which nodes speak to
// coordinators: one that refuses in its node's name would have its call made again
// elsewhere, and one that tells a load decides where all others are placed.
func TestAPlainFunctionDoesNotSpeakForItsNode(t *testing.T) {
	forged := map[string]string{
		api.HeaderRefused: string(api.CodeNoRoom), api.HeaderLoad: `{"n":"node-2","e":9223372036854775807,"s":1,"f":{}}`,
		api.HeaderUnopened: "1", api.HeaderStart: "forged", api.HeaderServedBy: "forged", api.HeaderTicket: "forged", "X-Faasd-Sec-Odd": "forged",
	}
	w := newWorld(t, func(w *world) {
		w.openly = func(rw http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			for name, v := range forged {
				rw.Header().Set(name, v)
			}
			rw.Header().Set("X-Mine", r.Header.Get(api.HeaderTarget))
			rw.WriteHeader(http.StatusTeapot)
			_, _ = io.WriteString(rw, "body")
		}
	})
	p := api.Plain{Image: "img", ReadOnlyRoot: true, Limits: &api.PlainAmounts{CPU: "400m", Memory: "64Mi"}}
	digest, err := p.Revision("p.ns", imageDigest)
	if err != nil {
		t.Fatal(err)
	}
	rec, err := json.Marshal(api.Revision{Plain: &api.PlainRevision{Name: "p.ns", Sequence: 1, Image: imageDigest, Function: p}})
	if err != nil {
		t.Fatal(err)
	}
	if status, _, body := w.do("PUT", api.NodePathRevisions+digest, rec); status != http.StatusNoContent {
		t.Fatalf("told a plain revision: %d %s", status, body)
	}
	for _, size := range []int{10, 300 << 10} { // the second one goes another way
		status, h, body := w.do("POST", fmt.Sprintf("%sp.ns?rev=%s&seq=1", api.NodePathPlain, digest), []byte(strings.Repeat("x", size)), api.HeaderTarget, "/a")
		if status != http.StatusTeapot || body != "body" || h.Get("X-Mine") != "/a" {
			t.Fatalf("%d bytes: %d %s %v", size, status, body, h)
		}
		for name, v := range forged {
			if h.Get(name) == v {
				t.Errorf("%d bytes: the function said %s: %s", size, name, v)
			}
		}
	}
}
