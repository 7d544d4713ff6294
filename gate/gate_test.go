package gate

import (
	"encoding/json"
	"errors"
	"log/slog"
	"regexp"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/valyala/fasthttp"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed"
)

func request(method, contentType string, body []byte, header ...string) *fasthttp.RequestCtx {
	ctx := new(fasthttp.RequestCtx)
	ctx.Request.Header.SetMethod(method)
	ctx.Request.Header.SetContentType(contentType)
	for i := 0; i+1 < len(header); i += 2 {
		ctx.Request.Header.Set(header[i], header[i+1])
	}
	ctx.Request.SetBody(body)
	ctx.Request.Header.SetContentLength(len(body))
	return ctx
}

func TestCallIDIsKeptWhereItIsPlainAndDrawnElse(t *testing.T) {
	drawn := regexp.MustCompile(`^[0-9a-f]{24}$`)
	for id, kept := range map[string]bool{"a-B-3": true, "": false, "a b": false, "x\"y": false, string(make([]byte, 65)): false} {
		ctx := request("POST", "", nil, api.HeaderCallID, id)
		got := CallID(ctx)
		if kept && got != id || !kept && !drawn.MatchString(got) {
			t.Errorf("%q became %q", id, got)
		}
		if string(ctx.Response.Header.Peek(api.HeaderCallID)) != got {
			t.Errorf("%q: the caller is told another id", id)
		}
	}
}

func TestRefusalsBeforeTheBodyEndTheConnection(t *testing.T) {
	body := []byte("plain")
	refused := func(ctx *fasthttp.RequestCtx, err error, code api.Code) {
		t.Helper()
		if api.CodeOf(err) != code || !ctx.Response.ConnectionClose() {
			t.Errorf("%v, want %s; connection ends: %t", err, code, ctx.Response.ConnectionClose())
		}
	}
	ctx := request("PUT", api.ContentTypeSealed, body)
	_, err := Name(ctx, "f")
	refused(ctx, err, api.CodeMethod)
	if string(ctx.Response.Header.Peek("Allow")) != "POST" {
		t.Error("no Allow header")
	}
	ctx = request("POST", api.ContentTypeSealed, body)
	_, err = Name(ctx, "no/name")
	refused(ctx, err, api.CodeInvalid)
	ctx = request("POST", "text/plain", body)
	_, _, err = Take(ctx, "f.ns", 0)
	refused(ctx, err, api.CodeMediaType)
	ctx = request("POST", api.ContentTypeSealed, body)
	_, _, err = Take(ctx, "f.ns", 2)
	refused(ctx, err, api.CodeTooLarge)
}

func TestBodyThatIsNoEnvelopeIsRefusedWithTheEnvelopesCode(t *testing.T) {
	ctx := request("POST", api.ContentTypeSealed, []byte("FSG2 and more"))
	if _, _, err := Take(ctx, "f.ns", 0); api.CodeOf(err) != api.Code(sealed.CodeFormat) {
		t.Error(err)
	}
}

func TestCheckComparesWhatIsClaimed(t *testing.T) {
	now := time.Now()
	f := &Function{Name: "f.ns", Revision: sealed.Digest{1}, Callers: &sealed.Policy{AnyCaller: true}}
	peek := func(rev byte, expires time.Time) *sealed.Peeked {
		p := &sealed.Peeked{}
		p.Grant.Context, p.Message.Expires = sealed.Digest{rev}, uint64(expires.UnixMilli())
		return p
	}
	later := now.Add(time.Minute)
	for _, test := range []struct {
		p    *sealed.Peeked
		f    *Function
		code api.Code
	}{
		{peek(1, later), f, ""},
		{peek(2, later), f, api.CodeStaleRevision},
		{peek(1, now), f, api.Code(sealed.CodeWindow)},
		{peek(1, later), &Function{Name: f.Name, Revision: f.Revision, Callers: &sealed.Policy{}}, api.Code(sealed.CodeSender)},
	} {
		if err := Check(test.p, test.f, now); api.CodeOf(err) != test.code {
			t.Errorf("%v, want %q", err, test.code)
		}
	}
}

func TestProblemNamesTheCallAndWhenToComeBack(t *testing.T) {
	ctx := request("POST", "", nil, api.HeaderCallID, "call-1")
	CallID(ctx)
	Problem(ctx, slog.New(slog.DiscardHandler), api.Errorf(api.CodeBusy, "full"))
	var p api.Problem
	if err := json.Unmarshal(ctx.Response.Body(), &p); err != nil {
		t.Fatal(err)
	}
	if p.CallID != "call-1" || p.Code != api.CodeBusy || ctx.Response.StatusCode() != 429 ||
		string(ctx.Response.Header.Peek("Retry-After")) != "1" || string(ctx.Response.Header.ContentType()) != api.ContentTypeProblem {
		t.Errorf("%+v, %s", p, &ctx.Response.Header)
	}
}

func TestWhatTheServerRefusesIsAProblemToo(t *testing.T) {
	fail := ErrorHandler(slog.New(slog.DiscardHandler))
	for want, err := range map[int]error{
		431: &fasthttp.ErrSmallBuffer{}, 408: timeout{}, 400: errors.New("what is that"),
	} {
		ctx := new(fasthttp.RequestCtx)
		fail(ctx, err)
		if ctx.Response.StatusCode() != want || !ctx.Response.ConnectionClose() || string(ctx.Response.Header.ContentType()) != api.ContentTypeProblem {
			t.Errorf("%v: %d", err, ctx.Response.StatusCode())
		}
	}
}

type timeout struct{}

func (timeout) Error() string { return "slow" }
func (timeout) Timeout() bool { return true }

func TestOutcomesAreCountedByCode(t *testing.T) {
	reg := prometheus.NewRegistry()
	m := NewMetrics(reg)
	m.Refused(api.CodeMediaType)
	m.Done(time.Now(), Outcome(200, nil, api.CodeNodeLost))
	m.Done(time.Now(), Outcome(409, nil, api.CodeNodeLost))
	m.Done(time.Now(), Outcome(200, errors.New("cut"), api.CodeNodeLost))
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, s := range f.GetMetric() {
			if f.GetName() == "faasd_sec_invocation_seconds" {
				got["seconds"] = float64(s.GetHistogram().GetSampleCount())
				continue
			}
			got[s.GetLabel()[0].GetValue()] = s.GetCounter().GetValue()
		}
	}
	for code, want := range map[string]float64{"ok": 1, "media_type": 1, "agent_refused": 1, "node_lost": 1, "seconds": 3} {
		if got[code] != want {
			t.Errorf("%s counted %v times, want %v", code, got[code], want)
		}
	}
}
