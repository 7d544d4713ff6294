package anomaly

import (
	"slices"
	"strings"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed"
)

// Bounds of an event's fields, in bytes, and of its numbers. They make maxBody.
const (
	MaxNode       = 63
	MaxFunction   = 127 // two labels of 63 and a dot
	MaxSandbox    = 64
	MaxCode       = 32
	MaxNumbers    = 12
	MaxNumberName = 24
)

// Event is one thing that went wrong. It holds no text of a function or of a
// caller: every field is checked for length and characters, and codes and names
// of numbers are from closed lists.
type Event struct {
	Seq    uint64 // set by the log: 1 for its first event, and one more for each
	TimeMs int64  // set by the log: unix milliseconds
	BootMs int64  // set by the log: milliseconds since the machine booted, sleep included

	Kind     Kind
	Node     string           // the node it is about; the log's own where it is empty
	Function string           // full name, "function.namespace", or empty
	Revision sealed.Digest    // or zero
	Sandbox  string           // the id of a sandbox or task, the mark of a schedule, or empty
	Code     string           // which resource, check, part or api.Code; or empty
	Numbers  map[string]int64 // see kind.go for the names
}

// Validate checks what a producer set. The error is an *api.Error that names the
// field and does not quote its value: a value that does not pass may be anything.
func (e *Event) Validate() error {
	if field, remedy := e.fault(); field != "" {
		return api.Invalid(field, remedy, "an anomaly event of kind "+e.Kind.String()+" cannot have this value")
	}
	return nil
}

// fault names the first field that does not pass.
func (e *Event) fault() (field, remedy string) {
	s := specOf(e.Kind)
	if s == nil || e.Kind.own() {
		return "kind", "use a kind for producers"
	}
	if field, remedy = e.malformed(); field != "" {
		return field, remedy
	}
	if !s.takes(e.Code) {
		return "code", "use one of the kind's codes, or add it to the list in package anomaly"
	}
	for name := range e.Numbers {
		if !slices.Contains(numberNames, name) {
			return "numbers", "use a known name, or add it to the list in package anomaly"
		}
	}
	for _, name := range s.needs {
		if _, ok := e.Numbers[name]; !ok {
			return "numbers", "give " + strings.Join(s.needs, ", ")
		}
	}
	return "", ""
}

// malformed checks the form alone: what readers hold every event to, also those
// of a release that knows more words.
func (e *Event) malformed() (field, remedy string) {
	const name = "use a-z, 0-9, '-' and '.', beginning and ending with a letter or digit"
	switch {
	case e.Node != "" && !isName(e.Node, MaxNode):
		return "node", name
	case e.Function != "" && (!isName(e.Function, MaxFunction) || strings.Count(e.Function, ".") != 1):
		return "function", "give the full name, function.namespace"
	case !only(e.Sandbox, MaxSandbox, "-_."):
		return "sandbox", "use at most 64 letters, digits, '-', '_' and '.'"
	case !isWord(e.Code, MaxCode, true):
		return "code", "use at most 32 of a-z, 0-9, '-' and '_'"
	case len(e.Numbers) > MaxNumbers:
		return "numbers", "give at most 12"
	}
	for n := range e.Numbers {
		if n == "" || !isWord(n, MaxNumberName, false) {
			return "numbers", "name them with at most 24 of a-z, 0-9 and '_'"
		}
	}
	return "", ""
}

// isName is the form of node ids and function names; it is never empty.
func isName(s string, limit int) bool {
	if s == "" || len(s) > limit || strings.Contains(s, "..") {
		return false
	}
	for i := range len(s) {
		inner := (s[i] == '-' || s[i] == '.') && i > 0 && i < len(s)-1
		if !lowerOrDigit(s[i]) && !inner {
			return false
		}
	}
	return true
}

func isWord(s string, limit int, dash bool) bool {
	for i := range len(s) {
		if !lowerOrDigit(s[i]) && s[i] != '_' && (s[i] != '-' || !dash) {
			return false
		}
	}
	return len(s) <= limit
}

func only(s string, limit int, more string) bool {
	for i := range len(s) {
		if !lowerOrDigit(s[i]) && (s[i] < 'A' || s[i] > 'Z') && strings.IndexByte(more, s[i]) < 0 {
			return false
		}
	}
	return len(s) <= limit
}

func lowerOrDigit(c byte) bool { return c >= 'a' && c <= 'z' || c >= '0' && c <= '9' }
