package pki

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The same of a coordinator's identity.
func TestIdentityThatCannotBeRenewedIsUsedWhileItIsValid(t *testing.T) {
	c := newClock()
	a := clusterAt(t, c)
	dir := t.TempDir()
	path, long := filepath.Join(dir, "identity.pem"), filepath.Join(dir, strings.Repeat("i", 250))
	first, err := EnsureIdentity(path, a, RoleCoordinator, "c1", time.Hour, quiet())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path, long); err != nil {
		t.Fatal(err)
	}
	c.advance(50 * time.Minute)
	i, err := EnsureIdentity(long, a, RoleCoordinator, "c1", time.Hour, quiet())
	if err != nil || !i.NotAfter().Equal(first.NotAfter()) {
		t.Fatalf("due and valid: %v", err)
	}
	c.advance(time.Hour)
	if _, err := EnsureIdentity(long, a, RoleCoordinator, "c1", time.Hour, quiet()); err == nil {
		t.Error("over, and not renewed: no error")
	}
}

// A disk that is full when the certificate of a store's member is due neither ends a
// coordinator nor keeps it from starting while the certificate is valid.
func TestMemberThatCannotBeRenewedGoesOnWhileItIsValid(t *testing.T) {
	c := newClock()
	a := clusterAt(t, c)
	dir := t.TempDir()
	m, err := a.EnsureMember(filepath.Join(dir, "member.pem"), dir)
	if err != nil {
		t.Fatal(err)
	}
	was, err := os.ReadFile(m.File)
	if err != nil {
		t.Fatal(err)
	}
	// A name so long that there is none for a temporary file beside it.
	long := filepath.Join(dir, strings.Repeat("m", 250))
	if err := os.Rename(m.File, long); err != nil {
		t.Fatal(err)
	}
	c.advance(memberTTL * 3 / 4)
	if m, err = a.EnsureMember(long, dir); err != nil {
		t.Fatalf("due and valid: %v", err)
	}
	if b, err := os.ReadFile(long); err != nil || !bytes.Equal(b, was) {
		t.Fatalf("it was replaced: %v", err)
	}
	var said bytes.Buffer
	m.Log = slog.New(slog.NewTextHandler(&said, nil))
	ctx, end := context.WithCancel(t.Context())
	end()
	if err := m.KeepRenewed(ctx); !errors.Is(err, context.Canceled) || !strings.Contains(said.String(), "not renewed") {
		t.Errorf("error %v, said %q", err, &said)
	}
	c.advance(memberTTL / 2)
	if _, err := a.EnsureMember(long, dir); err == nil {
		t.Error("over, and not renewed: no error")
	}
	if err := m.KeepRenewed(t.Context()); err == nil || errors.Is(err, context.Canceled) {
		t.Errorf("over, and not renewed: %v", err)
	}
	// With room again it is renewed at once.
	if err := os.Rename(long, m.File[:len(dir)+1]+"short"); err != nil {
		t.Fatal(err)
	}
	if _, err := a.EnsureMember(filepath.Join(dir, "short"), dir); err != nil {
		t.Error(err)
	}
}
