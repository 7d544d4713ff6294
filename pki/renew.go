package pki

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
)

// SignFunc has a certificate request (DER) signed for the id and role that the
// process has already, and returns the certificate as PEM. It must bound its
// own time.
type SignFunc func(ctx context.Context, csr []byte) (certPEM []byte, err error)

// RenewAt is when the certificate should be replaced: after two thirds of its
// life, which leaves a third for a coordinator that is away.
func (i *Identity) RenewAt() time.Time {
	leaf := i.current().leaf
	return leaf.NotBefore.Add(leaf.NotAfter.Sub(leaf.NotBefore) * 2 / 3)
}

// Renew makes a new key, has it certified by sign, checks what came back and
// replaces the identity, in its file as well where it has one.
func (i *Identity) Renew(ctx context.Context, sign SignFunc) error {
	old := i.current()
	keyPEM, csr, err := NewRequest(old.peer.ID)
	if err != nil {
		return err
	}
	certPEM, err := sign(ctx, csr)
	if err != nil {
		return fmt.Errorf("renew certificate: %w", err)
	}
	caPEM := encodeCert(old.ca.Raw)
	c, err := newCredential(keyPEM, certPEM, caPEM, i.now())
	if err != nil {
		return fmt.Errorf("renew certificate: %w", err)
	}
	if c.peer != old.peer {
		return fmt.Errorf("renew certificate: got one for %s, asked for %s", c.peer, old.peer)
	}
	if i.path != "" {
		if err := saveIdentity(i.path, keyPEM, certPEM, caPEM, i.now()); err != nil {
			return err
		}
	}
	i.cur.Store(c)
	return nil
}

// KeepRenewed renews whenever RenewAt passes, until ctx ends, whose error it
// returns. A failure is logged and tried again: each minute, and each hour
// while more than a day is left.
func (i *Identity) KeepRenewed(ctx context.Context, sign SignFunc) error {
	timer := time.NewTimer(i.untilRenewal())
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
		}
		next := time.Duration(0)
		if !i.now().Before(i.RenewAt()) {
			if err := i.Renew(ctx, sign); err != nil && ctx.Err() == nil {
				left := i.NotAfter().Sub(i.now())
				i.log.Warn("certificate not renewed", "peer", i.Peer().String(), "left", left, "error", err)
				next = time.Minute
				if left > 24*time.Hour {
					next = time.Hour
				}
			}
		}
		timer.Reset(max(next, i.untilRenewal(), time.Second))
	}
}

// untilRenewal is at most an hour, so that a clock that jumps or a machine
// that slept is noticed.
func (i *Identity) untilRenewal() time.Duration {
	return min(max(i.RenewAt().Sub(i.now()), 0), time.Hour)
}

// SignFunc lets a process beside the authority renew its own certificate.
func (a *Authority) SignFunc(role Role, id string, ttl time.Duration) SignFunc {
	return func(_ context.Context, csr []byte) ([]byte, error) {
		req, err := ParseRequest(csr)
		if err != nil {
			return nil, err
		}
		return a.Sign(req, role, id, ttl)
	}
}

// EnsureIdentity loads the identity at path, or has a issue one where there is
// none, it is due for renewal, or it is of another cluster, role or id. One that is
// due and cannot be written, to a full disk, is left to KeepRenewed while it is valid.
func EnsureIdentity(path string, a *Authority, role Role, id string, ttl time.Duration, log *slog.Logger) (*Identity, error) {
	i, err := loadIdentity(path, log, a.now)
	want := Peer{Cluster: a.cluster, Role: role, ID: id}
	valid := err == nil && i.Peer() == want && i.CA().Equal(a.cert)
	if valid && a.now().Before(i.RenewAt()) {
		return i, nil
	}
	var coded *api.Error
	if err != nil && !errors.As(err, &coded) {
		return nil, err // unreadable or damaged: a person should look before it is overwritten
	}
	keyPEM, certPEM, err := a.Issue(role, id, ttl)
	if err != nil {
		return nil, err
	}
	if err := saveIdentity(path, keyPEM, certPEM, a.CertificatePEM(), a.now()); err != nil {
		if valid {
			log.Warn("certificate not renewed", "peer", want.String(), "left", i.NotAfter().Sub(a.now()), "error", err)
			return i, nil
		}
		return nil, err
	}
	return loadIdentity(path, log, a.now)
}
