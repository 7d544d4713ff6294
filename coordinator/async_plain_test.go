package coordinator

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/emmansun/gmsm/sm2"
	"github.com/emmansun/gmsm/sm3"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/queue"
	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/store"
)

// plainWorld is an asyncWorld with the plain function p.ns, which handler serves.
func plainWorld(t testing.TB, annotations map[string]string, handler http.HandlerFunc, change ...func(*world)) *world {
	t.Helper()
	w := asyncWorld(t, 1, change...)
	p := &api.Plain{Image: "img", Annotations: annotations}
	rev, err := p.Revision("p.ns", imageDigest)
	if err != nil {
		t.Fatal(err)
	}
	w.state.mu.Lock()
	w.state.version++
	w.state.functions["p.ns"] = &store.Function{Name: "p.ns", Revision: rev, Sequence: 1, Plain: p, ImageRef: "img", ImageDigest: imageDigest, Version: w.state.version}
	w.state.mu.Unlock()
	n := w.nodes["node-1"]
	n.on(&n.other, func(rw http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.URL.Path, api.NodePathPlain) {
			rw.WriteHeader(404)
			return
		}
		rw.Header().Set(api.HeaderServedBy, "node-1")
		handler(rw, r)
	})
	return w
}

func TestPlainCallIsMadeLaterAndRepeatedByItsStatus(t *testing.T) {
	var n atomic.Int64
	w := plainWorld(t, map[string]string{annotationAttempts: "4", annotationMinWait: "1ms", annotationMaxWait: "5ms", annotationCodes: "503"},
		func(rw http.ResponseWriter, r *http.Request) {
			b, err := io.ReadAll(r.Body)
			if err != nil || r.Header.Get(api.HeaderTarget) != "/x%20y?q=1" || r.Header.Get("X-Mine") != "v" || r.Header.Get("Authorization") != "" || r.Header.Get(api.HeaderCallback) != "" {
				t.Errorf("%v %v", r.Header, err)
			}
			if n.Add(1)%3 != 0 {
				rw.WriteHeader(503)
				return
			}
			rw.Header().Set("Content-Type", "text/special")
			rw.Header().Set("X-Function-Said", "yes")
			rw.WriteHeader(418)
			rw.Write([]byte("echo " + string(b)))
		})
	a := w.do("POST", "/async-function/p.ns/x%20y?q=1", "text/plain", []byte("hello"), "X-Mine", "v", "Authorization", "Basic xyz")
	if a.status != 202 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	r := w.result(a.header.Get(api.HeaderCallID))
	if r.status != 200 || string(r.body) != "echo hello" || r.header.Get("Content-Type") != "text/special" || r.header.Get("X-Function-Said") != "yes" ||
		r.header.Get(api.HeaderFunctionStatus) != "418" || r.header.Get(api.HeaderAttempts) != "3" {
		t.Errorf("%d %q %v", r.status, r.body, r.header)
	}
	ev := w.do("GET", "/v1/results/"+a.header.Get(api.HeaderCallID), "", nil, "Accept", contentTypeEvent)
	var e event
	if err := json.Unmarshal(ev.body, &e); err != nil || e.Type != eventResult || e.DataType != "text/special" || *e.Data64 != "ZWNobyBoZWxsbw==" || ev.header.Get("Content-Type") != contentTypeEvent {
		t.Errorf("%s, %v, %v", ev.body, err, ev.header)
	}
}

func TestPlainCallThatFailsForeverIsDead(t *testing.T) {
	w := plainWorld(t, map[string]string{annotationAttempts: "2", annotationMinWait: "1ms", annotationMaxWait: "1ms"},
		func(rw http.ResponseWriter, r *http.Request) { rw.WriteHeader(500) })
	a := w.do("POST", "/async-function/p.ns", "text/plain", nil)
	if r := w.result(a.header.Get(api.HeaderCallID)); r.code != api.CodeFunctionFailed || r.status != 502 {
		t.Errorf("%d %s", r.status, r.body)
	}
	// Those of plain functions are listed for whoever may deploy, and nobody else.
	if r := w.do("GET", "/v1/async/dead", "", nil); r.code != api.CodeUnauthorized {
		t.Errorf("%d %s", r.status, r.body)
	}
}

func TestPlainCallIsCancelledByWhoKnowsItsID(t *testing.T) {
	began, ended := make(chan struct{}, 1), make(chan struct{}, 1)
	w := plainWorld(t, nil, func(rw http.ResponseWriter, r *http.Request) {
		began <- struct{}{}
		<-r.Context().Done()
		ended <- struct{}{}
	})
	a := w.do("POST", "/async-function/p.ns", "text/plain", nil)
	id := a.header.Get(api.HeaderCallID)
	<-began
	if r := w.do("DELETE", "/async-function/"+id, "", nil); r.status != 202 {
		t.Errorf("%d %s", r.status, r.body)
	}
	if r := w.result(id); r.code != api.CodeCancelled {
		t.Errorf("%d %s", r.status, r.body)
	}
	select {
	case <-ended:
	case <-time.After(30 * time.Second):
		t.Error("the node still has the call")
	}
	w.rest()
}

