package node

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/faasd-sec/faasd-sec/anomaly"
	"github.com/faasd-sec/faasd-sec/api"
)

// policy answers with what it was told to.
type policy struct {
	answer atomic.Pointer[error]
	asked  atomic.Pointer[string]
}

func (p *policy) Check(_ context.Context, ref, digest string) error {
	s := ref + "@" + digest
	p.asked.Store(&s)
	if e := p.answer.Load(); e != nil {
		return *e
	}
	return nil
}

// An image that the policy does not take is refused before anything is opened, so
// that another node may be asked, and noted; so is one that could not be checked.
func TestImagesThatThePolicyRefusesAreNotStarted(t *testing.T) {
	log, p := &noted{t: t}, &policy{}
	w := newWorld(t, lends, func(w *world) { w.anomalies, w.imagePolicy = log, p })
	f := w.known("f")
	for i, cause := range []error{api.Errorf(api.CodeForbidden, "nobody signed it"), errors.New("the registry is down")} {
		p.answer.Store(&cause)
		if code, refused := w.ask(f, api.Needs{}); code != string(api.CodeSecondCheck) || !refused {
			t.Errorf("%v: %s, refused %t", cause, code, refused)
		}
		if got := log.of(anomaly.SecondCheckFailed); len(got) != i+1 || got[i].Code != "signature" {
			t.Errorf("%v: noted %+v", cause, got)
		}
		w.empty()
	}
	if n := w.delivered.Load(); n != 0 {
		t.Errorf("%d messages reached agents", n)
	}
	p.answer.Store(nil)
	if code, _ := w.ask(f, api.Needs{}); code != "ok" {
		t.Errorf("an image that the policy takes: %s", code)
	}
	if asked := *p.asked.Load(); !strings.Contains(asked, "/img@sha256:") {
		t.Errorf("asked for %s", asked)
	}
	w.empty()
}
