package reqauth_test

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/emmansun/gmsm/sm2"
	"github.com/emmansun/gmsm/sm3"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/reqauth"
	"github.com/faasd-sec/faasd-sec/sealed"
)

type clock struct{ ns atomic.Int64 }

func newClock() *clock {
	c := new(clock)
	c.ns.Store(time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC).UnixNano())
	return c
}
func (c *clock) now() time.Time      { return time.Unix(0, c.ns.Load()) }
func (c *clock) add(d time.Duration) { c.ns.Add(int64(d)) }

func newSigner(t *testing.T, c *clock) *reqauth.Signer {
	t.Helper()
	k, err := sm2.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &reqauth.Signer{Key: k, Random: rand.Reader, Now: c.now}
}

func fingerprint(t *testing.T, s *reqauth.Signer) sealed.Fingerprint {
	t.Helper()
	p, err := sealed.PublicKeyOf(s.Key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return p.Fingerprint()
}

const target = "/v1/functions/hello?keep=1"

var payload = []byte(`{"descriptor":"AAAA"}`)

func mustSign(t *testing.T, s *reqauth.Signer) string {
	t.Helper()
	h, err := s.Sign("PUT", target, sm3.Sum(payload))
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func TestVerifyNamesTheSigner(t *testing.T) {
	c := newClock()
	s := newSigner(t, c)
	who, err := reqauth.NewVerifier(c.now).Verify(reqauth.Request{
		Method: "PUT", Target: target, Authorization: mustSign(t, s), Body: reqauth.Bytes(payload)})
	if err != nil {
		t.Fatal(err)
	}
	if who.Fingerprint != fingerprint(t, s) {
		t.Errorf("fingerprint %s, want the signer's", who.Fingerprint)
	}
}

func TestAlteredRequestsAreRefused(t *testing.T) {
	c := newClock()
	s, other := newSigner(t, c), newSigner(t, c)
	h := mustSign(t, s)
	otherKey, _ := sealed.PublicKeyOf(other.Key.Public())
	ownKey, _ := sealed.PublicKeyOf(s.Key.Public())
	swap := func(old, new string) string {
		out := strings.Replace(h, old, new, 1)
		if out == h {
			t.Fatalf("%q does not occur in the header", old)
		}
		return out
	}
	good := reqauth.Request{Method: "PUT", Target: target, Authorization: h, Body: reqauth.Bytes(payload)}
	cases := map[string]func(r *reqauth.Request){
		"method":              func(r *reqauth.Request) { r.Method = "DELETE" },
		"path":                func(r *reqauth.Request) { r.Target = "/v1/functions/hellp?keep=1" },
		"query":               func(r *reqauth.Request) { r.Target = "/v1/functions/hello?keep=2" },
		"no query":            func(r *reqauth.Request) { r.Target = "/v1/functions/hello" },
		"line moved to path":  func(r *reqauth.Request) { r.Method, r.Target = "PUT\n/v1", "functions/hello?keep=1" },
		"body":                func(r *reqauth.Request) { r.Body = reqauth.Bytes([]byte("{}")) },
		"body left away":      func(r *reqauth.Request) { r.Body = reqauth.Body{} },
		"another key":         func(r *reqauth.Request) { r.Authorization = swap(ownKey.String(), otherKey.String()) },
		"time":                func(r *reqauth.Request) { r.Authorization = swap("ts=1772366400", "ts=1772366401") },
		"body made unsigned":  func(r *reqauth.Request) { r.Authorization = replaceParam(h, "body", "unsigned") },
		"nonce":               func(r *reqauth.Request) { r.Authorization = replaceParam(h, "nonce", strings.Repeat("0", 32)) },
		"no header":           func(r *reqauth.Request) { r.Authorization = "" },
		"basic":               func(r *reqauth.Request) { r.Authorization = "Basic YWRtaW46YWRtaW4=" },
		"only the scheme":     func(r *reqauth.Request) { r.Authorization = reqauth.Scheme },
		"parameter twice":     func(r *reqauth.Request) { r.Authorization = h + ", ts=1772366400" },
		"parameter missing":   func(r *reqauth.Request) { r.Authorization = swap(", ts=1772366400", "") },
		"unknown parameter":   func(r *reqauth.Request) { r.Authorization = h + ", host=a" },
		"upper-case hex":      func(r *reqauth.Request) { r.Authorization = replaceParam(h, "key", strings.ToUpper(ownKey.String())) },
		"key off the curve":   func(r *reqauth.Request) { r.Authorization = replaceParam(h, "key", "04"+strings.Repeat("11", 64)) },
		"time with sign":      func(r *reqauth.Request) { r.Authorization = replaceParam(h, "ts", "+1772366400") },
		"time negative":       func(r *reqauth.Request) { r.Authorization = replaceParam(h, "ts", "-1") },
		"short nonce":         func(r *reqauth.Request) { r.Authorization = replaceParam(h, "nonce", "00") },
		"signature cut":       func(r *reqauth.Request) { r.Authorization = h[:len(h)-2] },
		"signature empty":     func(r *reqauth.Request) { r.Authorization = replaceParam(h, "sig", "") },
		"signature odd":       func(r *reqauth.Request) { r.Authorization = h[:len(h)-1] },
		"trailing byte in it": func(r *reqauth.Request) { r.Authorization = h + "00" },
		"very long":           func(r *reqauth.Request) { r.Authorization = h + strings.Repeat(" ", 2000) },
	}
	for name, alter := range cases {
		t.Run(name, func(t *testing.T) {
			r := good
			alter(&r)
			_, err := reqauth.NewVerifier(c.now).Verify(r)
			if !errors.Is(err, &api.Error{Code: api.CodeUnauthorized}) {
				t.Fatalf("error %v, want %s", err, api.CodeUnauthorized)
			}
		})
	}
	if _, err := reqauth.NewVerifier(c.now).Verify(good); err != nil {
		t.Fatalf("the unaltered request: %v", err)
	}
}

func replaceParam(h, name, value string) string {
	at := strings.Index(h, name+"=") + len(name) + 1
	end := strings.Index(h[at:], ",")
	if end < 0 {
		return h[:at] + value
	}
	return h[:at] + value + h[at+end:]
}

func TestReplayIsRefusedOnceForEveryCopy(t *testing.T) {
	c := newClock()
	v := reqauth.NewVerifier(c.now)
	r := reqauth.Request{Method: "PUT", Target: target, Authorization: mustSign(t, newSigner(t, c)), Body: reqauth.Bytes(payload)}
	var passed, replayed atomic.Int32
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			switch _, err := v.Verify(r); api.CodeOf(err) {
			case "":
				passed.Add(1)
			case api.CodeReplay:
				replayed.Add(1)
			}
		})
	}
	wg.Wait()
	if passed.Load() != 1 || replayed.Load() != 15 {
		t.Fatalf("%d passed and %d were replays of 16 copies", passed.Load(), replayed.Load())
	}
}