func TestRetryAnnotationsThatDoNotParseAreNamed(t *testing.T) {
	for name, text := range map[string]string{annotationAttempts: "0", annotationCodes: "200", annotationMinWait: "soon", annotationMaxWait: "-1s"} {
		_, err := retryOf(map[string]string{name: text}, DefaultRetry())
		if e, ok := err.(*api.Error); !ok || e.Field != "annotations."+name {
			t.Errorf("%s=%s: %v", name, text, err)
		}
	}
	p, err := retryOf(nil, DefaultRetry())
	if err != nil || len(p.Codes) == 0 || p.Attempts != DefaultRetry().Attempts {
		t.Errorf("%+v, %v", p, err)
	}
}

func TestStructuredEventReachesThePlainFunctionAsABinaryOne(t *testing.T) {
	got := make(chan string, 1)
	w := plainWorld(t, nil, func(rw http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		got <- r.Header.Get("Content-Type") + " " + r.Header.Get("ce-type") + " " + r.Header.Get("ce-count") + " " + string(b)
	})
	for body, want := range map[string]string{
		`{"specversion":"1.0","id":"1","source":"/s","type":"t","count":3,"data":{"a":1}}`:                               `application/json t 3 {"a":1}`,
		`{"specversion":"1.0","id":"1","source":"/s","type":"t","datacontenttype":"text/plain","data":"hi"}`:             `text/plain t  hi`,
		`{"specversion":"1.0","id":"1","source":"/s","type":"t","datacontenttype":"application/x","data_base64":"aGk="}`: `application/x t  hi`,
	} {
		if a := w.do("POST", "/async-function/p.ns", contentTypeEvent+"; charset=utf-8", []byte(body)); a.status != 202 {
			t.Fatalf("%d %s", a.status, a.body)
		}
		if g := <-got; g != want {
			t.Errorf("%q, want %q", g, want)
		}
	}
	for body, field := range map[string]string{
		`x`: "body", `{"specversion":"0.3","id":"1","source":"s","type":"t"}`: "body.specversion", `{"specversion":"1.0","id":"1","source":"s"}`: "body.type",
		`{"specversion":"1.0","id":"1","source":"s","type":"t","data_base64":"%"}`: "body.data_base64", `{"specversion":"1.0","id":"1","source":"s","type":"t","X":"t"}`: "body.X",
	} {
		a := w.do("POST", "/async-function/p.ns", contentTypeEvent, []byte(body))
		var p api.Problem
		if json.Unmarshal(a.body, &p) != nil || p.Field != field || a.status != 400 {
			t.Errorf("%s: %d %s", body, a.status, a.body)
		}
	}
}

// receiver is a callback's, which answers with what status says.
type receiver struct {
	*httptest.Server
	calls  atomic.Int64
	status atomic.Int64
	last   atomic.Pointer[http.Request]
	body   atomic.Pointer[[]byte]
}

func newReceiver(t testing.TB) *receiver {
	r := &receiver{}
	r.status.Store(200)
	r.Server = httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
		b, _ := io.ReadAll(req.Body)
		r.body.Store(&b)
		r.last.Store(req)
		if r.status.Load() == 302 {
			rw.Header().Set("Location", "/elsewhere")
		}
		rw.WriteHeader(int(r.status.Load()))
		r.calls.Add(1)
	}))
	t.Cleanup(r.Close)
	return r
}

func signs(t testing.TB) func(*world) {
	return func(w *world) {
		k, err := sm2.GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		w.async.Signer, w.async.Allow = k, []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	}
}

