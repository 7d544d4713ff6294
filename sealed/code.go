package sealed

import (
	"errors"
)

// Code says why an envelope was refused. The values are part of the format
// (docs/envelope.md, "Opening") and travel in problem documents, so they never
// change. A Code is an error of its own, for errors.Is(err, CodeWindow).
type Code string

// The codes, in the order in which an opener checks.
const (
	CodeFormat        Code = "format"         // not a well-formed envelope of the expected role
	CodeUnknownKey    Code = "unknown_key"    // sealed to no live key of the reader
	CodeWrongFunction Code = "wrong_function" // concerns another function
	CodeStaleRevision Code = "stale_revision" // concerns another revision: fetch the descriptor, seal again
	CodeWindow        Code = "window"         // outside the grant's or the message's time
	CodeSignature     Code = "signature"      // the grant's signature is not the sender's
	CodeSender        Code = "sender"         // the sender may not send this
	CodeCommitment    Code = "commitment"     // the seed does not decrypt, or is not the one committed to
	CodeReplay        Code = "replay"         // seen before, or no room to remember it
	CodeRecord        Code = "record"         // a record is forged, of a forbidden length, or one too many
	CodeTruncated     Code = "truncated"      // ends before its final record, or goes on after it
)

// Error implements error with the code alone.
func (c Code) Error() string { return "sealed: " + string(c) }

// Error is a refusal. Detail tells a person which rule was broken; it names
// fields and numbers that travel in clear and never holds a secret.
type Error struct {
	Code   Code
	Detail string
}

// Error implements error.
func (e *Error) Error() string {
	if e.Detail == "" {
		return e.Code.Error()
	}
	return e.Code.Error() + ": " + e.Detail
}

// Unwrap returns the code, so that errors.Is(err, CodeReplay) holds.
func (e *Error) Unwrap() error { return e.Code }

// CodeOf returns the code in err's chain, and "" when err is not a refusal.
func CodeOf(err error) Code {
	if err == nil {
		return "" // the usual case, without the allocation below
	}
	var c Code
	if errors.As(err, &c) {
		return c
	}
	return ""
}

func refuse(c Code, detail string) error { return &Error{Code: c, Detail: detail} }
