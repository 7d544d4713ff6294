package api

// GatewayPathSchedules is where calls that were sealed ahead are kept: GET
// ?function=NAME, signed: []Schedule; GET and DELETE /ID, signed; PUT
// /ID?function=NAME&mode=MODE, signed, with ContentTypeTicks.
const GatewayPathSchedules = "/v1/schedules"

// ContentTypeTicks is of sealed messages, one for each tick, the earliest first. Each
// comes after its length, a big-endian uint32; it is issued at its tick.
const ContentTypeTicks = "application/vnd.faasd-sec.ticks"

// QueryMode says what becomes of ticks that are uploaded.
const (
	QueryMode     = "mode"
	TicksNew      = "new"     // they are a schedule that there is not yet
	TicksAppend   = "append"  // they come after those that are there
	TicksReplace  = "replace" // they take the place of those that have not been made
	MaxTickBytes  = 64 << 10  // of one sealed message
	MaxScheduleID = 64        // letters, digits and '-'
)

// Schedule is a row of calls that were sealed ahead, as its maker and its function's
// owner may see it.
type Schedule struct {
	ID       string       `json:"id"`
	Function FunctionName `json:"function"`
	Maker    string       `json:"maker"`          // fingerprint of who sealed it, hex
	Next     int64        `json:"next,omitempty"` // unix milliseconds of the next tick; 0: it ran out
	Until    int64        `json:"until"`          // unix milliseconds of the last tick that is sealed
	Last     int64        `json:"last,omitempty"` // unix milliseconds of the last tick that was looked at
	Left     int          `json:"left"`           // ticks
	Stale    int          `json:"stale"`          // of these for other revisions than the current one
	Size     int64        `json:"size"`           // bytes that are kept, about
	Made     int64        `json:"made"`           // ticks that became calls
	Missed   int64        `json:"missed"`         // ticks that nobody made within five minutes
	Refused  int64        `json:"refused"`        // ticks that could not be calls
	Code     Code         `json:"code,omitempty"` // why the last tick was refused
	Message  string       `json:"message,omitempty"`
}