func TestCallbackIsSignedAndTellsOfTheFunction(t *testing.T) {
	rcv := newReceiver(t)
	w := plainWorld(t, nil, func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("X-Own", "1")
		rw.Header().Set("Content-Type", "text/plain")
		rw.Write([]byte("done"))
	}, signs(t))
	for _, mode := range []string{"", "binary", "structured"} {
		before := rcv.calls.Load()
		a := w.do("POST", "/async-function/p.ns", "text/plain", []byte("x"), api.HeaderCallback, rcv.URL+"/cb", api.HeaderEvents, mode)
		if a.status != 202 {
			t.Fatalf("%d %s", a.status, a.body)
		}
		w.eventually("it is called back", func() bool { return rcv.calls.Load() == before+1 })
		h, body := rcv.last.Load().Header, *rcv.body.Load()
		if h.Get("X-Own") != "1" || h.Get(api.HeaderCallID) != a.header.Get(api.HeaderCallID) || h.Get(api.HeaderFunctionStatus) != "200" || h.Get(api.HeaderFunctionName) != "p.ns" {
			t.Errorf("%s: %v", mode, h)
		}
		switch mode {
		case "binary":
			if h.Get("ce-type") != eventResult || h.Get("ce-specversion") != "1.0" || string(body) != "done" {
				t.Errorf("%v %q", h, body)
			}
		case "structured":
			var e event
			if err := json.Unmarshal(body, &e); err != nil || *e.Data64 != "ZG9uZQ==" || e.ID != a.header.Get(api.HeaderCallID) {
				t.Errorf("%s %v", body, err)
			}
		}
		var keys api.CallbackKeys
		if err := json.Unmarshal(w.do("GET", api.GatewayPathCallbackKey, "", nil).body, &keys); err != nil || len(keys.Keys) != 1 || keys.Keys[0].Fingerprint != h.Get(api.HeaderSignatureKey) {
			t.Fatalf("%+v, %v", keys, err)
		}
		pub, err := sealed.ParsePublicKeyText(keys.Keys[0].Public)
		if err != nil {
			t.Fatal(err)
		}
		sig, _ := hex.DecodeString(h.Get(api.HeaderSignature))
		sum := sm3.Sum(body)
		msg := CallbackMessage(h.Get(api.HeaderTimestamp), rcv.URL+"/cb", h.Get(api.HeaderCallID), "p.ns", "200", h.Get("Content-Type"), hex.EncodeToString(sum[:]))
		if !sealed.Verify(pub, sig, LabelCallback, msg) {
			t.Errorf("%s: the signature does not hold", mode)
		}
	}
	w.eventually("nothing is owed", func() bool { return w.async.Queue.Stats().Deliveries == 0 })
}

func TestCallbackIsRepeatedUntilItIsTakenAndFollowsNoRedirect(t *testing.T) {
	rcv := newReceiver(t)
	w := plainWorld(t, nil, func(rw http.ResponseWriter, r *http.Request) {}, signs(t))
	rcv.status.Store(500)
	w.do("POST", "/async-function/p.ns", "text/plain", nil, api.HeaderCallback, rcv.URL)
	w.eventually("it was refused once", func() bool { return rcv.calls.Load() == 1 })
	rcv.status.Store(204)
	w.eventually("it was made again", func() bool { return rcv.calls.Load() == 2 })
	rcv.status.Store(302)
	w.do("POST", "/async-function/p.ns", "text/plain", nil, api.HeaderCallback, rcv.URL)
	w.eventually("it was made, and given up", func() bool { return rcv.calls.Load() == 3 && w.async.Queue.Stats() == queue.Stats{} })
	if p := rcv.last.Load().URL.Path; p == "/elsewhere" {
		t.Error("it was led elsewhere")
	}
}

func TestCallbacksGoToNoInnerAddress(t *testing.T) {
	rcv := newReceiver(t)
	w := plainWorld(t, nil, func(rw http.ResponseWriter, r *http.Request) {})
	for _, url := range []string{rcv.URL, strings.Replace(rcv.URL, "127.0.0.1", "localhost", 1), strings.Replace(rcv.URL, "127.0.0.1", "[::ffff:127.0.0.1]", 1)} {
		id := w.do("POST", "/async-function/p.ns", "text/plain", nil, api.HeaderCallback, url).header.Get(api.HeaderCallID)
		w.eventually("it is given up", func() bool {
			s, err := w.async.Queue.State(t.Context(), id)
			return err == nil && s.Result != nil && w.async.Queue.Stats() == queue.Stats{}
		})
	}
	if n := rcv.calls.Load(); n != 0 {
		t.Errorf("%d calls came", n)
	}
	w.mesh.set("node-1", func(v *api.NodeView) { v.Meta.Addr = "203.0.113.7:8443" })
	for a, may := range map[string]bool{"127.0.0.1": false, "::1": false, "169.254.169.254": false, "fe80::1": false, "0.0.0.0": false, "::": false, "224.0.0.1": false,
		"203.0.113.7": false, "::ffff:203.0.113.7": false, "64:ff9b::7f00:1": false, "255.255.255.255": false, "203.0.113.8": true, "2001:db8::1": true} {
		if w.c.mayCall(netip.MustParseAddr(a)) != may {
			t.Errorf("%s: %v", a, !may)
		}
	}
}

func TestScheduledCallIsMadeOnceByThreeCoordinators(t *testing.T) {
	var ticks sync.Map
	var calls atomic.Int64
	w := plainWorld(t, map[string]string{"topic": "cron-function", "schedule": "@every 1s"}, func(rw http.ResponseWriter, r *http.Request) {
		if r.Method != "POST" || r.Header.Get("X-Connector") != "cron-connector" || r.Header.Get(api.HeaderTarget) != "/" {
			t.Errorf("%s %v", r.Method, r.Header)
		}
		if _, twice := ticks.LoadOrStore(r.Header.Get(api.HeaderCallID), true); twice {
			t.Errorf("call %s came twice", r.Header.Get(api.HeaderCallID))
		}
		calls.Add(1)
	})
	var others sync.WaitGroup
	for range 2 { // as other coordinators do
		others.Go(w.c.clock)
	}
	w.eventually("it was called", func() bool { return calls.Load() >= 2 })
	w.c.kill()
	others.Wait()
}
