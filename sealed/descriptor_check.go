package sealed

import (
	"bytes"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"unicode/utf8"
)

// Limits of a descriptor.
const (
	MaxDescriptor   = 65536 // bytes of the encoded payload
	maxLabel        = 63    // bytes of name and of namespace
	maxArgs         = 64
	maxArg          = 4096
	maxLabels       = 32
	maxLabelText    = 128
	maxCallers      = 1024
	maxAttestation  = 8
	maxDecryption   = 3
	maxSuites       = 8
	maxUpstream     = 256
	maxMount        = 256
	maxRef          = 512
	maxTimeoutMS    = 24 * 3600 * 1000
	maxInFlight     = 65536
	maxLimit        = 1 << 50 // of any resource
	digestTextBytes = len("sha256:") + 64
)

// Validate checks every field and names the first one that is wrong.
func (d *Descriptor) Validate() error {
	if err := d.validate(); err != nil {
		return fmt.Errorf("sealed: descriptor: %w", err)
	}
	return nil
}

func (d *Descriptor) validate() error {
	switch {
	case !dnsLabel(d.Name):
		return fmt.Errorf("name: %q is not a DNS label", d.Name)
	case !dnsLabel(d.Namespace):
		return fmt.Errorf("namespace: %q is not a DNS label", d.Namespace)
	case d.Sequence == 0:
		return errors.New("sequence: 0; begin with 1")
	case d.BundleBlob != "" && !sha256Text(d.BundleBlob):
		return errors.New(`bundle blob: want "sha256:" and 64 lower-case hex digits, or nothing`)
	case d.BundleBlob != "" && d.Config.Bundle.IsZero():
		return errors.New("bundle blob: set, but the bundle digest is not")
	case d.MaxQueuedMS > uint64(MaxQueuedLife.Milliseconds()):
		return fmt.Errorf("max age queued: %d ms, at most %s", d.MaxQueuedMS, MaxQueuedLife)
	case !printable(d.ImageRef, maxRef):
		return fmt.Errorf("image ref: want at most %d printable bytes", maxRef)
	case len(d.Suites) < 1 || len(d.Suites) > maxSuites:
		return fmt.Errorf("suites: %d of them, want 1..%d", len(d.Suites), maxSuites)
	}
	for i, s := range d.Suites {
		if i > 0 && s <= d.Suites[i-1] {
			return errors.New("suites: not ascending")
		}
	}
	if err := d.validateKeys(); err != nil {
		return err
	}
	return d.Config.validate()
}

// validateKeys enforces that no key both signs and decrypts: a decryption oracle
// for one use must not be a signing oracle for another.
func (d *Descriptor) validateKeys() error {
	if _, err := d.SigningKey.ecdsa(); err != nil {
		return fmt.Errorf("signing key: %w", err)
	}
	if len(d.Decryption) < 1 || len(d.Decryption) > maxDecryption {
		return fmt.Errorf("decryption keys: %d of them, want 1..%d", len(d.Decryption), maxDecryption)
	}
	for i := range d.Decryption {
		k := &d.Decryption[i]
		if _, err := k.Key.ecdsa(); err != nil {
			return fmt.Errorf("decryption key %d: %w", i, err)
		}
		switch {
		case k.Key == d.SigningKey:
			return fmt.Errorf("decryption key %d: is the signing key too", i)
		case k.Key == d.Config.Policy.Broker:
			return fmt.Errorf("decryption key %d: is the key broker's signing key too", i)
		case k.NotBefore > k.NotAfter:
			return fmt.Errorf("decryption key %d: not_before lies after not_after", i)
		}
		for j := range i {
			if d.Decryption[j].Key == k.Key {
				return fmt.Errorf("decryption key %d: repeats key %d", i, j)
			}
		}
	}
	if !d.LogRecipient.IsZero() {
		if _, err := d.LogRecipient.ecdsa(); err != nil {
			return fmt.Errorf("log recipient: %w", err)
		}
		if d.LogRecipient == d.SigningKey || d.LogRecipient == d.Config.Policy.Broker {
			return errors.New("log recipient: is a signing key too")
		}
	}
	return nil
}

