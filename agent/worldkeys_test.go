package agent

import (
	"bytes"
	"io"
	"net/http"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/sealed/unseal"
)

// sealRelease is the key broker's part.
func (w *world) sealRelease(statement []byte) ([]byte, error) {
	var s api.Statement
	if err := cbor.Unmarshal(statement, &s); err != nil {
		return nil, err
	}
	rel := &unseal.Release{Owner: w.owner.SigningKey(), Signing: scalar(w.function.Signer()), Decryption: [][]byte{scalar(w.function.Decrypter())}}
	if w.release != nil {
		w.release(rel)
	}
	body, err := unseal.EncodeRelease(rel)
	name := w.desc.FullName()
	if w.openly != nil {
		body, err = cbor.Marshal(w.secrets)
		name = string(w.openly.Function.Name)
	}
	if err != nil {
		return nil, err
	}
	now := time.Now()
	g, err := sealed.NewGrant(sealed.GrantParams{Role: sealed.RoleRelease, Recipient: sealed.PublicKey(s.Ephemeral),
		Sender: w.broker.Signer(), Context: w.revision, Name: name, NotBefore: now.Add(-time.Minute), NotAfter: now.Add(5 * time.Minute)})
	if err != nil {
		return nil, err
	}
	defer g.Release()
	return g.Append(nil, sealed.MessageParams{Issued: now}, body)
}

func scalar(k any) []byte { return k.(*unseal.PrivateKey).Scalar() }

// openLog is the owner's part.
func (w *world) openLog(b []byte) ([]logRecord, error) {
	keys, err := unseal.NewKeySet(unseal.Key{Decrypter: w.owner.Decrypter()})
	if err != nil {
		return nil, err
	}
	o, err := unseal.NewOpener(unseal.Config{Keys: keys})
	if err != nil {
		return nil, err
	}
	m, err := o.Open(bytes.NewReader(b), unseal.Expect{Role: sealed.RoleLog, Name: w.desc.FullName(),
		Context: w.revision, Senders: unseal.Only(w.desc.SigningKey)})
	if err != nil {
		return nil, err
	}
	defer m.Close()
	body, err := m.ReadAll(1 << 20)
	if err != nil {
		return nil, err
	}
	lines, err := sealed.ParseLog(body)
	var records []logRecord
	for _, l := range lines {
		records = append(records, logRecord{Time: int64(l.Time), Stream: uint(l.Stream), Text: string(l.Text)})
	}
	return records, err
}

func (w *world) putBundle(b []byte) error {
	req, err := http.NewRequest(http.MethodPut, "http://agent"+api.AgentPathBundle, bytes.NewReader(b))
	if err != nil {
		return err
	}
	resp, err := w.http.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusNoContent {
		return api.ParseProblem(resp.StatusCode, body)
	}
	return nil
}
