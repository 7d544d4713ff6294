package agent

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/faasd-sec/faasd-sec/agent/launcher"
	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/upstream"
)

// A plain function has no descriptor and no keys: the node says what it is, which
// is as good as its word, for the node can read all that goes in and out of it. Its
// image is run as it is; by OpenFaaS's contract it serves HTTP on port 8080 of its
// own loopback, by itself or behind the watchdog that is in the image.

// plainPort is where a plain function serves that sets no other in `port`.
const plainPort = "8080"

// newPlainBinding is newBinding of a plain function.
func newPlainBinding(b *api.Bind) (*binding, error) {
	p := &b.Plain.Function
	s, err := p.Function.Settle()
	if err != nil {
		return nil, err
	}
	raw, err := hex.DecodeString(b.Plain.Revision)
	if err != nil || len(raw) != len(sealed.Digest{}) {
		return nil, api.Invalid("revision", "use 64 hex digits", "it is not a digest")
	}
	n := &binding{plain: p, id: b.Plain.Revision, revision: sealed.Digest(raw), name: string(p.Name), image: b.Image, dir: "/", cpu: uint64(s.Resources.CPU),
		read: s.Read, write: s.Write, exec: s.Exec, start: s.Start, inFlight: int64(s.MaxInFlight), network: "tcp"}
	if err := n.fromImage("image", "set ENTRYPOINT or CMD in the image"); err != nil {
		return nil, err
	}
	port := plainPort
	for _, env := range []string{p.Function.Env["port"], imageEnv(b.Image.Env, "port")} {
		if env != "" {
			port = env
			break
		}
	}
	if v, err := strconv.ParseUint(port, 10, 16); err != nil || v == 0 {
		return nil, api.Invalid("environment.port", "name a TCP port", fmt.Sprintf("%q is none", port))
	}
	n.addr = net.JoinHostPort("127.0.0.1", port)
	return n, nil
}

func imageEnv(env []string, key string) string {
	v, _ := lookupEnv(env, key)
	return v
}

// startPlain starts a plain function, once the launcher has entered its root, and
// returns when it is ready.
func (a *Agent) startPlain(ctx context.Context, f *function, enter launcher.EnterOptions) error {
	a.logs.openly()
	if err := a.launcher.Enter(ctx, enter)(); err != nil {
		return fmt.Errorf("prepare the launcher: %w", err)
	}
	if len(f.b.plain.Function.Secrets) > 0 {
		if err := a.takeSecrets(ctx, f.b); err != nil {
			return err
		}
	}
	if err := f.start(ctx, f.b.plain.Function.Environ(), nil); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, f.b.start)
	defer cancel()
	return f.awaitReady(ctx)
}

const (
	probeTime  = 2 * time.Second       // one question whether it is ready
	probePause = 20 * time.Millisecond // before it is asked again
	probeTries = 3                     // of a function that takes connections and speaks no HTTP
)

// awaitReady asks a function that takes connections whether it is ready, in the way
// of OpenFaaS's watchdogs: at /_/ready, or /_/health where there is nothing. One
// that knows neither is ready by taking connections.
func (f *function) awaitReady(ctx context.Context) error {
	silent := 0
	for {
		ready, err := f.probe(ctx, "/_/ready")
		if err == nil && !ready {
			ready, err = f.probe(ctx, "/_/health")
		}
		switch {
		case err == nil && ready:
			return nil
		case err == nil:
		case !errors.Is(err, errNotReady):
			if silent++; silent >= probeTries {
				return nil // whatever it speaks, it serves
			}
		}
		pause := time.NewTimer(probePause)
		select {
		case <-pause.C:
		case <-f.dead:
			pause.Stop()
			return f.cause
		case <-ctx.Done():
			pause.Stop()
			e := api.Errorf(api.CodeFunctionNotReady, "the function was not ready within %s: it answers /_/ready or /_/health with an error", f.b.start)
			e.Field, e.Remedy = "annotations."+api.AnnotationStartTimeout, "raise it; the function's log has more"
			return e
		}
	}
}

// errNotReady means that the function says so.
var errNotReady = errors.New("not ready")

// probe reports whether the function answers path well; neither that nor an error
// means that it serves nothing there.
func (f *function) probe(ctx context.Context, path string) (bool, error) {
	deadline := time.Now().Add(probeTime)
	resp, err := f.client.Do(ctx, &upstream.Request{Method: http.MethodGet, Path: path, Deadline: deadline})
	if err != nil {
		if !time.Now().Before(deadline) {
			return false, errNotReady
		}
		return false, err
	}
	defer resp.Close()
	switch {
	case resp.Status == http.StatusOK:
		return true, nil
	case resp.Status == http.StatusServiceUnavailable, resp.Status == http.StatusTooManyRequests, resp.Status == http.StatusInternalServerError:
		return false, errNotReady
	}
	return path == "/_/health", nil // nothing is there, and nothing but connections can tell
}
