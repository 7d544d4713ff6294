package node

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/valyala/fasthttp"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed"
)

// front is a node's gateway.
type front struct {
	*world
	url string
}

func (w *world) gateway() *front {
	w.t.Helper()
	serve, failed := w.n.Gateway()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	s := &fasthttp.Server{Handler: serve, ErrorHandler: failed, StreamRequestBody: true, MaxRequestBodySize: 8 << 10,
		CloseOnShutdown: true, DisablePreParseMultipartForm: true, Logger: silent{}, ReadTimeout: 10 * time.Second}
	go s.Serve(ln)
	w.t.Cleanup(func() {
		w.http.CloseIdleConnections()
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := s.ShutdownWithContext(ctx); err != nil {
			w.t.Errorf("gateway: %v", err)
		}
		_ = ln.Close()
	})
	return &front{world: w, url: "http://" + ln.Addr().String()}
}

type answer struct {
	status int
	header http.Header
	body   []byte
	api.Problem
}

func (f *front) do(method, path, contentType string, body []byte, header ...string) answer {
	f.t.Helper()
	req, err := http.NewRequest(method, f.url+path, bytes.NewReader(body))
	if err != nil {
		f.t.Fatal(err)
	}
	req.Header.Set("Content-Type", contentType)
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := f.http.Do(req)
	if err != nil {
		f.t.Fatal(err)
	}
	defer resp.Body.Close()
	a := answer{status: resp.StatusCode, header: resp.Header}
	if a.body, err = io.ReadAll(resp.Body); err != nil {
		f.t.Fatal(err)
	}
	if resp.Header.Get("Content-Type") == api.ContentTypeProblem {
		if err := json.Unmarshal(a.body, &a.Problem); err != nil {
			f.t.Fatal(err)
		}
	}
	return a
}

func (f *front) post(fn function, msg []byte, header ...string) answer {
	f.t.Helper()
	return f.do("POST", api.GatewayPathInvoke+fn.name, api.ContentTypeSealed, msg, header...)
}

// hosted is a function with a warm sandbox.
func (w *world) hosted(name string, change ...func(*sealed.Descriptor)) function {
	w.t.Helper()
	f := w.known(name, change...)
	if status, _, body := w.invoke(f); status != 200 {
		w.t.Fatalf("cold start: %d %s", status, body)
	}
	return f
}

func TestGatewayServesHostedFunctionsAsACoordinatorDoes(t *testing.T) {
	w := newWorld(t)
	f, g := w.hosted("f"), w.gateway()
	for _, size := range []int{0, 1000, 300 << 10, 2 << 20} {
		msg := w.message(f, size)
		a := g.post(f, msg, api.HeaderCallID, "call-1")
		if a.status != 200 || !bytes.Equal(a.body, msg) {
			t.Fatalf("%d bytes: status %d, %d bytes came back, %s", size, a.status, len(a.body), a.Detail)
		}
		h := a.header
		if h.Get(api.HeaderCallID) != "call-1" || h.Get(api.HeaderServedBy) != w.cfg.ID || h.Get(api.HeaderStart) != "warm" || h.Get(api.HeaderDuration) == "" {
			t.Errorf("headers %v", h)
		}
		if h.Get(api.HeaderLoad) != "" || h.Get(api.HeaderRefused) != "" {
			t.Errorf("what is between nodes and coordinators went to a caller: %v", h)
		}
	}
	if a := g.do("GET", "/healthz", "", nil); a.status != 200 {
		t.Errorf("healthz: %d", a.status)
	}
}

func TestGatewayRefusesAsACoordinatorDoes(t *testing.T) {
	w := newWorld(t)
	open, g := w.hosted("f"), w.gateway()
	closed := w.known("g", func(d *sealed.Descriptor) {
		d.Config.Policy.AnyCaller, d.Config.Policy.Callers = false, []sealed.Fingerprint{{1}}
	})
	if status, _, body := w.invoke(closed); status != 200 { // agents here admit everybody
		t.Fatalf("cold start: %d %s", status, body)
	}
	msg := w.message(open, 10)
	replayed := w.message(open, 10)
	if a := g.post(open, replayed); a.status != 200 {
		t.Fatal(a.Detail)
	}
	before := w.delivered.Load()
	for _, test := range []struct {
		name   string
		a      answer
		status int
		code   api.Code
	}{
		{"another method", g.do("GET", api.GatewayPathInvoke+"f.ns", api.ContentTypeSealed, nil), 405, api.CodeMethod},
		{"no name", g.do("POST", api.GatewayPathInvoke+"F_", api.ContentTypeSealed, msg), 400, api.CodeInvalid},
		{"a plain body", g.do("POST", api.GatewayPathInvoke+"f.ns", "text/plain", msg), 415, api.CodeMediaType},
		{"no envelope", g.post(open, []byte("hello")), 400, api.Code(sealed.CodeFormat)},
		{"sealed for another", g.do("POST", api.GatewayPathInvoke+"g.ns", api.ContentTypeSealed, msg), 404, api.Code(sealed.CodeWrongFunction)},
		{"a stranger", g.post(closed, w.message(closed, 10)), 403, api.Code(sealed.CodeSender)},
		{"a replay", g.post(open, replayed), 409, api.CodeReplay},
		{"management", g.do("GET", "/v1/functions", "", nil), 404, api.CodeNotFound},
		{"the nodes' own paths", g.do("POST", api.NodePathInvoke+open.target(), api.ContentTypeSealed, msg), 404, api.CodeNotFound},
	} {
		if test.a.status != test.status || test.a.Code != test.code || test.a.Problem.Detail == "" {
			t.Errorf("%s: %d %+v", test.name, test.a.status, test.a.Problem)
		}
	}
	if n := w.delivered.Load(); n != before {
		t.Errorf("%d refused invocations reached an agent", n-before)
	}
}

