package clienttest

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/sealed/unseal"
)

// adopt does what coordinator, node and agent do with a new revision.
func (c *Cluster) adopt(rev api.Revision, owner sealed.Fingerprint) error {
	signed, err := sealed.ParseDescriptor(rev.Descriptor)
	if err != nil {
		return err
	}
	if c.Descriptor, err = signed.Verify(owner); err != nil {
		return err
	}
	if c.Revision, err = c.Descriptor.Revision(); err != nil {
		return err
	}
	if c.Keys, err = c.release(); err != nil {
		return err
	}
	if err := unseal.MatchDescriptor(c.Descriptor, c.Keys.Signing, c.Keys.Decryption); err != nil {
		return err
	}
	list := make([]unseal.Key, len(c.Keys.Decryption))
	for i, s := range c.Keys.Decryption {
		k, err := unseal.KeyFromScalar(s)
		if err != nil {
			return err
		}
		list[i] = unseal.Key{Decrypter: k}
	}
	c.Opener, err = newOpener(list...)
	c.Record, c.Owner = &rev, owner
	return err
}

func newOpener(list ...unseal.Key) (*unseal.Opener, error) {
	keys, err := unseal.NewKeySet(list...)
	if err != nil {
		return nil, err
	}
	replay, err := sealed.NewReplaySet(sealed.ReplayConfig{})
	if err != nil {
		return nil, err
	}
	return unseal.NewOpener(unseal.Config{Keys: keys, Replay: replay})
}

// release asks the broker as a sandbox would.
func (c *Cluster) release() (*unseal.Release, error) {
	eph, err := unseal.NewKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	pub := eph.PublicKey()
	st, err := cbor.Marshal(api.Statement{Ephemeral: pub[:], Nonce: make([]byte, 16), IssuedAtMs: time.Now().UnixMilli()})
	if err != nil {
		return nil, err
	}
	reply, err := c.Broker.Release(c.t.Context(), "n1", api.ReleaseRequest{Function: c.Descriptor.FullName(), Revision: c.Revision.String(), Statement: st, Evidence: []api.Evidence{{Type: "node-key"}}})
	if err != nil {
		return nil, err
	}
	o, err := newOpener(unseal.Key{Decrypter: eph})
	if err != nil {
		return nil, err
	}
	m, err := o.Open(bytes.NewReader(reply.Sealed), unseal.Expect{Role: sealed.RoleRelease, Name: c.Descriptor.FullName(), Context: c.Revision,
		Senders: unseal.Only(c.Descriptor.Config.Policy.Broker)})
	if err != nil {
		return nil, err
	}
	defer m.Close()
	b, err := m.ReadAll(4096)
	if err != nil {
		return nil, err
	}
	return unseal.DecodeRelease(b)
}

// Invoke is the agent: it opens, lets handler answer, and seals the reply.
func (c *Cluster) Invoke(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	opener, desc, rev, keys, handler := c.Opener, c.Descriptor, c.Revision, c.Keys, c.Handler
	c.mu.Unlock()
	refuse := func(err error) {
		Fail(w, &api.Error{Code: api.Code(sealed.CodeOf(err)), Message: err.Error()})
	}
	m, err := opener.Open(r.Body, unseal.Expect{Role: sealed.RoleRequest, Name: desc.FullName(), Context: rev, Senders: &desc.Config.Policy})
	if err != nil {
		refuse(err)
		return
	}
	defer m.Close()
	body, err := m.Body(func() (io.ReadWriteSeeker, error) { return os.CreateTemp(c.t.TempDir(), "spool") })
	if err != nil {
		refuse(err)
		return
	}
	head, err := m.RequestHead()
	if err != nil {
		refuse(err)
		return
	}
	sign, err := unseal.KeyFromScalar(keys.Signing)
	if err != nil {
		refuse(err)
		return
	}
	now := time.Now()
	g, err := sealed.NewGrant(sealed.GrantParams{Role: sealed.RoleReply, Recipient: m.Grant.ReplyKey, Sender: sign, Context: rev,
		Name: desc.FullName(), NotBefore: now.Add(-time.Minute), NotAfter: now.Add(10 * time.Minute)})
	if err != nil {
		refuse(err)
		return
	}
	defer g.Release()
	w.Header().Set("Content-Type", api.ContentTypeSealed)
	w.Header().Set(api.HeaderServedBy, "n1")
	w.Header().Set(api.HeaderStart, "warm")
	w.Header().Set(api.HeaderDuration, "0.001")
	http.NewResponseController(w).EnableFullDuplex()
	reply, write := handler(head, body)
	out, err := g.SealReply(flusher{w}, sealed.MessageParams{ID: m.Header.ID, Link: m.Link(), Issued: now}, reply)
	if err != nil {
		c.t.Error(err)
		return
	}
	defer out.Abort()
	if err := write(flushing{out}); err != nil {
		return // without FINAL
	}
	if err := out.Close(); err != nil {
		c.t.Log(err)
	}
}

// flusher sends every write at once.
type flusher struct{ http.ResponseWriter }

func (f flusher) Write(p []byte) (int, error) {
	n, err := f.ResponseWriter.Write(p)
	f.ResponseWriter.(http.Flusher).Flush()
	return n, err
}

// flushing makes every write a record.
type flushing struct{ w *sealed.Writer }

func (f flushing) Write(p []byte) (int, error) {
	n, err := f.w.Write(p)
	if err != nil {
		return n, err
	}
	return n, f.w.Flush()
}

// Echo answers with head and body of the request.
func Echo(h sealed.RequestHead, body io.Reader) (sealed.ReplyHead, func(io.Writer) error) {
	reply := sealed.ReplyHead{Status: 201, Header: []sealed.Field{{Name: "x-line", Value: fmt.Sprintf("%s %s?%s", h.Method, h.Path, h.Query)}}}
	for _, f := range h.Header {
		reply.Header = append(reply.Header, sealed.Field{Name: "echo-" + f.Name, Value: f.Value})
	}
	return reply, func(w io.Writer) error {
		_, err := io.CopyBuffer(w, struct{ io.Reader }{body}, make([]byte, 32<<10))
		return err
	}
}
