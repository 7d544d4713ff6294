// Package replica keeps the registries of several coordinators alike enough:
// what a deployment names is on the disks of a majority of them before the
// deployment is answered, and whatever else one of them is asked for it fetches
// from another.
//
// Promised: after a deployment that was accepted, any minority of coordinators
// may be lost with their disks and the function's image and bundle are still
// there. What is copied is checked against its digest. Not promised: tags,
// which stay where they were pushed, and uploads under way, which must go on at
// the coordinator where they began.
package replica

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/registry"
)

// Local is this coordinator's registry; *registry.Registry is one.
type Local interface {
	HasManifest(ctx context.Context, repo, digest string) (bool, error)
	HasBlob(ctx context.Context, repo, digest string) (bool, error)
	Mirror(ctx context.Context, repo, digest string, from registry.Source) error
	MirrorBlob(ctx context.Context, repo, digest string, from registry.Source) error
}

// Config says who the others are.
type Config struct {
	Self   string                                 // host:port under which others reach this one
	Others func() []string                        // host:port of those that are there now
	Count  func(ctx context.Context) (int, error) // of all coordinators, those that are away too
	TLS    *tls.Config                            // mutual, admits coordinators alone
	Log    *slog.Logger
}

// copyTimeout bounds one copy of an image from one machine to another. It goes
// on when who asked for it gave up: the next attempt finds it done.
const copyTimeout = 10 * time.Minute

// reachTimeout is how long a coordinator that is there may take to say so.
const reachTimeout = 3 * time.Second

// Replicas are the registries of all coordinators, seen from this one.
type Replicas struct {
	cfg   Config
	local Local
	reads *http.Client // what takes longer to begin to answer is not there
	tells *http.Client // the answer comes when the copy is made
	life  context.Context
	end   context.CancelFunc
	jobs  sync.WaitGroup
}

// New makes Replicas; Close ends its copies.
func New(ctx context.Context, local Local, cfg Config) *Replicas {
	r := &Replicas{cfg: cfg, local: local}
	t := &http.Transport{TLSClientConfig: cfg.TLS, DialContext: (&net.Dialer{Timeout: reachTimeout}).DialContext,
		TLSHandshakeTimeout: reachTimeout, IdleConnTimeout: time.Minute}
	r.tells = &http.Client{Transport: t}
	soon := t.Clone()
	soon.ResponseHeaderTimeout = reachTimeout
	r.reads = &http.Client{Transport: soon}
	r.life, r.end = context.WithCancel(ctx)
	return r
}

// Close breaks copies off and waits for them.
func (r *Replicas) Close() {
	r.end()
	r.jobs.Wait()
	r.reads.CloseIdleConnections()
	r.tells.CloseIdleConnections()
}

// HasManifest reports whether repo has the manifest, and returns once a
// majority of coordinators has it with all it refers to. Where that is not to
// be had the error is CodeUnavailable.
func (r *Replicas) HasManifest(ctx context.Context, repo, digest string) (bool, error) {
	return r.has(ctx, api.Replicate{Repository: repo, Digest: digest})
}

// HasBlob is HasManifest for a blob.
func (r *Replicas) HasBlob(ctx context.Context, repo, digest string) (bool, error) {
	return r.has(ctx, api.Replicate{Repository: repo, Digest: digest, Blob: true})
}

func (r *Replicas) has(ctx context.Context, what api.Replicate) (bool, error) {
	there, err := r.Fetch(ctx, what)
	if err != nil || !there {
		return false, err
	}
	return true, r.spread(ctx, what)
}

// Fetch makes sure that this coordinator has something, from any other that
// has it; false if none of those that are there does.
func (r *Replicas) Fetch(ctx context.Context, what api.Replicate) (bool, error) {
	has := r.local.HasManifest
	if what.Blob {
		has = r.local.HasBlob
	}
	if there, err := has(ctx, what.Repository, what.Digest); err != nil || there {
		return there, err
	}
	var trouble error
	for _, addr := range r.cfg.Others() {
		what.From = addr
		err := r.copy(ctx, what)
		if err == nil {
			return true, nil
		}
		if api.CodeOf(err) != api.CodeNotFound {
			trouble = errors.Join(trouble, err)
		}
	}
	return false, trouble
}

// copy fetches from what.From.
func (r *Replicas) copy(ctx context.Context, what api.Replicate) error {
	from := func(ctx context.Context, path string) (io.ReadCloser, error) {
		resp, err := ask(ctx, r.reads, http.MethodGet, what.From, path, nil)
		if err != nil {
			return nil, err
		}
		return resp.Body, nil
	}
	if what.Blob {
		return r.local.MirrorBlob(ctx, what.Repository, what.Digest, from)
	}
	return r.local.Mirror(ctx, what.Repository, what.Digest, from)
}

// spread returns once a majority of all coordinators, with this one, has it.
func (r *Replicas) spread(ctx context.Context, what api.Replicate) error {
	all, err := r.cfg.Count(ctx)
	if err != nil {
		return err
	}
	need := all / 2 // others beside this one
	if need == 0 {
		return nil
	}
	what.From = r.cfg.Self
	body, err := json.Marshal(what)
	if err != nil {
		return fmt.Errorf("encode: %w", err)
	}
	others := r.cfg.Others()
	done := make(chan error, len(others))
	for _, addr := range others {
		r.jobs.Go(func() { done <- r.tell(addr, body) })
	}
	var trouble error
	have := 0
	for range others {
		select {
		case err := <-done:
			if trouble = errors.Join(trouble, err); err == nil {
				have++
			}
		case <-ctx.Done():
			return lacking(have, need, all, errors.Join(trouble, ctx.Err()))
		}
		if have == need {
			return nil
		}
	}
	return lacking(have, need, all, trouble)
}

func lacking(have, need, all int, err error) error {
	return &api.Error{Code: api.CodeUnavailable, Field: "image", Err: err,
		Message: fmt.Sprintf("%d of %d coordinators have image and bundle, %d must", have+1, all, need+1),
		Remedy:  "start the other coordinators and deploy again; large images may just need more time"}
}

// tell asks another coordinator to fetch from this one.
func (r *Replicas) tell(addr string, body []byte) error {
	ctx, cancel := context.WithTimeout(r.life, copyTimeout)
	defer cancel()
	resp, err := ask(ctx, r.tells, http.MethodPost, addr, api.GatewayPathReplicate, body)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// ask makes one request to another coordinator; its body is the caller's to
// close.
func ask(ctx context.Context, client *http.Client, method, addr, path string, body []byte) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "https://"+addr+path, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("ask coordinator: %w", err)
	}
	req.Header.Set("Content-Type", api.ContentTypeJSON)
	resp, err := client.Do(req)
	if err != nil {
		return nil, api.Wrap(api.CodeUnavailable, err, "coordinator at "+addr+" cannot be reached")
	}
	if resp.StatusCode/100 == 2 {
		return resp, nil
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusNotFound {
		return nil, api.Errorf(api.CodeNotFound, "the coordinator at %s has no %s", addr, path)
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return nil, api.Wrap(api.CodeUnavailable, err, "coordinator at "+addr+" broke off")
	}
	return nil, api.ParseProblem(resp.StatusCode, b)
}
