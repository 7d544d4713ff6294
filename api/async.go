package api

// Headers of asynchronous invocations.
const (
	HeaderCallback       = "X-Callback-Url"         // from a caller: where the result is to be posted
	HeaderStartTime      = "X-Start-Time"           // unix nanoseconds at which the call arrived
	HeaderIdempotency    = "Idempotency-Key"        // from a caller: the same key, for one function and caller, is the same call
	HeaderOnce           = "X-Faasd-Sec-Once"       // from a caller: "1" forgets the result when it has been read
	HeaderEvents         = "X-Faasd-Sec-Events"     // from a caller: "structured" or "binary": callback and result, or a plain function's reply, as CloudEvents
	HeaderFunctionStatus = "X-Function-Status"      // of a result: the function's status, as far as it is not sealed
	HeaderFunctionName   = "X-Function-Name"        // of a result
	HeaderAttempts       = "X-Faasd-Sec-Attempts"   // of a result: how often it was begun
	HeaderSignature      = "X-Faasd-Sec-Signature"  // of a callback: docs/async.md
	HeaderTimestamp      = "X-Faasd-Sec-Timestamp"  // of a callback: unix seconds, signed
	HeaderSignatureKey   = "X-Faasd-Sec-Signed-By"  // of a callback: fingerprint of the key
	HeaderState          = "X-Faasd-Sec-Call-State" // of a result that is not there yet: "waiting" or "running"
)

// Paths of asynchronous invocations.
const (
	GatewayPathAsync       = "/async-function/" // POST NAME[.NAMESPACE][/path]; DELETE CALL-ID
	GatewayPathResults     = "/v1/results/"     // GET CALL-ID; DELETE CALL-ID, signed
	GatewayPathAsyncCalls  = "/v1/async"        // GET ?function=NAME, signed: []AsyncCall; GET /ID, signed
	GatewayPathDead        = "/v1/async/dead"   // GET ?function=NAME&after=ID&limit=N, signed: []AsyncCall; GET /ID; POST /ID/replay; DELETE /ID
	GatewayPathCallbackKey = "/v1/callback-key" // GET CallbackKeys
)

// States of an AsyncCall.
const (
	AsyncWaiting   = "waiting" // for its first or next attempt
	AsyncRunning   = "running"
	AsyncDone      = "done" // its result is there
	AsyncCancelled = "cancelled"
	AsyncDead      = "dead" // it was given up
)

// AsyncCall is one asynchronous invocation as its function's owner and its sender
// may see it.
type AsyncCall struct {
	ID       string       `json:"id"`
	Function FunctionName `json:"function"`
	State    string       `json:"state"`
	Sender   string       `json:"sender,omitempty"` // fingerprint, hex; "" for a plain function's
	Arrived  int64        `json:"arrived"`          // unix milliseconds
	Expires  int64        `json:"expires,omitempty"`
	Priority int          `json:"priority,omitempty"`
	Size     int64        `json:"size"` // of the request's body, bytes
	Attempts int          `json:"attempts"`
	Next     int64        `json:"next,omitempty"`  // unix milliseconds of the next attempt
	Ended    int64        `json:"ended,omitempty"` // unix milliseconds
	Until    int64        `json:"until,omitempty"` // unix milliseconds; then it is forgotten
	Status   int          `json:"status,omitempty"`
	Code     Code         `json:"code,omitempty"` // why the last attempt failed
	Message  string       `json:"message,omitempty"`
}

// CallbackKeys are the keys with which the cluster's coordinators sign callbacks.
type CallbackKeys struct {
	Keys []CallbackKey `json:"keys"`
}

// CallbackKey is one of them.
type CallbackKey struct {
	Fingerprint string `json:"fingerprint"` // hex, as in HeaderSignatureKey
	Public      string `json:"public"`      // SM2 point, hex
}
