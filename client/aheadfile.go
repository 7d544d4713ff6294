package client

import (
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/emmansun/gmsm/sm2"
	"github.com/emmansun/gmsm/sm4"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed"
)

// aheadFile is an Ahead at rest. What is in clear is what the gateway knows too, and
// the cron line; the rest is sealed to the maker: SM4-GCM under a key of its own,
// which is encrypted to the identity's decryption key.
type aheadFile struct {
	Version  int              `json:"version"`
	Gateway  string           `json:"gateway"` // URL
	ID       string           `json:"id"`
	Function api.FunctionName `json:"function"`
	Cron     string           `json:"cron"`
	Until    int64            `json:"until"` // unix milliseconds
	Revision string           `json:"revision"`
	Key      []byte           `json:"key"` // SM2, strict DER
	Nonce    []byte           `json:"nonce"`
	Secret   []byte           `json:"secret"` // aheadSecret
}

const aheadVersion = 1

type aheadSecret struct {
	Method, Path, Query string
	Header              http.Header
	Body                []byte
	How                 Later
	Sealings            []aheadSealing
}

type aheadSealing struct {
	Revision []byte
	Signer   sealed.PublicKey
	Ticks    []byte // each 8 bytes of unix milliseconds, 16 of id, 32 of link
}

const tickRecord = 8 + len(sealed.ID{}) + len(sealed.Link{})

// AheadInfo is what a saved schedule says in clear.
type AheadInfo struct {
	Gateway  string           `json:"gateway"` // URL of the one that it was put through
	ID       string           `json:"id"`
	Function api.FunctionName `json:"function"`
	Cron     string           `json:"cron"`
	Until    int64            `json:"until"` // unix milliseconds
	Revision string           `json:"revision"`
}

// Next is the first tick after a time, zero for none that is sealed.
func (i *AheadInfo) Next(after time.Time) time.Time {
	when, err := parseCron(i.Cron)
	if err != nil {
		return time.Time{}
	}
	if next := when.Next(after); next.UnixMilli() <= i.Until {
		return next
	}
	return time.Time{}
}

// ReadAheadInfo reads the clear part of what MarshalAhead made.
func ReadAheadInfo(b []byte) (AheadInfo, error) {
	var f aheadFile
	if err := json.Unmarshal(b, &f); err != nil || f.Version != aheadVersion {
		return AheadInfo{}, badAhead()
	}
	return AheadInfo{Gateway: f.Gateway, ID: f.ID, Function: f.Function, Cron: f.Cron, Until: f.Until, Revision: f.Revision}, nil
}

func badAhead() error {
	return api.Invalid("schedule", "use what was saved when it was put", "it is no schedule of this release")
}

// MarshalAhead encodes a schedule for the identity's own later use.
func (c *Client) MarshalAhead(a *Ahead) ([]byte, error) {
	if err := c.needIdentity(); err != nil {
		return nil, err
	}
	secret := aheadSecret{Method: a.request.Method, Path: a.request.Path, Query: a.request.Query, Header: a.request.Header, Body: a.body, How: a.how}
	for _, s := range a.sealings {
		out := aheadSealing{Revision: s.revision[:], Signer: s.signer, Ticks: make([]byte, 0, len(s.ticks)*tickRecord)}
		for _, t := range s.ticks {
			out.Ticks = appendTick(out.Ticks, &t)
		}
		secret.Sealings = append(secret.Sealings, out)
	}
	plain, err := json.Marshal(secret)
	if err != nil {
		return nil, fmt.Errorf("client: keep the schedule: %w", err)
	}
	defer clear(plain)
	f := aheadFile{Version: aheadVersion, Gateway: c.gateway.String(), ID: a.ID, Function: a.Function, Cron: a.Cron, Until: a.Until.UnixMilli(), Revision: a.Revision.String()}
	var key [32]byte // the first half is SM4's
	defer clear(key[:])
	f.Nonce = make([]byte, 12)
	for _, b := range [][]byte{key[:], f.Nonce} {
		if _, err := c.cfg.Random.Read(b); err != nil {
			return nil, fmt.Errorf("client: keep the schedule: %w", err)
		}
	}
	own := c.cfg.Identity.DecryptionKey()
	to, err := sm2.NewPublicKey(own[:])
	if err != nil {
		return nil, fmt.Errorf("client: own key: %w", err)
	}
	if f.Key, err = sm2.EncryptASN1(rand.Reader, to, key[:]); err != nil {
		return nil, fmt.Errorf("client: keep the schedule: %w", err)
	}
	aead, err := aheadCipher(key[:])
	if err != nil {
		return nil, err
	}
	f.Secret = aead.Seal(nil, f.Nonce, plain, f.clear())
	return json.Marshal(f)
}

