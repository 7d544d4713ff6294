// Package ask is how a coordinator asks the manifest opener: the protocol on its
// unix socket, and a client. It links no private-key code.
//
// What it promises: every call ends with its context or its deadline; nothing
// secret is logged; the client speaks to a process of the expected user alone.
// It does not say whether an initiator's wish can be met.
//
// A frame is a u32 big-endian length and as many bytes of deterministic CBOR.
// One request is answered by one reply, in order, on one connection.
package ask

import (
	"encoding/binary"
	"fmt"
	"io"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/manifest"
	"github.com/faasd-sec/faasd-sec/manifest/internal/strict"
	"github.com/faasd-sec/faasd-sec/sealed"
)

// Sizes in bytes.
const (
	MaxSealed = manifest.MaxEncoded + sealed.MaxPeek + 64 // a sealed manifest or bounds document
	MaxBlob   = manifest.MaxEncoded + 128                 // bounds as the opener gives them back
	MaxFrame  = MaxSealed + MaxBlob + 1024                // request or reply without its length
	frameHead = 4
)

// Version of the protocol.
const Version = 1

// Call says what is asked.
type Call uint8

// The calls.
const (
	CallInfo    Call = 1
	CallDeposit Call = 2
	CallOpen    Call = 3
)

// Request is one question.
type Request struct {
	Version  uint8              `cbor:"1,keyasint"`
	Call     Call               `cbor:"2,keyasint"`
	Function string             `cbor:"3,keyasint"`
	Revision sealed.Digest      `cbor:"4,keyasint"`
	Owner    sealed.Fingerprint `cbor:"5,keyasint"`
	Blob     []byte             `cbor:"6,keyasint"` // empty for none
	Sealed   []byte             `cbor:"7,keyasint"` // empty for none
}

// Reply is its answer. Code is empty where the call succeeded.
type Reply struct {
	Version uint8              `cbor:"1,keyasint"`
	Code    string             `cbor:"2,keyasint"`
	Message string             `cbor:"3,keyasint"`
	Field   string             `cbor:"4,keyasint"`
	Remedy  string             `cbor:"5,keyasint"`
	Body    []byte             `cbor:"6,keyasint"` // the blob, or the encoded merged manifest
	Sender  sealed.Fingerprint `cbor:"7,keyasint"` // who sealed the manifest; zero where none was given
	Keys    []Key              `cbor:"8,keyasint"`
}

// Key is one of the cluster's manifest keys.
type Key = manifest.Key

// EncodeRequest returns a whole frame.
func EncodeRequest(r *Request) ([]byte, error) { return frame(r, len(r.Blob)+len(r.Sealed)+256) }

// EncodeReply returns a whole frame: wipe it once it is written.
func EncodeReply(r *Reply) ([]byte, error) { return frame(r, len(r.Body)+1024) }

// DecodeRequest reads the body of a frame strictly; byte strings are copies.
func DecodeRequest(b []byte) (*Request, error) {
	r := new(Request)
	if err := strict.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("manifest opener: request: %w", err)
	}
	if r.Version != Version {
		return nil, fmt.Errorf("manifest opener: request: version %d is unknown, want %d", r.Version, Version)
	}
	return r, nil
}

// DecodeReply reads the body of a frame strictly.
func DecodeReply(b []byte) (*Reply, error) {
	r := new(Reply)
	if err := strict.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("manifest opener: reply: %w", err)
	}
	if r.Version != Version {
		return nil, fmt.Errorf("manifest opener: reply: version %d is unknown, want %d", r.Version, Version)
	}
	return r, nil
}

// Failure turns an error into a reply. What is no *api.Error becomes an internal
// one without its text.
func Failure(err error) *Reply {
	p := api.ProblemOf(err, "")
	return &Reply{Version: Version, Code: string(p.Code), Message: p.Detail, Field: p.Field, Remedy: p.Remedy}
}

// Err is the failure that the reply tells of, or nil.
func (r *Reply) Err() error {
	if r.Code == "" {
		return nil
	}
	return &api.Error{Code: api.Code(r.Code), Message: r.Message, Field: r.Field, Remedy: r.Remedy}
}

func frame(v any, hint int) ([]byte, error) {
	body, err := strict.Marshal(v, hint)
	if err != nil {
		return nil, fmt.Errorf("manifest opener: %w", err)
	}
	defer clear(body)
	if len(body) > MaxFrame {
		return nil, api.Invalid("frame", "send less", fmt.Sprintf("%d bytes, at most %d", len(body), MaxFrame))
	}
	out := make([]byte, frameHead, frameHead+len(body))
	binary.BigEndian.PutUint32(out, uint32(len(body)))
	return append(out, body...), nil
}

// ReadFrame reads one frame's body into buf, which has MaxFrame bytes: a length
// above that is refused before anything is read.
func ReadFrame(r io.Reader, buf []byte) ([]byte, error) {
	n, err := ReadLength(r)
	if err != nil {
		return nil, err
	}
	if _, err := io.ReadFull(r, buf[:n]); err != nil {
		return nil, fmt.Errorf("frame: %w", err)
	}
	return buf[:n], nil
}

// ReadLength reads a frame's length and checks it. It is io.EOF between frames.
func ReadLength(r io.Reader) (int, error) {
	var head [frameHead]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n == 0 || n > MaxFrame {
		return 0, fmt.Errorf("frame of %d bytes, want 1..%d", n, MaxFrame)
	}
	return int(n), nil
}