func (c *Config) validate() error {
	switch {
	case !sha256Text(c.Image):
		return errors.New(`image: want "sha256:" and 64 lower-case hex digits`)
	case c.Mode != ModeHTTP && c.Mode != ModeSerializing && c.Mode != ModeStreaming:
		return fmt.Errorf("mode: %q is none of http, serializing and streaming", c.Mode)
	case len(c.Argv) > maxArgs:
		return fmt.Errorf("argv: %d arguments, at most %d", len(c.Argv), maxArgs)
	case !upstream(c.Upstream):
		return fmt.Errorf(`upstream: %q is neither "unix" nor "http://127.0.0.1:PORT"`, c.Upstream)
	case c.BundleMount != "" && !cleanPath(c.BundleMount):
		return fmt.Errorf("bundle mount: want a clean absolute path below / of at most %d bytes", maxMount)
	case c.MaxInFlight > maxInFlight:
		return fmt.Errorf("max in flight: %d, at most %d", c.MaxInFlight, maxInFlight)
	}
	for i, a := range c.Argv {
		if len(a) > maxArg || !utf8.ValidString(a) || strings.IndexByte(a, 0) >= 0 || i == 0 && a == "" {
			return fmt.Errorf("argv %d: want UTF-8 without NUL of at most %d bytes, the first one not empty", i, maxArg)
		}
	}
	for _, t := range []struct {
		name string
		ms   uint64
	}{{"read timeout", c.ReadMS}, {"write timeout", c.WriteMS}, {"exec timeout", c.ExecMS}, {"start timeout", c.StartMS}, {"idle", c.IdleMS}} {
		if t.ms > maxTimeoutMS {
			return fmt.Errorf("%s: %d ms, at most a day", t.name, t.ms)
		}
	}
	r := &c.Resources
	for _, l := range []struct {
		name string
		n    uint64
	}{{"cpu", r.CPUMillis}, {"memory", r.MemoryBytes}, {"pids", r.PIDs}, {"tmp", r.TmpBytes}, {"io read", r.IOReadBPS}, {"io write", r.IOWriteBPS}} {
		if l.n > maxLimit {
			return fmt.Errorf("resources: %s: %d, at most %d", l.name, l.n, uint64(maxLimit))
		}
	}
	if len(c.Labels) > maxLabels {
		return fmt.Errorf("labels: %d of them, at most %d", len(c.Labels), maxLabels)
	}
	for k, v := range c.Labels {
		if k == "" || !printable(k, maxLabelText) || !printable(v, maxLabelText) {
			return fmt.Errorf("labels: want printable names and values of at most %d bytes", maxLabelText)
		}
	}
	return c.Policy.validate()
}

func (p *Policy) validate() error {
	if p.AnyCaller && len(p.Callers) > 0 {
		return errors.New("policy: callers are listed, but any caller is admitted")
	}
	if len(p.Callers) > maxCallers {
		return fmt.Errorf("policy: %d callers, at most %d", len(p.Callers), maxCallers)
	}
	for i := range p.Callers {
		if i > 0 && bytes.Compare(p.Callers[i-1][:], p.Callers[i][:]) >= 0 {
			return errors.New("policy: callers are not ascending, or one is repeated")
		}
	}
	if len(p.Attestation) > maxAttestation {
		return fmt.Errorf("policy: %d attestation types, at most %d", len(p.Attestation), maxAttestation)
	}
	for i, a := range p.Attestation {
		if !dnsLabel(a) {
			return fmt.Errorf("policy: attestation type %q: want a-z, 0-9 and -", a)
		}
		if i > 0 && p.Attestation[i-1] >= a {
			return errors.New("policy: attestation types are not ascending, or one is repeated")
		}
	}
	if !p.Broker.IsZero() {
		if _, err := p.Broker.ecdsa(); err != nil {
			return fmt.Errorf("policy: broker: %w", err)
		}
	}
	return nil
}

// dnsLabel: 1..63 of a-z, 0-9 and -, no - at either end.
func dnsLabel(s string) bool {
	if len(s) < 1 || len(s) > maxLabel || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	return strings.IndexFunc(s, func(r rune) bool {
		return r != '-' && (r < 'a' || r > 'z') && (r < '0' || r > '9')
	}) < 0
}

func sha256Text(s string) bool {
	var d Digest
	hex, ok := strings.CutPrefix(s, "sha256:")
	return ok && decodeHex(d[:], hex) == nil
}

func printable(s string, limit int) bool {
	return len(s) <= limit && !slices.ContainsFunc([]byte(s), func(c byte) bool { return c < 0x20 || c > 0x7e })
}

// upstream admits the function's own loopback alone: nothing a descriptor says
// may point the agent elsewhere.
func upstream(s string) bool {
	if s == "unix" {
		return true
	}
	if len(s) > maxUpstream {
		return false
	}
	port, ok := strings.CutPrefix(s, "http://127.0.0.1:")
	if !ok || len(port) < 1 || len(port) > 5 || port[0] == '0' {
		return false
	}
	n := 0
	for i := range len(port) {
		if port[i] < '0' || port[i] > '9' {
			return false
		}
		n = n*10 + int(port[i]-'0')
	}
	u, err := url.Parse(s)
	return err == nil && u.Host == "127.0.0.1:"+port && n <= 65535
}

func cleanPath(s string) bool {
	if len(s) < 2 || len(s) > maxMount || s[0] != '/' || !printable(s, maxMount) {
		return false
	}
	for part := range strings.SplitSeq(s[1:], "/") {
		if part == "" || part == "." || part == ".." {
			return false
		}
	}
	return true
}
