package coordinator

import (
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/faasd-sec/faasd-sec/api"
)

// newEventWorld has a plain function p that answers with what it was given.
func newEventWorld(t *testing.T, annotations map[string]string, serve http.HandlerFunc) *world {
	t.Helper()
	w := newPlainWorld(t, 1, serve)
	if _, err := w.c.PutPlain(t.Context(), "p.openfaas-fn", api.Plain{Image: "img", Annotations: annotations}); err != nil {
		t.Fatal(err)
	}
	return w
}

func tellBack(rw http.ResponseWriter, r *http.Request) {
	b, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	rw.Header().Set("Content-Type", "text/x-told")
	rw.Header().Set("X-Own", "1")
	plainReply(rw, 202, strings.Join([]string{r.Header.Get("Content-Type"), r.Header.Get("ce-id"), r.Header.Get("ce-type"), r.Header.Get("ce-source"), r.Header.Get("ce-mine"), string(b)}, "|"))
}

const anEvent = `{"specversion":"1.0","id":"7","source":"/me","type":"t","mine":"x","datacontenttype":"application/json","data":{"a":1}}`

func TestStructuredEventsAreConvertedWhereThatIsAsked(t *testing.T) {
	const asData = "application/json|7|t|/me|x|{\"a\":1}"
	as := contentTypeEvent + "||||" + "|" + anEvent
	for _, test := range []struct {
		annotation, mode, contentType, body string
		says                                string
	}{
		{"", "", contentTypeEvent, anEvent, as},
		{"data", "", contentTypeEvent, anEvent, asData},
		{"data", "", contentTypeEvent + "; charset=utf-8", anEvent, asData},
		{"", "binary", contentTypeEvent, anEvent, asData},
		{"", "structured", contentTypeEvent, anEvent, asData},
		{"data", "", "text/plain", anEvent, "text/plain|||||" + anEvent},
		{"data", "", contentTypeEvent, strings.Replace(anEvent, `{"a":1}`, `"`+strings.Repeat("x", 1<<20)+`"`, 1), "application/json|7|t|/me|x|\"" + strings.Repeat("x", 1<<20) + "\""},
	} {
		annotations := map[string]string{}
		if test.annotation != "" {
			annotations[annotationEvents] = test.annotation
		}
		w := newEventWorld(t, annotations, tellBack)
		resp, body := w.open(t, "POST", "/function/p/x", test.body, "Content-Type", test.contentType, api.HeaderEvents, test.mode, api.HeaderCallID, "mine")
		h := resp.Header
		if resp.StatusCode != 202 || h.Get("X-Own") != "1" || h.Get(api.HeaderCallID) != "mine" || h.Get(api.HeaderServedBy) != "node-1" {
			t.Errorf("%q %q: %d %v", test.annotation, test.mode, resp.StatusCode, h)
		}
		switch test.mode {
		case "binary":
			if h.Get("ce-type") != eventResult || h.Get("ce-id") != "mine" || h.Get("ce-source") != "/function/p.openfaas-fn" || h.Get("ce-specversion") != "1.0" || h.Get("ce-time") == "" || h.Get("Content-Type") != "text/x-told" {
				t.Errorf("%v", h)
			}
		case "structured":
			var e event
			if err := json.Unmarshal([]byte(body), &e); err != nil || e.ID != "mine" || e.Type != eventResult || e.Source != "/function/p.openfaas-fn" || e.DataType != "text/x-told" || e.Data64 == nil {
				t.Fatalf("%s %v", body, err)
			}
			b, err := base64.StdEncoding.DecodeString(*e.Data64)
			if err != nil || h.Get("Content-Type") != contentTypeEvent || h.Get(api.HeaderFunctionStatus) != "202" {
				t.Errorf("%v %v", h, err)
			}
			body = string(b)
		}
		if body != test.says {
			t.Errorf("%q %q: the function was told %.200q, want %.200q", test.annotation, test.mode, body, test.says)
		}
	}
}

