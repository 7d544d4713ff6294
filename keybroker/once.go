package keybroker

import (
	"sync"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/attest"
	"github.com/faasd-sec/faasd-sec/sealed"
)

// maxStatements bounds the statements that are remembered, about 250 bytes each.
// All nodes together start fewer sandboxes within attest.MaxAge by far.
const maxStatements = 1 << 17

// onceOnly holds each sandbox to one function: a statement that keys were
// released for is good for the same revision of the same function alone, as long
// as it is fresh. A node that keeps one attested sandbox could otherwise collect
// the keys of many functions in it.
type onceOnly struct {
	now func() time.Time

	mu     sync.Mutex
	served map[sealed.PublicKey]service
	sweep  time.Time // when expired ones are looked for next
}

type service struct {
	function api.FunctionName
	revision sealed.Digest
	until    time.Time
}

func newOnceOnly(now func() time.Time) *onceOnly {
	return &onceOnly{now: now, served: make(map[sealed.PublicKey]service)}
}

// claim binds a statement's key to the function, or says why it must not be.
func (o *onceOnly) claim(st attest.Statement, name api.FunctionName, rev sealed.Digest) error {
	now := o.now()
	o.mu.Lock()
	defer o.mu.Unlock()
	if had, ok := o.served[st.Ephemeral]; ok && now.Before(had.until) {
		if had.function != name || had.revision != rev {
			return &api.Error{Code: api.CodeKeyRefused, Field: "statement",
				Message: "this sandbox has the keys of another function", Remedy: "start each function in a sandbox of its own"}
		}
		return nil
	}
	if len(o.served) >= maxStatements || now.After(o.sweep) {
		for k, s := range o.served {
			if !now.Before(s.until) {
				delete(o.served, k)
			}
		}
		o.sweep = now.Add(attest.MaxAge)
		if len(o.served) >= maxStatements {
			return &api.Error{Code: api.CodeBusy, Field: "statement", Message: "too many sandboxes asked for keys lately", Remedy: "retry later"}
		}
	}
	// A statement is fresh until MaxAge after it was made, and it may have been
	// made by a clock that is ahead. A sandbox that makes a new one keeps its key.
	o.served[st.Ephemeral] = service{function: name, revision: rev, until: now.Add(attest.MaxAge + attest.MaxSkew)}
	return nil
}
