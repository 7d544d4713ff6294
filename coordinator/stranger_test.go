package coordinator

import (
	"crypto/rand"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/emmansun/gmsm/sm2"
	"github.com/emmansun/gmsm/sm3"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/reqauth"
	"github.com/faasd-sec/faasd-sec/sealed"
)

// withBroker gives the coordinator a key broker that counts what reaches it.
func withBroker(t *testing.T, asked *atomic.Int64) func(*world) {
	s := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Add(1) }))
	t.Cleanup(s.Close)
	return func(w *world) { w.broker, w.brokerURL = s.Client(), s.URL }
}

func TestSenderWhomTheOwnerDoesNotListCostsNoNode(t *testing.T) {
	w := newWorld(t, 1)
	for what, policy := range map[string]sealed.Policy{
		"nobody":   {},
		"another":  {Callers: []sealed.Fingerprint{{1}}},
		"this one": {Callers: []sealed.Fingerprint{w.point(w.owner).Fingerprint()}},
		"anybody":  {AnyCaller: true},
	} {
		admitted := policy.AllowSender(w.point(w.owner).Fingerprint())
		before := w.offered()
		policy.Attestation = []string{"node-key"}
		w.deploy(w.fn.Sequence+1, func(d *sealed.Descriptor) { d.Config.Policy = policy })
		a := w.send(w.message(10, time.Minute))
		if admitted && a.status != 200 || !admitted && a.code != api.Code(sealed.CodeSender) || w.offered()-before > 0 != admitted {
			t.Errorf("%s: %d %s, offered %d times", what, a.status, a.body, w.offered()-before)
		}
	}
	w.rest()
}

func TestDepositOfOneWhoMayNotDeployReachesNoBroker(t *testing.T) {
	var asked atomic.Int64
	listed := newWorld(t, 0, withBroker(t, &asked), func(w *world) {
		w.cfg.AnyOwner, w.cfg.Owners = false, []sealed.Fingerprint{w.point(w.owner).Fingerprint()}
	})
	stranger, err := sm2.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		by   *sm2.PrivateKey
		code api.Code
	}{{stranger, api.CodeForbidden}, {listed.owner, ""}} {
		before := asked.Load()
		a := listed.do("POST", api.GatewayPathDeposits, api.ContentTypeSealed, listed.depositBy(c.by))
		if a.code != c.code || asked.Load()-before > 0 != (c.code == "") {
			t.Errorf("%d %s, want %q; the broker was asked %d times", a.status, a.body, c.code, asked.Load()-before)
		}
	}
}

// depositBy is a sealed deposit for the function's decryption key: only its
// clear part is looked at here.
func (w *world) depositBy(k *sm2.PrivateKey) []byte {
	w.t.Helper()
	now := time.Now()
	g, err := sealed.NewGrant(sealed.GrantParams{Role: sealed.RoleDeposit, Recipient: w.point(w.keys[1]), Sender: k,
		Name: "f.ns", NotBefore: now.Add(-time.Minute), NotAfter: now.Add(time.Minute)})
	if err != nil {
		w.t.Fatal(err)
	}
	defer g.Release()
	b, err := g.Append(nil, sealed.MessageParams{Issued: now}, []byte("keys"))
	if err != nil {
		w.t.Fatal(err)
	}
	return b
}

// A target is appended to the broker's address.
func TestRequestTargetThatIsNoPathReachesNoBroker(t *testing.T) {
	var asked atomic.Int64
	w := newWorld(t, 0, withBroker(t, &asked))
	for _, target := range []string{"http://127.0.0.1:1" + api.GatewayPathBroker, "@127.0.0.1:1/.." + api.GatewayPathBroker} {
		conn, err := net.Dial("tcp", strings.TrimPrefix(w.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		conn.SetDeadline(time.Now().Add(30 * time.Second))
		io.WriteString(conn, "GET "+target+" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
		out, err := io.ReadAll(conn)
		if err != nil || !strings.HasPrefix(string(out), "HTTP/1.1 400") || strings.Contains(string(out), strings.TrimPrefix(w.brokerURL, "http://")) {
			t.Errorf("%s: %q %v", target, out, err)
		}
		conn.Close()
	}
	if asked.Load() != 0 {
		t.Errorf("the broker was asked %d times", asked.Load())
	}
}

// Whoever has a key signs as much as he likes; what is remembered of requests is
// bounded for all together.
func TestStrangersTakeNoRoomFromOwners(t *testing.T) {
	var asked atomic.Int64
	w := newWorld(t, 0, withBroker(t, &asked), func(w *world) {
		w.cfg.AnyOwner, w.cfg.Owners = false, []sealed.Fingerprint{w.point(w.owner).Fingerprint()}
	})
	stranger, err := sm2.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/v1/functions/f.ns", "/v1/deposits/f.ns"} {
		s := &reqauth.Signer{Key: stranger, Random: rand.Reader, Now: time.Now}
		auth, err := s.Sign("DELETE", path, sm3.Sum(nil))
		if err != nil {
			t.Fatal(err)
		}
		for range 2 { // were it remembered, the second would be a replay
			if a := w.do("DELETE", path, "", nil, "Authorization", auth); a.code != api.CodeForbidden {
				t.Errorf("%s: %d %s", path, a.status, a.body)
			}
		}
		if a := w.signed(w.owner, "DELETE", path, nil); a.status/100 != 2 {
			t.Errorf("%s by the owner: %d %s", path, a.status, a.body)
		}
	}
	if asked.Load() != 1 {
		t.Errorf("the broker was asked %d times", asked.Load())
	}
}

func TestOwnersDeleteNothingFromTheRegistry(t *testing.T) {
	w := newWorld(t, 0)
	if a := w.signed(w.owner, "DELETE", "/v2/img/manifests/"+imageDigest, nil); a.status != http.StatusMethodNotAllowed {
		t.Errorf("%d %s", a.status, a.body)
	}
	if a := w.signed(w.owner, "GET", "/v2/img/manifests/"+imageDigest, nil); a.status != 204 {
		t.Errorf("a read: %d %s", a.status, a.body)
	}
}

func TestDescriptionsBeyondTheBoundAskNoNode(t *testing.T) {
	w := newWorld(t, 1)
	for range maxLooks {
		w.c.looks <- struct{}{}
	}
	a := w.do("GET", "/v1/functions/f.ns", "", nil)
	var st api.FunctionStatus
	if err := json.Unmarshal(a.body, &st); err != nil || a.status != 200 || len(st.Descriptor) == 0 || len(st.Sandboxes) != 0 {
		t.Errorf("%d %s %v", a.status, a.body, err)
	}
}
