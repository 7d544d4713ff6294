package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
)

// Code names a kind of failure. Codes are stable: clients branch on them.
type Code string

// The codes of the platform. The codes of the sealed envelope (format,
// unknown_key, wrong_function, stale_revision, window, signature, sender,
// commitment, replay, record, truncated) are added by the agent under the same
// type; see docs/envelope.md.
const (
	CodeInvalid          Code = "invalid"            // a value does not parse or is out of range
	CodeNotFound         Code = "not_found"          // no such function, node or key
	CodeConflict         Code = "conflict"           // the state changed meanwhile, or the name is taken
	CodeUnauthorized     Code = "unauthorized"       // no or a bad proof of identity
	CodeForbidden        Code = "forbidden"          // a known identity that may not do this
	CodeMediaType        Code = "media_type"         // the content type is not the sealed one
	CodeTooLarge         Code = "too_large"          // a header or body is over its limit
	CodeMethod           Code = "method_not_allowed" // the method is not served here
	CodeStaleRevision    Code = "stale_revision"     // sealed for an older revision: fetch the descriptor, seal again
	CodeMisdirected      Code = "misdirected"        // this gateway does not host the function: ask the coordinator
	CodeBusy             Code = "busy"               // queue or slots are full; retry later
	CodeNoRoom           Code = "no_room"            // no node has the resources
	CodeDraining         Code = "draining"           // the node takes no new work
	CodeUnknownRevision  Code = "unknown_revision"   // the node was not told this revision yet
	CodeStartFailed      Code = "start_failed"       // the sandbox did not come up
	CodeKeyRefused       Code = "key_refused"        // the key broker did not release the keys
	CodeDeadline         Code = "deadline"           // time ran out
	CodeOOMKilled        Code = "oom_killed"         // the function passed its memory limit and was killed
	CodeFunctionCrashed  Code = "function_crashed"   // the function's process ended
	CodeFunctionNotReady Code = "function_not_ready" // the function did not begin to serve in time
	CodeFunctionIO       Code = "function_io"        // the function broke its side of the exchange
	CodeNodeLost         Code = "node_lost"          // the connection to the node broke; the outcome is unknown
	CodeCallerGone       Code = "caller_gone"        // in metrics: the caller left before it had the reply
	CodeUnavailable      Code = "unavailable"        // a part of the platform is down
	CodeReplay           Code = "replay"             // this message was delivered before
	CodeAgentRefused     Code = "agent_refused"      // in metrics: the agent's own code went to the caller
	CodeInternal         Code = "internal"           // a defect of ours; the log has more
)

// CodeExceedsBounds refuses a task that asks for more than its function's owner
// allows; the field is named.
const CodeExceedsBounds Code = "manifest_exceeds_bounds"

// Codes of tasks.
const (
	CodeFunctionFailed Code = "function_failed" // a plain function answered with a status that is tried again
	CodeDuplicateTask  Code = "duplicate_task"  // a task of this id was accepted before: it is not run twice
	CodeCancelled      Code = "cancelled"       // who may cancel a waiting task did
)

// CodeSecondCheck is a node's word that what it promised did not hold any more
// right before the start: no byte was opened, and another node may do better.
const CodeSecondCheck Code = "second_check_failed"

// statusOf is the one place where a code becomes an HTTP status.
func statusOf(c Code) int {
	switch c {
	case CodeInvalid, "format", "record", "truncated", "window":
		return http.StatusBadRequest
	case CodeUnauthorized, "signature":
		return http.StatusUnauthorized
	case CodeForbidden, "sender", CodeKeyRefused, CodeExceedsBounds:
		return http.StatusForbidden
	case CodeNotFound, "wrong_function":
		return http.StatusNotFound
	case CodeMethod:
		return http.StatusMethodNotAllowed
	case CodeConflict, CodeStaleRevision, CodeReplay, CodeDuplicateTask, CodeCancelled, "unknown_key", "commitment":
		return http.StatusConflict
	case CodeMisdirected:
		return http.StatusMisdirectedRequest
	case CodeMediaType:
		return http.StatusUnsupportedMediaType
	case CodeTooLarge:
		return http.StatusRequestEntityTooLarge
	case CodeBusy:
		return http.StatusTooManyRequests
	case CodeNoRoom, CodeDraining, CodeUnknownRevision, CodeStartFailed, CodeSecondCheck, CodeFunctionNotReady, CodeUnavailable:
		return http.StatusServiceUnavailable
	case CodeDeadline:
		return http.StatusGatewayTimeout
	case CodeCallerGone:
		return 499 // nobody reads it; the number that logs of other servers have for this
	case CodeNodeLost, CodeAgentRefused, CodeFunctionFailed, CodeFunctionCrashed, CodeFunctionIO:
		return http.StatusBadGateway
	default: // CodeOOMKilled, CodeInternal and what is unknown
		return http.StatusInternalServerError
	}
}

