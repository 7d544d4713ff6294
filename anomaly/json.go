package anomaly

import (
	"encoding/json"
	"fmt"
	"time"
)

// timeLayout has milliseconds, always three digits.
const timeLayout = "2006-01-02T15:04:05.000Z"

// Time is when it happened by the machine's clock.
func (e *Event) Time() time.Time { return time.UnixMilli(e.TimeMs).UTC() }

// MarshalJSON is how events are printed, one object to a line: field names are
// stable.
func (e Event) MarshalJSON() ([]byte, error) {
	v := struct {
		Seq      uint64           `json:"seq"`
		Time     string           `json:"time"`
		BootMs   int64            `json:"boot_ms"`
		Node     string           `json:"node"`
		Kind     string           `json:"kind"`
		Code     string           `json:"code,omitempty"`
		Function string           `json:"function,omitempty"`
		Revision string           `json:"revision,omitempty"`
		Sandbox  string           `json:"sandbox,omitempty"`
		Numbers  map[string]int64 `json:"numbers,omitempty"`
	}{e.Seq, e.Time().Format(timeLayout), e.BootMs, e.Node, e.Kind.String(), e.Code, e.Function, "", e.Sandbox, e.Numbers}
	if !e.Revision.IsZero() {
		v.Revision = e.Revision.String()
	}
	b, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("anomaly: encode an event: %w", err)
	}
	return b, nil
}
