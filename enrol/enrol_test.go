package enrol

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/pki"
	"github.com/faasd-sec/faasd-sec/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// ledger is what the store keeps for a Desk.
type ledger struct {
	mu       sync.Mutex
	tokens   map[string]store.Token
	settings map[string]int64
}

func (l *ledger) PutToken(_ context.Context, hash, role string, uses int, ttl time.Duration) (store.Token, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	t := store.Token{Hash: hash, Role: role, Uses: uses}
	l.tokens[hash] = t
	return t, nil
}

func (l *ledger) ConsumeToken(_ context.Context, hash string) (store.Token, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	t, ok := l.tokens[hash]
	if !ok || t.Uses == 0 {
		return store.Token{}, api.Errorf(api.CodeUnauthorized, "no such token")
	}
	t.Uses--
	l.tokens[hash] = t
	return t, nil
}

func (l *ledger) GetSetting(_ context.Context, name string) (store.Setting, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if v, ok := l.settings[name]; ok {
		return store.Setting{Name: name, Version: v}, nil
	}
	return store.Setting{}, api.Errorf(api.CodeNotFound, "no setting")
}

func (l *ledger) PutSetting(_ context.Context, name string, _ []byte, expected int64) (int64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.settings[name] != expected {
		return 0, api.Errorf(api.CodeConflict, "changed")
	}
	l.settings[name]++
	return l.settings[name], nil
}

// desk is a coordinator's desk behind TLS.
func desk(t *testing.T) (d *Desk, l *ledger, addr, dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "coordinator")
	if _, err := Init(dir, []string{"any"}, rand.Reader); err != nil {
		t.Fatal(err)
	}
	ca, err := pki.Load(filepath.Join(dir, CADir))
	if err != nil {
		t.Fatal(err)
	}
	var cl Cluster
	if err := Load(dir, ClusterFile, "", &cl); err != nil {
		t.Fatal(err)
	}
	l = &ledger{tokens: map[string]store.Token{}, settings: map[string]int64{}}
	d = &Desk{Authority: ca, Tokens: l, Cluster: cl, Address: "10.0.0.1:7443", Broker: "10.0.0.1:8084",
		Seeds: func() []string { return []string{"10.0.0.1:7945"} }}
	id, err := pki.EnsureIdentity(filepath.Join(dir, IdentityFile), ca, pki.RoleCoordinator, "coordinator-1", time.Hour, nil)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{TLSConfig: pki.OptionalPeerConfig(id, pki.RoleNode), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == api.GatewayPathJoinCoordinator {
			serveCoordinator(w, r, d)
			return
		}
		var req api.JoinRequest
		var reply api.JoinReply
		err := json.NewDecoder(r.Body).Decode(&req)
		switch {
		case err != nil:
		case r.URL.Path == api.GatewayPathJoin:
			reply, err = d.Join(r.Context(), req)
		case len(r.TLS.PeerCertificates) == 0:
			err = api.Errorf(api.CodeUnauthorized, "no certificate")
		default:
			var p pki.Peer
			if p, err = pki.PeerIdentity(r.TLS); err == nil {
				reply.Certificate, err = d.Renew(p.ID, req.CSR)
			}
		}
		answer(w, reply, err)
	})}
	go s.ServeTLS(ln, "", "")
	t.Cleanup(func() { s.Close() })
	return d, l, ln.Addr().String(), dir
}

func serveCoordinator(w http.ResponseWriter, r *http.Request, d *Desk) {
	var req api.CoordinatorJoin
	var reply api.CoordinatorJoined
	err := json.NewDecoder(r.Body).Decode(&req)
	if err == nil {
		reply, err = d.JoinCoordinator(r.Context(), req)
	}
	answer(w, reply, err)
}

func answer(w http.ResponseWriter, reply any, err error) {
	if err != nil {
		p := api.ProblemOf(err, "")
		w.WriteHeader(p.Status)
		json.NewEncoder(w).Encode(p)
		return
	}
	json.NewEncoder(w).Encode(reply)
}

