package sealed

import (
	"strconv"
	"time"
)

// SuiteSM is the one suite there is: SM2, SM3, SM4-GCM, HKDF-SM3.
const SuiteSM uint16 = 0x0001

// Limits of the format.
const (
	MaxRecord      = 65536            // bytes of plaintext in one record
	MaxRecords     = 1 << 24          // records in one message
	MaxHead        = 60000            // bytes of a request's or reply's encoded head
	MaxGrantWindow = time.Hour        // of a grant of roles 1, 2, 4, 5 and 6
	MaxLife        = 5 * time.Minute  // of a message, unless it is queued
	MaxQueuedLife  = 24 * time.Hour   // of a queued message, whatever the descriptor says
	MaxClockLead   = 30 * time.Second // by which a sender's clock may be ahead
	DefaultLife    = 2 * time.Minute  // of a message when MessageParams.Life is zero
)

// Role says what an envelope carries, and in which direction.
type Role uint8

// The roles.
const (
	RoleRequest  Role = 1 // caller to function
	RoleReply    Role = 2 // function to caller; opens for its request alone
	RoleBundle   Role = 3 // owner to function: code, environment, secrets
	RoleManifest Role = 4 // owner to placement: what a function needs
	RoleDeposit  Role = 5 // owner to key broker: a function's private keys
	RoleRelease  Role = 6 // key broker to a sandbox: a function's private keys
	RoleLog      Role = 7 // function to owner: its log
)

// Valid reports whether r is one of the seven roles.
func (r Role) Valid() bool { return r >= RoleRequest && r <= RoleLog }

// ShortWindow reports whether a grant of this role lives at most MaxGrantWindow.
func (r Role) ShortWindow() bool { return r.Valid() && r != RoleBundle && r != RoleLog }

// Timed reports whether a message of this role opens only while it is current;
// the others (replies, bundles, logs) open at any time.
func (r Role) Timed() bool {
	return r == RoleRequest || r == RoleManifest || r == RoleDeposit || r == RoleRelease
}

// Once reports whether a message of this role opens once.
func (r Role) Once() bool { return r == RoleRequest || r == RoleDeposit || r == RoleRelease }

// HasContext reports whether a grant of this role names a revision.
func (r Role) HasContext() bool { return r.Valid() && r != RoleManifest && r != RoleDeposit }

// HasHead reports whether a body of this role begins with a head.
func (r Role) HasHead() bool { return r == RoleRequest || r == RoleReply }

// String names the role.
func (r Role) String() string {
	names := [...]string{"request", "reply", "bundle", "manifest", "deposit", "release", "log"}
	if !r.Valid() {
		return "role " + strconv.Itoa(int(r))
	}
	return names[r-1]
}

// Flags of a request's message header; zero in every other role.
type Flags uint8

// The flags. Other bits are refused.
const (
	FlagEarlyInput Flags = 1 << 0 // the input may be handed on before its end was authenticated
	FlagQueued     Flags = 1 << 1 // may wait in a queue as long as the descriptor allows

	knownFlags = FlagEarlyInput | FlagQueued
)