func TestGatewaySendsWhatIsNotHereToTheCoordinator(t *testing.T) {
	w := newWorld(t)
	g := w.gateway()
	hosted := w.hosted("f")
	told := w.known("told") // but never started
	next := w.deploy("f", 2, func(d *sealed.Descriptor) { d.Config.ExecMS = 1234 })
	for _, test := range []struct {
		name string
		f    function
	}{{"unknown", w.deploy("unknown", 1)}, {"known and without a sandbox", told}, {"another revision", next}} {
		msg := w.message(test.f, 10)
		a := g.post(test.f, msg)
		if a.status != http.StatusMisdirectedRequest || a.Code != api.CodeMisdirected || !strings.Contains(a.Remedy, "coordinator") {
			t.Errorf("%s: %d %+v", test.name, a.status, a.Problem)
		}
		if test.f.name == told.name {
			// It was not remembered: a coordinator may pass the same bytes on.
			if status, _, body := w.do("POST", api.NodePathInvoke+told.target(), msg); status != 200 {
				t.Errorf("the refused message through a coordinator: %d %s", status, body)
			}
		}
	}
	w.n.mu.Lock()
	started := len(w.n.fleet)
	w.n.mu.Unlock()
	if started != 2 { // hosted's and the one above
		t.Errorf("%d sandboxes", started)
	}
	if a := g.post(hosted, w.message(hosted, 10)); a.status != 200 {
		t.Error(a.Detail)
	}
}

func TestGatewayDoesNotKeepCallersWaitingForRoom(t *testing.T) {
	release := make(chan struct{})
	var slow atomic.Bool
	w := newWorld(t, func(w *world) {
		w.work = func(rw http.ResponseWriter, r *http.Request) {
			if slow.Load() {
				<-release
			}
			_, _ = io.Copy(rw, r.Body)
		}
		w.cfg.Capacity = api.Resources{CPU: 500, Memory: 200 << 20, PIDs: 256} // room for one
	})
	f, g := w.hosted("f", func(d *sealed.Descriptor) { d.Config.MaxInFlight = 1 }), w.gateway()
	slow.Store(true)
	done := make(chan answer, 1)
	go func() { done <- g.post(f, w.message(f, 10)) }()
	w.eventually("the slot is taken", func() bool { _, _, n := w.held(); return n == 1 })
	a := g.post(f, w.message(f, 10))
	if a.status != http.StatusTooManyRequests || a.header.Get("Retry-After") != "1" {
		t.Errorf("%d %+v", a.status, a.Problem)
	}
	close(release)
	if a := <-done; a.status != 200 {
		t.Error(a.Detail)
	}
}

// A ticket is between a coordinator and its node: who could name one from
// outside would use up another's slot.
func TestGatewayTakesNoTickets(t *testing.T) {
	w := newWorld(t)
	f, g := w.hosted("f"), w.gateway()
	_, _, body := w.do("POST", api.NodePathAdmit+f.target(), nil)
	var ticket api.Ticket
	if err := json.Unmarshal([]byte(body), &ticket); err != nil {
		t.Fatal(err)
	}
	if a := g.post(f, w.message(f, 10), api.HeaderTicket, ticket.Ticket); a.status != 200 {
		t.Fatal(a.Detail)
	}
	if status, _, b := w.do("POST", api.NodePathInvoke+f.target(), w.message(f, 10), api.HeaderTicket, ticket.Ticket); status != 200 {
		t.Errorf("the ticket was used up from outside: %d %s", status, b)
	}
}

func TestGatewayRefusesWhenTheNodeDrains(t *testing.T) {
	w := newWorld(t)
	f, g := w.hosted("f"), w.gateway()
	w.n.mu.Lock()
	w.n.draining = true
	w.n.mu.Unlock()
	if a := g.post(f, w.message(f, 10)); a.status != http.StatusServiceUnavailable || a.Code != api.CodeDraining {
		t.Errorf("%d %+v", a.status, a.Problem)
	}
	if a := g.do("GET", "/readyz", "", nil); a.status != http.StatusServiceUnavailable {
		t.Errorf("readyz: %d", a.status)
	}
}

func TestGatewayCountsInvocations(t *testing.T) {
	reg := prometheus.NewRegistry()
	w := newWorld(t)
	w.n.dep.Registerer = reg
	f, g := w.hosted("f"), w.gateway()
	g.post(f, w.message(f, 10))
	g.post(f, []byte("hello"))
	counts := map[string]float64{}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, fam := range families {
		if fam.GetName() == "faasd_sec_invocations_total" {
			for _, m := range fam.GetMetric() {
				counts[m.GetLabel()[0].GetValue()] = m.GetCounter().GetValue()
			}
		}
	}
	if counts["ok"] != 1 || counts["format"] != 1 {
		t.Errorf("counted %v", counts)
	}
}