// Error is an error that survives the wire. Only Code, Message, Field and
// Remedy are sent; Err stays in the process that made it. Neither may hold
// payload, key or secret.
type Error struct {
	Code    Code   // what kind of failure; stable
	Message string // what happened, for a person
	Field   string // which input is at fault, empty if none
	Remedy  string // what to do about it, empty if unknown
	Err     error  // the cause, never sent
}

// Error is "code: field: message (remedy): cause", leaving out what is empty.
func (e *Error) Error() string {
	s := string(e.Code)
	if e.Field != "" {
		s += ": " + e.Field
	}
	if e.Message != "" {
		s += ": " + e.Message
	}
	if e.Remedy != "" {
		s += " (" + e.Remedy + ")"
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Err }

// Is reports whether target is an *Error with the same code, so that callers
// can write errors.Is(err, &api.Error{Code: api.CodeNotFound}).
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Code == e.Code
}

// Label is the code as a metric's label: codes that this release does not know,
// which another process may send, become "other", so that their number stays
// bounded.
func (c Code) Label() string {
	if c == CodeInternal || c == CodeOOMKilled || statusOf(c) != http.StatusInternalServerError {
		return string(c)
	}
	return "other"
}

// Status is the HTTP status that belongs to the error's code.
func (e *Error) Status() int { return statusOf(e.Code) }

// Errorf makes an *Error; a %w in format becomes its cause as well.
func Errorf(code Code, format string, args ...any) *Error {
	wrapped := fmt.Errorf(format, args...)
	return &Error{Code: code, Message: wrapped.Error()}
}

// Wrap makes an *Error of code whose cause is err; message is what is sent.
func Wrap(code Code, err error, message string) *Error {
	return &Error{Code: code, Message: message, Err: err}
}

// Invalid makes a CodeInvalid error for one input field.
func Invalid(field, remedy, message string) *Error {
	return &Error{Code: CodeInvalid, Field: field, Message: message, Remedy: remedy}
}

// CodeOf is the code of the first *Error in err's chain, CodeInternal if there
// is none and "" for nil.
func CodeOf(err error) Code {
	if err == nil {
		return ""
	}
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return CodeInternal
}

// Problem is the JSON body of every error reply, after RFC 9457 (Problem
// Details), content type ContentTypeProblem.
type Problem struct {
	Type   string `json:"type"`             // "urn:faasd-sec:error:" + code
	Title  string `json:"title"`            // the HTTP status in words
	Status int    `json:"status"`           // the HTTP status
	Code   Code   `json:"code"`             // stable
	Detail string `json:"detail,omitempty"` // what happened
	Field  string `json:"field,omitempty"`  // which input
	Remedy string `json:"remedy,omitempty"` // what to do
	CallID string `json:"call_id,omitempty"`
}

// ProblemOf turns any error into what is sent of it. An error that is not an
// *Error becomes CodeInternal with no detail: its text was not meant to leave.
func ProblemOf(err error, callID string) Problem {
	var e *Error
	if !errors.As(err, &e) {
		e = &Error{Code: CodeInternal, Message: "internal error; the daemon's log has the call id"}
	}
	return Problem{
		Type: "urn:faasd-sec:error:" + string(e.Code), Title: http.StatusText(e.Status()), Status: e.Status(),
		Code: e.Code, Detail: e.Message, Field: e.Field, Remedy: e.Remedy, CallID: callID,
	}
}

// ParseProblem reads a problem body back into an *Error. A body that is none
// gives an error of CodeUnavailable that quotes the status only.
func ParseProblem(status int, body []byte) *Error {
	var p Problem
	if err := json.Unmarshal(body, &p); err != nil || p.Code == "" {
		return Errorf(CodeUnavailable, "HTTP status %d without a problem description", status)
	}
	return &Error{Code: p.Code, Message: p.Detail, Field: p.Field, Remedy: p.Remedy}
}