func TestTimeOutsideTheWindowIsRefused(t *testing.T) {
	for _, d := range []time.Duration{-62 * time.Second, -60 * time.Second, 0, 60 * time.Second, 62 * time.Second} {
		c := newClock()
		r := reqauth.Request{Method: "PUT", Target: target, Authorization: mustSign(t, newSigner(t, c)), Body: reqauth.Bytes(payload)}
		c.add(d)
		_, err := reqauth.NewVerifier(c.now).Verify(r)
		if ok := d.Abs() <= reqauth.Window; ok != (err == nil) {
			t.Errorf("clock %s later: %v", d, err)
		}
	}
}

// A clock that is set back after a nonce was forgotten opens nothing again.
func TestClockSetBackDoesNotReopenARequest(t *testing.T) {
	c := newClock()
	s := newSigner(t, c)
	v := reqauth.NewVerifier(c.now)
	r := reqauth.Request{Method: "PUT", Target: target, Authorization: mustSign(t, s), Body: reqauth.Bytes(payload)}
	if _, err := v.Verify(r); err != nil {
		t.Fatal(err)
	}
	c.add(5 * time.Minute)
	later := reqauth.Request{Method: "PUT", Target: target, Authorization: mustSign(t, s), Body: reqauth.Bytes(payload)}
	if _, err := v.Verify(later); err != nil {
		t.Fatal(err)
	}
	c.add(-5 * time.Minute)
	if _, err := v.Verify(r); api.CodeOf(err) != api.CodeReplay {
		t.Fatalf("error %v, want a replay", err)
	}
}