// clear binds the clear part to the secret one.
func (f *aheadFile) clear() []byte {
	return fmt.Appendf(nil, "faasd-sec/v1 schedule file\x00%d\n%s\n%s\n%s\n%s\n%d\n%s", f.Version, f.Gateway, f.ID, f.Function, f.Cron, f.Until, f.Revision)
}

func aheadCipher(key []byte) (cipher.AEAD, error) {
	block, err := sm4.NewCipher(key[:sm4.BlockSize])
	if err != nil {
		return nil, fmt.Errorf("client: keep the schedule: %w", err)
	}
	return cipher.NewGCM(block)
}

// UnmarshalAhead decodes what MarshalAhead made.
func (c *Client) UnmarshalAhead(b []byte) (*Ahead, error) {
	if err := c.needIdentity(); err != nil {
		return nil, err
	}
	var f aheadFile
	if err := json.Unmarshal(b, &f); err != nil || f.Version != aheadVersion || len(f.Nonce) != 12 {
		return nil, badAhead()
	}
	foreign := &api.Error{Code: api.CodeForbidden, Field: "schedule", Message: "the schedule was put by another identity, or its record is damaged",
		Remedy: "use the identity that put it (--identity)"}
	key, err := c.cfg.Identity.Decrypter().Decrypt(rand.Reader, f.Key, nil)
	if err != nil || len(key) != 32 {
		return nil, foreign
	}
	defer clear(key)
	aead, err := aheadCipher(key)
	if err != nil {
		return nil, err
	}
	plain, err := aead.Open(nil, f.Nonce, f.Secret, f.clear())
	if err != nil {
		return nil, foreign
	}
	defer clear(plain)
	var s aheadSecret
	revision, rerr := sealed.ParseDigest(f.Revision)
	if err := json.Unmarshal(plain, &s); err != nil || rerr != nil {
		return nil, badAhead()
	}
	a := &Ahead{ID: f.ID, Function: f.Function, Cron: f.Cron, Until: time.UnixMilli(f.Until), Revision: revision, body: s.Body, how: s.How,
		request: Request{Method: s.Method, Path: s.Path, Query: s.Query, Header: s.Header}}
	for _, in := range s.Sealings {
		if len(in.Revision) != len(sealed.Digest{}) || len(in.Ticks) == 0 || len(in.Ticks)%tickRecord != 0 {
			return nil, badAhead()
		}
		out := sealing{revision: sealed.Digest(in.Revision), signer: in.Signer}
		for rest := in.Ticks; len(rest) > 0; rest = rest[tickRecord:] {
			out.ticks = append(out.ticks, parseTick(rest))
		}
		a.sealings = append(a.sealings, out)
	}
	return a, nil
}

func appendTick(dst []byte, t *sealedTick) []byte {
	dst = binary.BigEndian.AppendUint64(dst, uint64(t.at))
	dst = append(dst, t.id[:]...)
	return append(dst, t.link[:]...)
}

func parseTick(b []byte) sealedTick {
	return sealedTick{at: int64(binary.BigEndian.Uint64(b)), id: sealed.ID(b[8:24]), link: sealed.Link(b[24:tickRecord])}
}
