package enrol

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strconv"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/pki"
	"github.com/faasd-sec/faasd-sec/store"
)

// adminTimeout bounds one question to the coordinator of this machine.
const adminTimeout = 30 * time.Second

// snapshotTimeout bounds the copy of a whole store, at most 8 GiB.
const snapshotTimeout = 10 * time.Minute

// RequestToken asks the coordinator that runs on dir for a join token.
func RequestToken(ctx context.Context, dir string, role pki.Role, uses int, ttl time.Duration) (string, error) {
	var out struct{ Token string }
	q := url.Values{"role": {string(role)}, "uses": {strconv.Itoa(uses)}, "ttl": {ttl.String()}}
	err := admin(ctx, dir, http.MethodPost, AdminPathTokens, q, decodeInto(&out))
	return out.Token, err
}

// RequestMembers asks the coordinator that runs on dir for the store's members.
func RequestMembers(ctx context.Context, dir string) ([]store.Member, error) {
	var all []store.Member
	err := admin(ctx, dir, http.MethodGet, AdminPathMembers, nil, decodeInto(&all))
	return all, err
}

// RequestRemoval has the coordinator that runs on dir take a member out.
func RequestRemoval(ctx context.Context, dir, member string) error {
	return admin(ctx, dir, http.MethodDelete, AdminPathMembers, url.Values{"id": {member}}, func(io.Reader) error { return nil })
}

// RequestDrain asks the coordinator that runs on dir to drain a node, or to have
// it take work again.
func RequestDrain(ctx context.Context, dir, node string, on bool) error {
	method := http.MethodPut
	if !on {
		method = http.MethodDelete
	}
	return admin(ctx, dir, method, AdminPathDrain+url.PathEscape(node), nil, func(io.Reader) error { return nil })
}

// RequestSnapshot copies a snapshot of the store of the coordinator that runs
// on dir to w.
func RequestSnapshot(ctx context.Context, dir string, w io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, snapshotTimeout)
	defer cancel()
	return ask(ctx, dir, http.MethodGet, AdminPathBackup, nil, func(r io.Reader) error {
		_, err := io.Copy(w, r)
		return err
	})
}

func decodeInto(out any) func(io.Reader) error {
	return func(r io.Reader) error { return json.NewDecoder(io.LimitReader(r, 1<<20)).Decode(out) }
}

// admin makes one request over the operator's socket.
func admin(ctx context.Context, dir, method, path string, q url.Values, read func(io.Reader) error) error {
	ctx, cancel := context.WithTimeout(ctx, adminTimeout)
	defer cancel()
	return ask(ctx, dir, method, path, q, read)
}

func ask(ctx context.Context, dir, method, path string, q url.Values, read func(io.Reader) error) error {
	tr := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", filepath.Join(dir, AdminSocket))
	}}
	req, err := http.NewRequestWithContext(ctx, method, "http://admin"+path+"?"+q.Encode(), nil)
	if err != nil {
		return fmt.Errorf("ask the coordinator: %w", err)
	}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return &api.Error{Code: api.CodeUnavailable, Field: "state", Err: err, Message: "no coordinator runs on " + dir,
			Remedy: "start it, or name its state directory with --state"}
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		b, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
		if err != nil {
			return fmt.Errorf("ask the coordinator: %w", err)
		}
		return api.ParseProblem(resp.StatusCode, b)
	}
	if err := read(resp.Body); err != nil {
		return fmt.Errorf("the coordinator's answer: %w", err)
	}
	return nil
}
