package sealed_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/sealed/unseal"
)

var update = flag.Bool("update", false, "write testdata/vectors.json again")

const vectorFile = "testdata/vectors.json"

// vector is one test vector; docs/envelope.md says how to use it.
type vector struct {
	Name             string  `json:"name"`
	RecipientPrivate string  `json:"recipient_private"`
	RecipientPublic  string  `json:"recipient_public"`
	Link             string  `json:"link"`
	NowMS            uint64  `json:"now_ms"`
	Sealed           string  `json:"sealed"`
	Plaintext        *string `json:"plaintext,omitempty"`
	Error            string  `json:"error,omitempty"`
	Expect           *expect `json:"expect,omitempty"`
}

// expect overrides what a reader expects by default.
type expect struct {
	Role        uint8  `json:"role,omitempty"`
	Name        string `json:"name,omitempty"`
	Context     string `json:"context,omitempty"`
	Sender      string `json:"sender,omitempty"`        // fingerprint of the one admitted key
	ID          string `json:"id,omitempty"`            // of the request, role 2
	MaxQueuedMS uint64 `json:"max_queued_ms,omitempty"` // default 0
	Repeat      bool   `json:"repeat,omitempty"`        // open twice with the same state; the second result counts
}

// anybody admits every sender.
type anybody struct{}

func (anybody) AllowSender(sealed.Fingerprint) bool { return true }

func unhex(tb testing.TB, s string) []byte {
	tb.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// open opens a vector as the documentation says, and returns the whole plaintext.
func (v *vector) open(t *testing.T, streaming bool) ([]byte, error) {
	priv, err := unseal.KeyFromScalar(unhex(t, v.RecipientPrivate))
	if err != nil {
		t.Fatal(err)
	}
	if priv.PublicKey().String() != v.RecipientPublic {
		t.Fatal("recipient_public does not belong to recipient_private")
	}
	clock := func() time.Time { return time.UnixMilli(int64(v.NowMS)) }
	keys, err := unseal.KeysOf(priv)
	if err != nil {
		t.Fatal(err)
	}
	replay, err := sealed.NewReplaySet(sealed.ReplayConfig{Clock: clock})
	if err != nil {
		t.Fatal(err)
	}
	cache, err := unseal.NewCache(unseal.DefaultCacheConfig())
	if err != nil {
		t.Fatal(err)
	}
	o, err := unseal.NewOpener(unseal.Config{Keys: keys, Cache: cache, Replay: replay, Clock: clock})
	if err != nil {
		t.Fatal(err)
	}

	env := unhex(t, v.Sealed)
	// The defaults come from the envelope's own bytes.
	want := unseal.Expect{Role: sealed.RoleRequest, Name: vectorName, Senders: anybody{}}
	reply := unseal.ExpectReply{Name: want.Name}
	if len(env) >= 202 {
		want.Role = sealed.Role(env[6])
		copy(want.Context[:], env[153:185])
		copy(reply.Sender[:], env[23:88])
		if n := int(env[201]); len(env) >= 202+n {
			want.Name = string(env[202 : 202+n])
		}
		if i := bytes.Index(env, []byte("FSM1")); i > 0 && len(env) >= i+20 {
			copy(reply.ID[:], env[i+4:])
		}
	}
	var x expect
	if v.Expect != nil {
		x = *v.Expect
	}
	if x.Role != 0 {
		want.Role = sealed.Role(x.Role)
	}
	if x.Name != "" {
		want.Name = x.Name
	} else if want.Name == "" {
		want.Name = vectorName // no reader expects an empty name
	}
	if x.Context != "" {
		copy(want.Context[:], unhex(t, x.Context))
	}
	if x.Sender != "" {
		var f sealed.Fingerprint
		copy(f[:], unhex(t, x.Sender))
		want.Senders = unseal.OnlyFingerprint(f)
	}
	if x.ID != "" {
		copy(reply.ID[:], unhex(t, x.ID))
	}
	want.MaxQueued = time.Duration(x.MaxQueuedMS) * time.Millisecond
	if !want.Role.Valid() {
		want.Role = sealed.RoleRequest // no reader expects such a role
	}
	if !want.Role.HasContext() {
		want.Context = sealed.Digest{}
	} else if want.Context.IsZero() {
		want.Context = sealed.Digest{1}
	}

	var pending *unseal.PendingReply
	if want.Role == sealed.RoleReply {
		reply.Name, reply.Context = want.Name, want.Context
		copy(reply.Link[:], unhex(t, v.Link))
		if pending, err = o.ExpectReply(reply); err != nil {
			return nil, err
		}
	}
	once := func() ([]byte, error) {
		var r io.Reader = bytes.NewReader(env)
		if streaming {
			r = oneByOne{r}
		}
		var m *unseal.Message
		var err error
		if pending != nil {
			m, err = pending.Open(r)
		} else {
			m, err = o.Open(r, want)
		}
		if err != nil {
			return nil, err
		}
		defer m.Close()
		body, err := m.Body(nil)
		if err != nil {
			return nil, err
		}
		text, err := io.ReadAll(body)
		if err != nil {
			return nil, err
		}
		var head []byte
		switch want.Role {
		case sealed.RoleRequest:
			h, err := m.RequestHead()
			if err != nil {
				return nil, err
			}
			if head, err = h.AppendTo(nil); err != nil {
				return nil, err
			}
		case sealed.RoleReply:
			h, err := m.ReplyHead()
			if err != nil {
				return nil, err
			}
			if head, err = h.AppendTo(nil); err != nil {
				return nil, err
			}
		}
		return append(head, text...), nil
	}
	text, err := once()
	if x.Repeat {
		if err != nil {
			t.Fatalf("first opening: %v", err)
		}
		text, err = once()
	}
	return text, err
}

// oneByOne reads a byte at a time: every place where a reader may stop.
type oneByOne struct{ r io.Reader }

func (o oneByOne) Read(p []byte) (int, error) { return o.r.Read(p[:min(1, len(p))]) }

func TestVectors(t *testing.T) {
	if *update {
		b, err := json.MarshalIndent(makeVectors(t), "", " ")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(vectorFile, append(b, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(vectorFile)
	if err != nil {
		t.Fatal(err)
	}
	var vectors []vector
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&vectors); err != nil {
		t.Fatal(err)
	}
	if len(vectors) < 30 {
		t.Fatalf("%d vectors, want 30 or more", len(vectors))
	}
	seen := map[string]bool{}
	for i := range vectors {
		v := &vectors[i]
		if seen[v.Name] || (v.Plaintext == nil) == (v.Error == "") {
			t.Fatalf("vector %s: repeated, or not exactly one of plaintext and error", v.Name)
		}
		seen[v.Name] = true
		for _, streaming := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/bytewise=%t", v.Name, streaming), func(t *testing.T) {
				text, err := v.open(t, streaming)
				if v.Error != "" {
					if got := sealed.CodeOf(err); string(got) != v.Error {
						t.Fatalf("opened with %v, want %s", err, v.Error)
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				if hex.EncodeToString(text) != *v.Plaintext {
					t.Fatalf("plaintext is %x, want %s", text, *v.Plaintext)
				}
			})
		}
	}
}

// TestVectorsAreReproducible makes the vectors again and compares: what is
// committed is what the maker makes.
func TestVectorsAreReproducible(t *testing.T) {
	want, err := os.ReadFile(vectorFile)
	if err != nil {
		t.Fatal(err)
	}
	got, err := json.MarshalIndent(makeVectors(t), "", " ")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(append(got, '\n'), want) {
		t.Fatal("testdata/vectors.json differs from what its maker makes")
	}
}