func token(t *testing.T, d *Desk, uses int) string {
	t.Helper()
	text, err := d.NewToken(t.Context(), pki.RoleNode, uses, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestJoiningLeavesAWorkingIdentity(t *testing.T) {
	d, _, addr, _ := desk(t)
	dir := filepath.Join(t.TempDir(), "node")
	n, err := Join(t.Context(), addr, token(t, d, 1), "node-1", dir)
	if err != nil {
		t.Fatal(err)
	}
	if n.Cluster != d.Cluster.ID || n.Broker != d.Broker || n.Coordinator != d.Address || len(n.GossipKeys) != 1 || n.GossipKeys[0] != d.Cluster.GossipKeys[0] {
		t.Errorf("told %+v", n)
	}
	var again Node
	if err := Load(dir, NodeFile, "", &again); err != nil || again.ID != "node-1" {
		t.Errorf("%+v, %v", again, err)
	}
	id, err := pki.LoadIdentity(filepath.Join(dir, IdentityFile), nil)
	if err != nil || id.Peer().ID != "node-1" || id.Peer().Role != pki.RoleNode {
		t.Fatalf("%v", err)
	}
	for _, f := range []string{NodeFile, IdentityFile} {
		if st, err := os.Stat(filepath.Join(dir, f)); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", f, st.Mode(), err)
		}
	}
	if err := id.Renew(t.Context(), Renewer(id, func() []string { return []string{addr} })); err != nil {
		t.Errorf("renewal: %v", err)
	}
}

// The identity of another node is not overwritten by a slip in a path.
func TestADirectoryOfAnotherNodeIsRefused(t *testing.T) {
	d, _, addr, _ := desk(t)
	dir := filepath.Join(t.TempDir(), "node")
	if _, err := Join(t.Context(), addr, token(t, d, 1), "node-1", dir); err != nil {
		t.Fatal(err)
	}
	had, err := os.ReadFile(filepath.Join(dir, IdentityFile))
	if err != nil {
		t.Fatal(err)
	}
	other, _, otherAddr, _ := desk(t)
	for id, join := range map[string]func(id string) (Node, error){
		"node-2": func(id string) (Node, error) { return Join(t.Context(), addr, token(t, d, 1), id, dir) },
		"node-1": func(id string) (Node, error) {
			return Join(t.Context(), otherAddr, token(t, other, 1), id, dir)
		},
	} {
		var e *api.Error
		if _, err := join(id); !errors.As(err, &e) || e.Code != api.CodeConflict || e.Field != "state" || e.Remedy == "" {
			t.Errorf("%s: %v", id, err)
		}
	}
	if now, err := os.ReadFile(filepath.Join(dir, IdentityFile)); err != nil || !bytes.Equal(now, had) {
		t.Errorf("its identity is another, %v", err)
	}
}

// A token lets a machine in, but not as one that is there already.
func TestATakenIDIsRefused(t *testing.T) {
	d, l, addr, _ := desk(t)
	tok := token(t, d, 5)
	if _, err := Join(t.Context(), addr, tok, "node-1", t.TempDir()); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "impostor")
	_, err := Join(t.Context(), addr, tok, "node-1", dir)
	if api.CodeOf(err) != api.CodeConflict || !strings.Contains(err.Error(), "another id") {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("a refused join left its directory")
	}
	if left := l.tokens[hashOf(t, tok)].Uses; left != 4 {
		t.Errorf("%d uses are left: the refused one counts", left)
	}
	if _, err := Join(t.Context(), addr, tok, "node-2", t.TempDir()); err != nil {
		t.Error(err)
	}
}

func hashOf(t *testing.T, text string) string {
	t.Helper()
	tok, err := pki.ParseToken(text)
	if err != nil {
		t.Fatal(err)
	}
	return pki.HashToken(tok)
}

func TestOfTwoThatJoinAtOnceOneIsAdmitted(t *testing.T) {
	d, _, addr, _ := desk(t)
	tok := token(t, d, 8)
	var wg sync.WaitGroup
	errs := make([]error, 8)
	for i := range errs {
		dir := t.TempDir()
		wg.Go(func() { _, errs[i] = Join(t.Context(), addr, tok, "node-1", dir) })
	}
	wg.Wait()
	admitted := 0
	for _, err := range errs {
		switch {
		case err == nil:
			admitted++
		case api.CodeOf(err) != api.CodeConflict:
			t.Error(err)
		}
	}
	if admitted != 1 {
		t.Errorf("%d were admitted as node-1", admitted)
	}
}

func TestBadJoinsAreRefused(t *testing.T) {
	d, _, addr, _ := desk(t)
	other, _, _, _ := desk(t)
	used := token(t, d, 1)
	if _, err := Join(t.Context(), addr, used, "node-1", t.TempDir()); err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct{ token, id string }{
		"used up":             {used, "node-2"},
		"of another cluster":  {token(t, other, 1), "node-2"},
		"nonsense":            {"nonsense", "node-2"},
		"id that is no id":    {token(t, d, 1), "../node"},
		"id that is empty":    {token(t, d, 1), ""},
		"id with upper cases": {token(t, d, 1), "Node"},
	} {
		dir := filepath.Join(t.TempDir(), "n")
		if _, err := Join(t.Context(), addr, c.token, c.id, dir); err == nil {
			t.Errorf("%s: admitted", what)
		}
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("%s: a directory is left", what)
		}
	}
}

