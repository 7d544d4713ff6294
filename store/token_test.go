package store

import (
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
)

var testHash = strings.Repeat("0a", 32)

func TestTokenIsUsedExactlyAsOftenAsAllowed(t *testing.T) {
	s := testStore(t)
	if _, err := s.PutToken(t.Context(), testHash, "node", 3, time.Hour); err != nil {
		t.Fatal(err)
	}
	var used atomic.Int64
	var wg sync.WaitGroup
	for range 12 {
		wg.Go(func() {
			tok, err := s.ConsumeToken(t.Context(), testHash)
			switch {
			case err == nil && tok.Role == "node":
				used.Add(1)
			case api.CodeOf(err) != api.CodeUnauthorized:
				t.Errorf("got %+v, %v", tok, err)
			}
		})
	}
	wg.Wait()
	if used.Load() != 3 {
		t.Fatalf("used %d times, 3 are allowed", used.Load())
	}
	if left, err := s.ListTokens(t.Context()); err != nil || len(left) != 0 {
		t.Fatal(left, err)
	}
}

func TestTokenExpiresByTheClockToo(t *testing.T) {
	cfg := testConfig(t, t.TempDir())
	var skip atomic.Int64
	cfg.Now = func() time.Time { return time.Now().Add(time.Duration(skip.Load())) }
	s := openStore(t, cfg)
	if _, err := s.PutToken(t.Context(), testHash, "node", 1, time.Hour); err != nil {
		t.Fatal(err)
	}
	skip.Store(int64(time.Hour))
	_, err := s.ConsumeToken(t.Context(), testHash)
	wantCode(t, err, api.CodeUnauthorized)
	skip.Store(0)
	if _, err := s.ConsumeToken(t.Context(), testHash); err != nil {
		t.Fatal(err)
	}
}

func TestEtcdForgetsATokenByItself(t *testing.T) {
	s := testStore(t)
	if _, err := s.PutToken(t.Context(), testHash, "node", 2, time.Second); err != nil {
		t.Fatal(err)
	}
	if _, err := s.ConsumeToken(t.Context(), testHash); err != nil { // the lease must survive a use
		t.Fatal(err)
	}
	for deadline := time.Now().Add(15 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		left, err := s.ListTokens(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the token's record is still there")
		}
	}
}

func TestTokenInputs(t *testing.T) {
	s, ctx := testStore(t), t.Context()
	for _, c := range []struct {
		hash string
		uses int
		ttl  time.Duration
	}{
		{"", 1, time.Hour}, {testHash + "00", 1, time.Hour}, {strings.ToUpper(testHash), 1, time.Hour},
		{testHash[:63] + "/", 1, time.Hour}, {testHash, 0, time.Hour}, {testHash, maxTokenUses + 1, time.Hour},
		{testHash, 1, 0}, {testHash, 1, maxTokenTTL + time.Second},
	} {
		_, err := s.PutToken(ctx, c.hash, "node", c.uses, c.ttl)
		wantCode(t, err, api.CodeInvalid)
	}
	if _, err := s.PutToken(ctx, testHash, "node", 1, time.Hour); err != nil {
		t.Fatal(err)
	}
	_, err := s.PutToken(ctx, testHash, "node", 9, time.Hour)
	wantCode(t, err, api.CodeConflict)
	if err := s.DeleteToken(ctx, testHash); err != nil {
		t.Fatal(err)
	}
	_, err = s.ConsumeToken(ctx, testHash)
	wantCode(t, err, api.CodeUnauthorized)
}
