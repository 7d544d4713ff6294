package main

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/client/clienttest"
)

// serving runs a command until the test ends, and returns what it is ready at and
// all that it printed before.
func (s *shell) serving(args ...string) (ready, printed string) {
	s.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	pr, pw := io.Pipe()
	var errs strings.Builder
	done := make(chan int, 1)
	go func() {
		code := run(ctx, args, strings.NewReader(""), pw, &errs, func(k string) (string, bool) { v, ok := s.env[k]; return v, ok })
		pw.Close()
		done <- code
	}()
	s.t.Cleanup(func() {
		cancel()
		select {
		case code := <-done:
			if code != 0 {
				s.t.Errorf("%s: exit %d: %s", args[0], code, errs.String())
			}
		case <-time.After(20 * time.Second):
			s.t.Errorf("%s does not end", args[0])
		}
	})
	lines := bufio.NewScanner(pr)
	for lines.Scan() {
		printed += lines.Text() + "\n"
		if url, ok := strings.CutPrefix(lines.Text(), "ready"); ok {
			go io.Copy(io.Discard, pr) // ends with the command
			return strings.TrimSpace(url), printed
		}
	}
	s.t.Fatalf("%s ended before it was ready: %s", args[0], errs.String())
	return "", ""
}

// deployedHello makes an identity that has deployed hello to a fake cluster.
func deployedHello(t *testing.T) *shell {
	t.Helper()
	s := newShell(t, clienttest.New(t).URL)
	dir := t.TempDir()
	yml := s.file(filepath.Join(dir, "function.yml"), helloYML)
	s.file(filepath.Join(dir, "main.sh"), "#!/bin/sh\n")
	s.file(filepath.Join(dir, "model", "w"), "x")
	s.file(filepath.Join(s.config(), "secrets", "token"), "x")
	s.must("", "key", "new")
	s.must("", "deploy", "-f", yml, "--build", "--trust-first-use")
	return s
}

func TestProxyServesByItsConfiguration(t *testing.T) {
	s := deployedHello(t)
	dir := t.TempDir()
	s.file(filepath.Join(dir, "token"), "0123456789abcdef0123\n")
	config := s.file(filepath.Join(dir, "proxy.yml"), `listen: 127.0.0.1:0
metrics: 127.0.0.1:0
token_file: token
routes:
  - {name: posts, functions: [hello], methods: [POST]}
`)
	url, printed := s.serving("proxy", "--config", config)
	call := func(method, token string) (int, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, url+"/function/hello", strings.NewReader("body"))
		if err != nil {
			t.Fatal(err)
		}
		req.Close = true
		req.Header.Set("Proxy-Authorization", token)
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, string(b)
	}
	if status, body := call("POST", "Bearer 0123456789abcdef0123"); status != 201 || body != "body" {
		t.Errorf("%d %s", status, body)
	}
	if status, _ := call("PUT", "Bearer 0123456789abcdef0123"); status != 403 {
		t.Errorf("another method: %d", status)
	}
	if status, _ := call("POST", ""); status != 401 {
		t.Errorf("no token: %d", status)
	}
	metrics := strings.TrimSpace(strings.TrimPrefix(strings.SplitN(printed, "\n", 2)[0], "metrics"))
	res, err := http.Get(metrics)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	for _, want := range []string{`faasd_sec_proxy_requests_total{code="ok",route="posts"} 1`, `{code="forbidden",route="none"} 1`, `{code="unauthorized",route="none"} 1`} {
		if err != nil || !strings.Contains(string(b), want) {
			t.Errorf("metrics lack %s: %v", want, err)
		}
	}
}

func TestProxyServesAUnixSocketOfItsUserAlone(t *testing.T) {
	s := deployedHello(t)
	path := filepath.Join(t.TempDir(), "s")
	if url, _ := s.serving("proxy", "--listen", "unix:"+path); url != "unix:"+path {
		t.Errorf("ready %s", url)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("%v %v", info.Mode(), err)
	}
	tr := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}}
	res, err := (&http.Client{Transport: tr}).Post("http://any.name/function/hello", "text/plain", strings.NewReader("body"))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if b, err := io.ReadAll(res.Body); err != nil || string(b) != "body" {
		t.Errorf("%q %v", b, err)
	}
	if code, _, errs := s.run("", "proxy", "--listen", "unix:"+path); code != exitUnavailable || !strings.Contains(errs, "is served") {
		t.Errorf("a socket in use: exit %d %s", code, errs)
	}
	file := s.file(filepath.Join(t.TempDir(), "notes"), "mine")
	if code, _, errs := s.run("", "proxy", "--listen", "unix:"+file); code != exitInvalid || !strings.Contains(errs, "no socket") {
		t.Errorf("a file: exit %d %s", code, errs)
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "mine" {
		t.Errorf("the file is gone: %v", err)
	}
	if code, _, _ := s.run("", "proxy", "--listen", "0.0.0.0:0"); code != exitInvalid {
		t.Errorf("every address: exit %d", code)
	}
}

