package queue

import (
	"time"

	"github.com/faasd-sec/faasd-sec/api"
)

// Call is one asynchronous invocation as it is stored. It holds what operators
// may see and, for plain functions, what their callers sent.
type Call struct {
	ID       string           `json:"id"`
	Function api.FunctionName `json:"function"`
	Owner    string           `json:"owner"`            // fingerprint of the function's owner, hex
	Sender   string           `json:"sender,omitempty"` // fingerprint of who sealed it, hex; "" for a plain one
	By       string           `json:"by"`               // the coordinator that accepted it
	Arrived  int64            `json:"arrived"`          // unix milliseconds
	Expires  int64            `json:"expires"`          // unix milliseconds: not begun by then, it is dead
	Priority int              `json:"priority,omitempty"`
	Manifest []byte           `json:"manifest,omitempty"` // sealed; its task's id is the call's

	Body    Body                `json:"body"`
	Method  string              `json:"method,omitempty"` // of plain functions, like the three below
	Path    string              `json:"path,omitempty"`
	Query   string              `json:"query,omitempty"`
	Header  map[string][]string `json:"header,omitempty"`
	Scope   string              `json:"scope,omitempty"` // hash under which its idempotency key is stored
	Retry   Retry               `json:"retry"`
	Deliver Deliver             `json:"deliver"`

	Attempts int      `json:"attempts,omitempty"`  // begun
	NotUntil int64    `json:"not_until,omitempty"` // unix milliseconds of the next attempt
	Last     *Failure `json:"last,omitempty"`      // of the last attempt
	version  int64    // of the record in the store
	leased   int64    // by the view: the fence of who runs it, 0 for nobody
	leasedBy string
}

// Body says where a body is.
type Body struct {
	Type string `json:"type,omitempty"` // content type
	Size int64  `json:"size"`
	Blob string `json:"blob,omitempty"` // its digest, where it is in the blob store
}

// Retry is a call's policy.
type Retry struct {
	Attempts  int   `json:"attempts"`        // at most, 1 or more
	Codes     []int `json:"codes,omitempty"` // HTTP statuses of a plain function that are tried again
	MinWaitMs int64 `json:"min_wait_ms"`     // the first pause's bound; it doubles up to MaxWaitMs
	MaxWaitMs int64 `json:"max_wait_ms"`
}

// Deliver says what becomes of a result.
type Deliver struct {
	Callback string `json:"callback,omitempty"` // URL
	Events   string `json:"events,omitempty"`   // as CloudEvents: "structured" or "binary"
	Once     bool   `json:"once,omitempty"`     // forgotten when it was read
}

// Failure is why an attempt or a call failed.
type Failure struct {
	Code    api.Code `json:"code"`
	Message string   `json:"message,omitempty"`
	At      int64    `json:"at"` // unix milliseconds
}

// Result is how a call ended. Exactly one is stored of each.
type Result struct {
	ID         string              `json:"id"`
	Function   api.FunctionName    `json:"function"`
	Owner      string              `json:"owner"`
	Sender     string              `json:"sender,omitempty"`
	Status     int                 `json:"status"` // of the function; of a sealed one 200, its own is sealed
	Header     map[string][]string `json:"header,omitempty"`
	Body       Body                `json:"body"`
	Failed     *Failure            `json:"failed,omitempty"` // cancelled
	Node       string              `json:"node,omitempty"`
	Start      string              `json:"start,omitempty"`
	Attempts   int                 `json:"attempts"`
	Arrived    int64               `json:"arrived"`     // unix milliseconds
	Ended      int64               `json:"ended"`       // unix milliseconds
	DurationMs float64             `json:"duration_ms"` // of the last attempt
	Until      int64               `json:"until"`       // unix milliseconds; then it is forgotten
	Fence      int64               `json:"fence"`       // of the lease under which it was written
	Deliver    Deliver             `json:"deliver"`
}

// Dead is a call that was given up.
type Dead struct {
	Call
	Failure Failure `json:"failure"`
	Until   int64   `json:"until"` // unix milliseconds; then it is forgotten
}

// Delivery is a callback that is owed.
type Delivery struct {
	ID       string           `json:"id"` // of the call
	Function api.FunctionName `json:"function"`
	Owner    string           `json:"owner"`
	By       string           `json:"by"`
	Until    int64            `json:"until"` // unix milliseconds; then it is given up
	Attempts int              `json:"attempts,omitempty"`
	NotUntil int64            `json:"not_until,omitempty"`
	Dead     bool             `json:"dead,omitempty"` // of a dead letter, not of a result
	version  int64
	leased   int64
	leasedBy string
}

// expired reports whether it is too late to begin a call.
func (c *Call) expired(now time.Time) bool { return c.Expires != 0 && now.UnixMilli() >= c.Expires }

// Running reports whether a coordinator has the call's lease.
func (c *Call) Running() bool { return c.leased != 0 }