func TestBadEventsAreRefusedByTheNameOfWhatIsWrong(t *testing.T) {
	w := newEventWorld(t, map[string]string{annotationEvents: "data"}, tellBack)
	for body, field := range map[string]string{
		`{`: "body", `{"id":"1","source":"s","type":"t"}`: "body.specversion", `{"specversion":"1.0","source":"s","type":"t"}`: "body.id",
		`{"specversion":"1.0","id":"1","type":"t"}`: "body.source", `{"specversion":"1.0","id":"1","source":"s"}`: "body.type",
		`{"specversion":"1.0","id":"1","source":"s","type":"t","data_base64":"?"}`: "body.data_base64",
		`{"specversion":"1.0","id":"1","source":"s","type":"t","Bad":"?"}`:         "body.Bad",
	} {
		resp, text := w.open(t, "POST", "/function/p", body, "Content-Type", contentTypeEvent)
		var p api.Problem
		if json.Unmarshal([]byte(text), &p) != nil || resp.StatusCode != 400 || p.Field != field || resp.Header.Get(api.HeaderInternal) == "" {
			t.Errorf("%s: %d %s", body, resp.StatusCode, text)
		}
	}
	for _, test := range []struct {
		method, mode string
		more         []string
	}{{"POST", "both", nil}, {"HEAD", "binary", nil}, {"GET", "structured", []string{"Connection", "Upgrade", "Upgrade", "websocket"}}} {
		resp, text := w.open(t, test.method, "/function/p", "", append(test.more, api.HeaderEvents, test.mode)...)
		if resp.StatusCode != 400 || test.method != "HEAD" && !strings.Contains(text, api.HeaderEvents) {
			t.Errorf("%s %s: %d %s", test.method, test.mode, resp.StatusCode, text)
		}
	}
	w = newEventWorld(t, map[string]string{annotationEvents: "often"}, tellBack)
	if resp, text := w.open(t, "POST", "/function/p", anEvent, "Content-Type", contentTypeEvent); resp.StatusCode != 400 || !strings.Contains(text, "annotations."+annotationEvents) {
		t.Errorf("%d %.300s", resp.StatusCode, text)
	}
}

// Only a structured event is held, up to a bound; all else flows.
func TestRepliesFlowUnlessAnEventHoldsThem(t *testing.T) {
	goOn := make(chan struct{})
	w := newEventWorld(t, nil, func(rw http.ResponseWriter, r *http.Request) {
		switch r.Header.Get(api.HeaderTarget) {
		case "/large":
			plainReply(rw, 200, strings.Repeat("x", maxEvent+1))
		case "/none":
			plainReply(rw, 204, "")
		case "/zipped":
			if r.Header.Get("Accept-Encoding") != "" {
				t.Errorf("%v", r.Header)
			}
			rw.Header().Set("Content-Encoding", "gzip")
			plainReply(rw, 200, "x")
		case "/flow":
			rw.Header().Set(api.HeaderServedBy, "node-1")
			rw.WriteHeader(200)
			io.WriteString(rw, "first ")
			rw.(http.Flusher).Flush()
			<-goOn
		}
	})
	for _, mode := range []string{"", "binary"} {
		req, err := http.NewRequestWithContext(t.Context(), "POST", w.url+"/function/p/flow", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set(api.HeaderEvents, mode)
		resp, err := w.http.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 6)
		if _, err := io.ReadFull(resp.Body, b); err != nil || string(b) != "first " || (resp.Header.Get("ce-type") == "") == (mode == "binary") {
			t.Errorf("%q %v %v", b, resp.Header, err)
		}
		goOn <- struct{}{}
		resp.Body.Close()
	}
	if resp, text := w.open(t, "POST", "/function/p/large", "", api.HeaderEvents, "structured"); resp.StatusCode != 413 || !strings.Contains(text, "binary event") || resp.Header.Get(api.HeaderCallID) == "" {
		t.Errorf("%d %.300s", resp.StatusCode, text)
	}
	if resp, text := w.open(t, "POST", "/function/p/none", "", api.HeaderEvents, "structured"); resp.StatusCode != 200 || resp.Header.Get(api.HeaderFunctionStatus) != "204" || !strings.Contains(text, `"data_base64":""`) {
		t.Errorf("%d %.300s", resp.StatusCode, text)
	}
	if resp, text := w.open(t, "POST", "/function/p/zipped", "", api.HeaderEvents, "structured", "Accept-Encoding", "gzip"); resp.StatusCode/100 != 5 {
		t.Errorf("%d %.300s", resp.StatusCode, text)
	}
	w.eventually("nothing is held any more", func() bool { return w.c.budget.inUse() == 0 })
	w.rest()
}