// selfSigned writes a certificate for 127.0.0.1 and its key.
func selfSigned(t *testing.T, dir string) *x509.CertPool {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{"cert.pem": {Type: "CERTIFICATE", Bytes: der}, "key.pem": {Type: "PRIVATE KEY", Bytes: private}} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	return pool
}

func TestProxyServesOtherMachinesOverTLSWithAToken(t *testing.T) {
	s := deployedHello(t)
	dir := t.TempDir()
	pool := selfSigned(t, dir)
	s.file(filepath.Join(dir, "token"), "0123456789abcdef0123")
	config := s.file(filepath.Join(dir, "proxy.yml"), "listen: 0.0.0.0:0\ntoken_file: token\ntls: {certificate: cert.pem, key: key.pem}\nroutes: [{functions: [hello]}]\n")
	url, _ := s.serving("proxy", "--config", config)
	_, port, err := net.SplitHostPort(strings.TrimPrefix(url, "https://"))
	if err != nil {
		t.Fatal(err)
	}
	tr := &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: pool}}
	for token, want := range map[string]int{"Bearer 0123456789abcdef0123": 201, "": 401} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://127.0.0.1:"+port+"/function/hello", strings.NewReader(strings.Repeat("x", 400<<10)))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Proxy-Authorization", token)
		res, err := (&http.Client{Transport: tr}).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil || res.StatusCode != want || want == 201 && len(b) != 400<<10 {
			t.Errorf("token %q: %d, %d bytes, %v", token, res.StatusCode, len(b), err)
		}
	}
	if code, _, errs := s.run("", "proxy", "--config", config, "--listen", "127.0.0.1:0", "--metrics", "0.0.0.0:0"); code != exitInvalid {
		t.Errorf("metrics for everybody: exit %d %s", code, errs)
	}
}

// What key trust owner writes is known to a proxy that runs.
func TestProxyKeepsUpWithThePins(t *testing.T) {
	s := deployedHello(t)
	var owner struct{ Fingerprint string }
	if err := json.Unmarshal([]byte(s.must("", "key", "show", "-o", "json")), &owner); err != nil {
		t.Fatal(err)
	}
	s.must("", "key", "new", "--identity", "caller")
	url, printed := s.serving("proxy", "--identity", "caller", "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0")
	metrics := strings.TrimSpace(strings.TrimPrefix(strings.SplitN(printed, "\n", 2)[0], "metrics"))
	wants := func(status int, line string) {
		t.Helper()
		res, err := http.Post(url+"/function/hello", "text/plain", strings.NewReader("body"))
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		if b, err := io.ReadAll(res.Body); err != nil || res.StatusCode != status {
			t.Errorf("%d %s %v, want %d", res.StatusCode, b, err, status)
		}
		if res, err = http.Get(metrics); err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		if b, err := io.ReadAll(res.Body); err != nil || !strings.Contains(string(b), "\n"+line+"\n") {
			t.Errorf("metrics lack %s: %v", line, err)
		}
	}
	wants(403, "faasd_sec_proxy_pins_broken 0")
	s.must("", "key", "trust", "owner", "hello.openfaas-fn", owner.Fingerprint)
	wants(201, `faasd_sec_proxy_pins_reads_total{outcome="ok"} 1`)
	pins := filepath.Join(s.config(), "pins.json")
	good, err := os.ReadFile(pins)
	if err != nil {
		t.Fatal(err)
	}
	s.file(pins, "{")
	wants(201, "faasd_sec_proxy_pins_broken 1")
	s.file(pins, string(good))
	wants(201, "faasd_sec_proxy_pins_broken 0")
	if err := os.Remove(pins); err != nil {
		t.Fatal(err)
	}
	wants(403, "faasd_sec_proxy_pins_broken 0")
}

func TestProxyRefusesAnIdentityThatIsNotThere(t *testing.T) {
	s := deployedHello(t)
	if code, _, errs := s.run("", "proxy", "--identity", "nobody", "--listen", "127.0.0.1:0"); code == 0 || !strings.Contains(errs, "nobody") {
		t.Errorf("exit %d %s", code, errs)
	}
}
