package store

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/faasd-sec/faasd-sec/api"
)

// Token is a join token as stored: by its hash, never its secret.
type Token struct {
	Hash      string `json:"hash"`       // pki.HashToken: 64 hex characters
	Role      string `json:"role"`       // what its holder may become
	Uses      int    `json:"uses"`       // how often it may still be used, at least 1
	CreatedAt int64  `json:"created_at"` // unix seconds
	ExpiresAt int64  `json:"expires_at"` // unix seconds
}

const (
	maxTokenUses = 10_000
	maxTokenTTL  = 30 * 24 * time.Hour
)

func (s *Store) tokenPrefix() string { return s.cfg.Prefix + "tokens/" }

func (s *Store) tokenKey(hash string) (string, error) {
	if b, err := hex.DecodeString(hash); err != nil || len(b) != 32 || hex.EncodeToString(b) != hash {
		return "", api.Invalid("token", "pass the token's hash", "not 64 lower-case hex characters")
	}
	return s.tokenPrefix() + hash, nil
}

// PutToken stores a new token that allows so many uses within ttl. etcd drops
// it afterwards by itself, through a lease.
func (s *Store) PutToken(ctx context.Context, hash, role string, uses int, ttl time.Duration) (Token, error) {
	key, err := s.tokenKey(hash)
	if err != nil {
		return Token{}, err
	}
	if uses < 1 || uses > maxTokenUses {
		return Token{}, api.Invalid("uses", fmt.Sprintf("use 1 to %d", maxTokenUses), fmt.Sprint(uses))
	}
	if ttl < time.Second || ttl > maxTokenTTL {
		return Token{}, api.Invalid("ttl", "use a second to 30 days", ttl.String())
	}
	now := s.cfg.Now()
	t := Token{Hash: hash, Role: role, Uses: uses, CreatedAt: now.Unix(), ExpiresAt: now.Add(ttl).Unix()}
	b, err := json.Marshal(t)
	if err != nil {
		return Token{}, fmt.Errorf("encode token: %w", err)
	}
	grantCtx, cancel := s.bound(ctx)
	defer cancel()
	lease, err := s.client.Grant(grantCtx, int64(ttl/time.Second)+1)
	if err != nil {
		return Token{}, failure("make the token's lease", err)
	}
	if _, err := s.put(ctx, "token", key, b, Absent, clientv3.WithLease(lease.ID)); err != nil {
		s.dropLease(ctx, lease.ID)
		return Token{}, err
	}
	return t, nil
}

// dropLease cleans up after a failed write, also when the caller gave up; a
// lease that stays behind ends by itself.
func (s *Store) dropLease(ctx context.Context, id clientv3.LeaseID) {
	ctx, cancel := s.bound(context.WithoutCancel(ctx))
	defer cancel()
	if _, err := s.client.Revoke(ctx, id); err != nil {
		s.cfg.Log.Warn("lease not revoked; it ends by itself", "error", err)
	}
}

// ConsumeToken uses a token once and returns it as it was before. Whoever
// races, it is used at most as often as allowed. A token that is unknown, used
// up or expired gives CodeUnauthorized, without saying which. A use is spent
// also when the caller never learns of it because the deadline passed.
func (s *Store) ConsumeToken(ctx context.Context, hash string) (Token, error) {
	refused := &api.Error{Code: api.CodeUnauthorized, Field: "token", Message: "the join token is not valid",
		Remedy: "it may have been used or have expired; make a new one on the coordinator"}
	key, err := s.tokenKey(hash)
	if err != nil {
		return Token{}, err
	}
	ctx, cancel := s.bound(ctx)
	defer cancel()
	for {
		b, version, err := s.get(ctx, "token", key)
		if api.CodeOf(err) == api.CodeNotFound {
			return Token{}, refused
		} else if err != nil {
			return Token{}, err
		}
		var t Token
		if err := json.Unmarshal(b, &t); err != nil {
			return Token{}, api.Wrap(api.CodeInternal, err, "the token's record is damaged")
		}
		// The lease alone is not enough: after a restart etcd grants it its
		// full length again.
		if t.Hash != hash || t.Uses < 1 || s.cfg.Now().Unix() >= t.ExpiresAt {
			return Token{}, refused
		}
		op := clientv3.OpDelete(key)
		if t.Uses > 1 {
			left := t
			left.Uses--
			b, err := json.Marshal(left)
			if err != nil {
				return Token{}, fmt.Errorf("encode token: %w", err)
			}
			op = clientv3.OpPut(key, string(b), clientv3.WithIgnoreLease())
		}
		res, err := s.client.Txn(ctx).If(versionIs(key, version)...).Then(op).Commit()
		if err != nil {
			return Token{}, failure("use the token", err)
		}
		if res.Succeeded {
			return t, nil
		} // else somebody used it at the same moment: look again
	}
}

// ListTokens reads the tokens that are stored, without their secrets, which
// nobody has.
func (s *Store) ListTokens(ctx context.Context) ([]Token, error) {
	var (
		all  []Token
		fail error
	)
	_, err := s.list(ctx, "tokens", s.tokenPrefix(), func(_ string, value []byte, _ int64) {
		var t Token
		if err := json.Unmarshal(value, &t); err != nil && fail == nil {
			fail = api.Wrap(api.CodeInternal, err, "a token's record is damaged")
		}
		all = append(all, t)
	})
	if err != nil {
		return nil, err
	}
	return all, fail
}

// DeleteToken withdraws a token; CodeNotFound if it is used up or expired.
func (s *Store) DeleteToken(ctx context.Context, hash string) error {
	key, err := s.tokenKey(hash)
	if err != nil {
		return err
	}
	_, err = s.remove(ctx, "token", key, AnyVersion)
	return err
}
