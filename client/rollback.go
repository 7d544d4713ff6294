package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed"
)

// Revisions lists a function's revisions: those that serve, the current one first,
// and former ones.
func (c *Client) Revisions(ctx context.Context, name api.FunctionName) ([]api.RevisionStatus, error) {
	var out []api.RevisionStatus
	return out, c.do(ctx, call{method: http.MethodGet, path: api.GatewayPathFunctions + "/" + string(name) + "/revisions"}, &out)
}

// Rollback makes a former revision current again, named by the beginning of its
// digest; "" is the latest former one. The current one can be named too: that signs
// it anew, such as after a revision that was to follow it did not start. Of a sealed function the owner signs the old
// content under a new sequence, with the keys that the function has now.
func (c *Client) Rollback(ctx context.Context, name api.FunctionName, revision string, ring *Keyring) (Deployed, error) {
	if err := c.needIdentity(); err != nil {
		return Deployed{}, err
	}
	list, err := c.Revisions(ctx, name)
	if err != nil {
		return Deployed{}, err
	}
	to, err := former(list, revision)
	if err != nil {
		return Deployed{}, err
	}
	done := Deployed{Name: name, Revision: to.Revision, Image: to.Image, Changed: true}
	if len(to.Descriptor) == 0 {
		return done, c.order(ctx, name, "rollback", api.Rollback{Revision: to.Revision}, nil)
	}
	f, err := c.own(name, to)
	if err != nil {
		return Deployed{}, err
	}
	done.Sequence, err = c.signAnew(ctx, name, f.desc, to, ring)
	return done, err
}

// own verifies the descriptor of a revision of ours.
func (c *Client) own(name api.FunctionName, r *api.RevisionStatus) (*function, error) {
	f, err := c.signedBy(c.cfg.Identity.SigningKey().Fingerprint(), name, r.Descriptor)
	if api.CodeOf(err) == api.CodeForbidden {
		return nil, &api.Error{Code: api.CodeForbidden, Field: "name", Err: err,
			Message: "that revision of " + name.Short() + " was not signed by you", Remedy: "use the identity that deployed it"}
	}
	return f, err
}

// signAnew makes the content of an old descriptor current under the keys of now.
func (c *Client) signAnew(ctx context.Context, name api.FunctionName, desc *sealed.Descriptor, to *api.RevisionStatus, ring *Keyring) (uint64, error) {
	broker, err := c.pinnedBroker(ctx)
	if err != nil {
		return 0, err
	}
	before, err := c.current(ctx, name)
	if err != nil {
		return 0, err
	}
	now := c.cfg.Now()
	keys, err := ring.open(name, false, now)
	if err != nil {
		return 0, err
	}
	defer keys.wipe()
	sealedTo := desc.Decryption[0].Key
	next := *desc
	next.Issued, next.SigningKey, next.Decryption = uint64(now.Unix()), keys.signing.PublicKey(), keys.public()
	known := slices.ContainsFunc(next.Decryption, func(k sealed.DecryptionKey) bool { return k.Key == sealedTo })
	if next.BundleBlob != "" && !known {
		return 0, &api.Error{Code: api.CodeConflict, Field: "revision", Message: "its bundle is sealed to a key that the function has no more",
			Remedy: "deploy the old content again: faasd-sec deploy"}
	}
	if next.Sequence, err = ring.number(name, keys, before, now); err != nil {
		return 0, err
	}
	record := api.Revision{ImageRef: to.ImageRef, BundleRef: to.BundleRef, Restore: true}
	if record.Descriptor, err = next.Sign(c.cfg.Random, c.cfg.Identity.Signer()); err != nil {
		return 0, descriptorError(err)
	}
	rev, err := next.Revision()
	if err != nil {
		return 0, descriptorError(err)
	}
	if record.Traffic, err = c.depositNext(ctx, before, &function{name: name, desc: &next, signed: record.Descriptor, revision: rev}, keys, ring, broker, now); err != nil {
		return 0, err
	}
	body, err := json.Marshal(record)
	if err != nil {
		return 0, fmt.Errorf("client: encode the revision: %w", err)
	}
	return next.Sequence, c.do(ctx, call{method: http.MethodPut, path: api.GatewayPathFunctions + "/" + string(name),
		typ: api.ContentTypeJSON, body: body, signed: true}, nil)
}

// former chooses from a listing.
func former(list []api.RevisionStatus, revision string) (*api.RevisionStatus, error) {
	var found *api.RevisionStatus
	for i := range list {
		if revision == "" && (i == 0 || list[i].State == api.RevisionStarting) || !strings.HasPrefix(list[i].Revision, revision) {
			continue
		}
		if found != nil && revision != "" {
			return nil, api.Invalid("--to", "write more of its digits", fmt.Sprintf("%q is the beginning of several", revision))
		}
		if found == nil {
			found = &list[i]
		}
	}
	if found == nil {
		return nil, &api.Error{Code: api.CodeNotFound, Field: "--to", Message: "there is no such former revision",
			Remedy: "faasd-sec rollback NAME --list shows those that are kept"}
	}
	return found, nil
}

// rolloutEvery is how often a rollout is asked after.
const rolloutEvery = 250 * time.Millisecond

// AwaitRollout returns once no revision of the function is on its way to be the
// current one, and says how the last one fared; nil where there was none.
func (c *Client) AwaitRollout(ctx context.Context, name api.FunctionName) (*api.Rollout, error) {
	tick := time.NewTicker(rolloutEvery)
	defer tick.Stop()
	for {
		var st api.FunctionStatus
		err := c.do(ctx, call{method: http.MethodGet, path: api.GatewayPathFunctions + "/" + string(name),
			query: url.Values{api.GatewayQueryBrief: {"1"}}}, &st)
		if err != nil {
			return nil, err
		}
		if st.Rollout == nil || st.Rollout.State != api.RolloutRolling {
			return st.Rollout, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return st.Rollout, ctx.Err()
			}
			return st.Rollout, &api.Error{Code: api.CodeDeadline, Field: "timeout", Err: ctx.Err(),
				Message: fmt.Sprintf("%s was not ready in time, and is still on its way", name.Short()), Remedy: "allow more time, or see with faasd-sec describe how it fares"}
		}
	}
}