func TestUnsignedBodyOnlyWhereAllowed(t *testing.T) {
	c := newClock()
	s := newSigner(t, c)
	h, err := s.SignUnsigned("PATCH", "/v2/a/blobs/uploads/1")
	if err != nil {
		t.Fatal(err)
	}
	r := reqauth.Request{Method: "PATCH", Target: "/v2/a/blobs/uploads/1", Authorization: h}
	for name, b := range map[string]reqauth.Body{"empty": {}, "bytes": reqauth.Bytes([]byte("x")), "stream": reqauth.Stream()} {
		r.Body = b
		if _, err := reqauth.NewVerifier(c.now).Verify(r); api.CodeOf(err) != api.CodeUnauthorized {
			t.Errorf("%s: error %v", name, err)
		}
	}
	r.Body = reqauth.Unsigned()
	who, err := reqauth.NewVerifier(c.now).Verify(r)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(who.Reader(strings.NewReader("anything"))); err != nil {
		t.Fatal(err)
	}
}

func TestStreamedBodyIsCheckedAtItsEnd(t *testing.T) {
	c := newClock()
	r := reqauth.Request{Method: "PUT", Target: target, Authorization: mustSign(t, newSigner(t, c)), Body: reqauth.Stream()}
	who, err := reqauth.NewVerifier(c.now).Verify(r)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(who.Reader(bytes.NewReader(payload))); err != nil || !bytes.Equal(got, payload) {
		t.Fatalf("read %q, %v", got, err)
	}
	for _, bad := range []string{"", "{}", string(payload) + "x", string(payload[:5])} {
		if _, err := io.ReadAll(who.Reader(strings.NewReader(bad))); api.CodeOf(err) != api.CodeUnauthorized {
			t.Errorf("body %q: error %v", bad, err)
		}
	}
}

func TestTransportSignsWhatAServerReceives(t *testing.T) {
	c := newClock()
	s := newSigner(t, c)
	v := reqauth.NewVerifier(c.now)
	var got atomic.Value
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		body := reqauth.Bytes(b)
		if reqauth.IsRegistryUpload(r.Method, r.URL.Path) {
			body = reqauth.Unsigned()
		}
		who, err := v.Verify(reqauth.Request{Method: r.Method, Target: r.RequestURI,
			Authorization: r.Header.Get("Authorization"), Body: body})
		if err != nil {
			w.WriteHeader(401)
			io.WriteString(w, err.Error())
			return
		}
		got.Store(who.Fingerprint)
	}))
	defer srv.Close()
	client := &http.Client{Transport: &reqauth.Transport{Base: srv.Client().Transport, Signer: s, Unsigned: reqauth.RegistryUpload}}
	once := struct{ io.Reader }{strings.NewReader("cannot rewind")}
	cases := []struct {
		method, target string
		body           io.Reader
	}{
		{"GET", "/v1/functions/a%2Fb?x=%20y&z", nil},
		{"PUT", "/v1/functions/a", bytes.NewReader(payload)},
		{"DELETE", "/v1/functions/a", nil},
		{"PATCH", "/v2/a/blobs/uploads/1", once},
		{"PUT", "/v2/a/manifests/latest", strings.NewReader("{}")},
	}
	for _, k := range cases {
		req, err := http.NewRequest(k.method, srv.URL+k.target, k.body)
		if err != nil {
			t.Fatal(err)
		}
		res, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(res.Body)
		res.Body.Close()
		if res.StatusCode != 200 || got.Load() != fingerprint(t, s) {
			t.Errorf("%s %s: %d %s", k.method, k.target, res.StatusCode, text)
		}
	}
	req, _ := http.NewRequest("PUT", srv.URL+"/v1/functions/a", struct{ io.Reader }{strings.NewReader("x")})
	if _, err := client.Do(req); err == nil {
		t.Error("a body that cannot be hashed went out")
	} else if ue := new(url.Error); !errors.As(err, &ue) {
		t.Errorf("error %T", err)
	}
}