func TestRenewalForAnotherNodeIsRefused(t *testing.T) {
	d, _, _, _ := desk(t)
	_, csr, err := pki.NewRequest("node-2")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Renew("node-1", csr); api.CodeOf(err) != api.CodeForbidden {
		t.Errorf("got %v", err)
	}
}

// With nobody to ask a renewal has failed, and says why.
func TestRenewalWithNobodyToAskSaysSo(t *testing.T) {
	cert, err := Renewer(nil, func() []string { return nil })(t.Context(), nil)
	if cert != nil || api.CodeOf(err) != api.CodeUnavailable {
		t.Errorf("certificate %q, error %v", cert, err)
	}
}

func TestInitMakesOneClusterOnce(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "c")
	tok, err := Init(dir, []string{"any"}, rand.Reader)
	if err != nil || tok == "" {
		t.Fatal(err)
	}
	if _, err := Init(dir, nil, rand.Reader); api.CodeOf(err) != api.CodeConflict {
		t.Errorf("a second time: %v", err)
	}
	var b Bootstrap
	if err := Load(dir, BootstrapFile, "", &b); err != nil || b.TokenHash != hashOf(t, tok) || strings.Contains(tok, b.TokenHash) {
		t.Errorf("%+v %v", b, err)
	}
	l := &ledger{tokens: map[string]store.Token{}}
	d := &Desk{Tokens: l}
	if err := d.Import(t.Context(), b); err != nil || l.tokens[b.TokenHash].Uses != b.Uses {
		t.Errorf("%+v %v", l.tokens, err)
	}
	b.ExpiresAt = time.Now().Add(-time.Hour).Unix()
	l.tokens = map[string]store.Token{}
	if err := d.Import(t.Context(), b); err != nil || len(l.tokens) != 0 {
		t.Errorf("an expired one was taken: %v", err)
	}
}

// An Init that was killed may leave an authority alone: the next one says so, and
// what to do.
func TestInitThatWasKilledIsToldOf(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "c")
	if _, err := Init(dir, []string{"any"}, rand.Reader); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, ClusterFile)); err != nil {
		t.Fatal(err)
	}
	ca := filepath.Join(dir, CADir)
	_, err := Init(dir, []string{"any"}, rand.Reader)
	if api.CodeOf(err) != api.CodeConflict || !strings.Contains(err.Error(), "cut short") || !strings.Contains(err.Error(), "remove "+ca) {
		t.Fatalf("error %v", err)
	}
	if _, err := pki.Load(ca); err != nil {
		t.Errorf("the authority was touched: %v", err)
	}
	if err := os.RemoveAll(ca); err != nil {
		t.Fatal(err)
	}
	if _, err := Init(dir, []string{"any"}, rand.Reader); err != nil {
		t.Errorf("after the remedy: %v", err)
	}
}

// A file that is there and cannot be read is not taken for one that is missing.
func TestClusterFileThatCannotBeReadIsNotReplaced(t *testing.T) {
	for name, make := range map[string]func(path string) error{
		"not readable": func(path string) error { return os.Mkdir(path, 0o700) },
		"not JSON":     func(path string) error { return os.WriteFile(path, []byte("{"), 0o600) },
	} {
		dir := t.TempDir()
		if err := make(filepath.Join(dir, ClusterFile)); err != nil {
			t.Fatal(err)
		}
		var c Cluster
		if err := Load(dir, ClusterFile, "make it", &c); api.CodeOf(err) != api.CodeInvalid {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := Init(dir, nil, rand.Reader); api.CodeOf(err) != api.CodeInvalid {
			t.Errorf("%s: Init: %v", name, err)
		}
		if _, err := os.Stat(filepath.Join(dir, CADir)); err == nil {
			t.Errorf("%s: an authority was made", name)
		}
	}
}

func TestTokensComeFromARunningCoordinatorOnly(t *testing.T) {
	if _, err := RequestToken(t.Context(), t.TempDir(), pki.RoleNode, 1, time.Minute); api.CodeOf(err) != api.CodeUnavailable {
		t.Errorf("got %v", err)
	}
}
