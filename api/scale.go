package api

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// By what a function's replicas are counted.
const (
	ScaleCapacity = "capacity" // invocations in flight
	ScaleRPS      = "rps"      // invocations that begin in a second
	ScaleCPU      = "cpu"      // millicores in use
)

// Scale says how many replicas, that is sandboxes bound to its revision, a
// function is to have. A function without one is served on demand: nodes make
// sandboxes as invocations come, and stop them when they are not worth their
// memory.
type Scale struct {
	Min        int        `json:"min"`            // the least while the function is not at zero, 1 or more
	Firm       bool       `json:"firm,omitempty"` // somebody asked for Min: so many are not stopped to make room for others
	Max        int        `json:"max"`            // the most, whoever asks
	Zero       bool       `json:"zero"`           // it may have none while nobody calls it
	ZeroAfter  int64      `json:"zero_ms"`        // milliseconds without a call until then
	Type       string     `json:"type"`           // ScaleCapacity, ScaleRPS or ScaleCPU
	Target     int        `json:"target"`         // of Type, in one replica
	Proportion float64    `json:"proportion"`     // of Target, that one replica is loaded to; over 0, at most 1
	DownWindow int64      `json:"down_ms"`        // milliseconds for which fewer have to do before there are fewer
	Band       *ScaleBand `json:"band,omitempty"`
}

// ScaleBand counts in steps where Scale otherwise counts what the load needs: each
// time the load is over High, Add more; where it was under Low for the whole of
// DownWindow, Remove fewer.
type ScaleBand struct {
	Low    float64 `json:"low"`    // of the target of all replicas together, 0 to 1
	High   float64 `json:"high"`   // likewise, over Low
	Add    int     `json:"add"`    // replicas
	Remove int     `json:"remove"` // replicas
}

// ScaleLabel begins the labels that ScaleOf reads.
const ScaleLabel = "com.openfaas.scale."

// maxReplicas bounds what anybody may ask for.
const maxReplicas = 10000

// DefaultScale is what is taken for what a policy leaves out. A function may go to
// zero unless it says how many it needs at the least: see ParseScale.
func DefaultScale() Scale {
	return Scale{Min: 1, Max: 20, Zero: true, ZeroAfter: (5 * time.Minute).Milliseconds(), Type: ScaleCapacity, Target: 50,
		Proportion: 0.9, DownWindow: (30 * time.Second).Milliseconds()}
}

// Pinned is the policy of a function that is to have n replicas, whatever comes.
func Pinned(n int) Scale {
	s := DefaultScale()
	s.Min, s.Max, s.Zero, s.Firm = n, n, false, true
	return s
}

// communityRate is how many invocations a second OpenFaaS's Community Edition adds
// replicas at: the rule APIHighInvocationRate of its alerts.
const communityRate = 5

// ScaleOf reads a function's policy from its labels; nil where none of them is
// about scaling. They mean what they mean to OpenFaaS: a function keeps a replica
// unless it may go to zero, a target without a type is one of invocations a second,
// and a maximum or factor without a target asks for the Community Edition's rule.
// Errors name the label.
func ScaleOf(labels map[string]string) (*Scale, error) {
	fields := map[string]string{}
	for name, value := range labels {
		if key, ok := strings.CutPrefix(name, ScaleLabel); ok {
			fields[key] = value
		}
	}
	if len(fields) == 0 {
		return nil, nil
	}
	given := func(keys ...string) bool {
		return slices.ContainsFunc(keys, func(key string) bool { _, ok := fields[key]; return ok })
	}
	if !given("type") {
		switch {
		case given("target"):
			fields["type"] = ScaleRPS
		case given("max", "factor") && !given("low", "high", "add", "remove"):
			fields["type"], fields["target"] = ScaleRPS, strconv.Itoa(communityRate)
		}
	}
	if !given("zero", "min") {
		fields["zero"] = "false"
	}
	s, err := ParseScale(fields, func(key string) string { return ScaleLabel + key })
	if err != nil {
		return nil, err
	}
	return &s, nil
}

// ScaleFields are the keys that ParseScale knows.
func ScaleFields() []string {
	return []string{"min", "max", "zero", "zero-duration", "type", "target", "target-proportion", "factor", "down.window",
		"low", "high", "add", "remove"}
}

// ParseScale reads a policy from its fields, by the names of ScaleFields. Where
// "min" is given and "zero" is not, the function keeps its minimum; where neither
// is, it may go to zero. "factor" is how many replicas a step takes, in percent of
// the maximum. field gives an error's field for a key.
func ParseScale(fields map[string]string, field func(key string) string) (Scale, error) {
	s := DefaultScale()
	p := scaleParser{fields: fields, field: field}
	for _, key := range slices.Sorted(maps.Keys(fields)) {
		if !slices.Contains(ScaleFields(), key) {
			return s, Invalid(field(key), "use one of "+strings.Join(ScaleFields(), ", "), "it is not a part of scaling")
		}
	}
	p.number("max", &s.Max, 1, maxReplicas)
	if p.number("min", &s.Min, 0, maxReplicas) {
		s.Zero, s.Firm = s.Min == 0, s.Min > 0
		s.Min = max(s.Min, 1)
		if _, given := fields["max"]; !given {
			s.Max = max(s.Max, s.Min)
		}
	}
	p.boolean("zero", &s.Zero)
	p.duration("zero-duration", &s.ZeroAfter)
	p.duration("down.window", &s.DownWindow)
	p.word("type", &s.Type, ScaleCapacity, ScaleRPS, ScaleCPU)
	p.number("target", &s.Target, 1, 1_000_000)
	p.share("target-proportion", &s.Proportion)
	p.band(&s)
	if p.err != nil {
		return s, p.err
	}
	if s.Min > s.Max {
		return s, Invalid(field("min"), "set it to at most the maximum, "+strconv.Itoa(s.Max), fmt.Sprintf("%d replicas at the least, and %d at the most", s.Min, s.Max))
	}
	if fields["min"] == "0" && !s.Zero {
		return s, Invalid(field("zero"), "leave it out, or set a minimum of 1", "a minimum of 0 replicas is given, and none is not allowed")
	}
	return s, nil
}

// Check reports what is wrong with a policy that came as a whole; field names it.
func (s *Scale) Check(field string) error {
	bad := func(name, remedy, message string) error { return Invalid(field+"."+name, remedy, message) }
	switch {
	case s.Min < 1 || s.Min > maxReplicas:
		return bad("min", fmt.Sprintf("use 1 to %d", maxReplicas), strconv.Itoa(s.Min))
	case s.Max < s.Min || s.Max > maxReplicas:
		return bad("max", fmt.Sprintf("use min to %d", maxReplicas), strconv.Itoa(s.Max))
	case s.ZeroAfter < 0 || s.DownWindow < 0:
		return bad("zero_ms or down_ms", "use 0 or more", "a negative time")
	case s.Type != ScaleCapacity && s.Type != ScaleRPS && s.Type != ScaleCPU:
		return bad("type", "use capacity, rps or cpu", strconv.Quote(s.Type))
	case s.Target < 1:
		return bad("target", "use 1 or more", strconv.Itoa(s.Target))
	case !(s.Proportion > 0 && s.Proportion <= 1):
		return bad("proportion", "use a number over 0 and at most 1", fmt.Sprint(s.Proportion))
	}
	if b := s.Band; b != nil && !(b.Low >= 0 && b.Low < b.High && b.High <= 1 && b.Add >= 0 && b.Remove >= 0) {
		return bad("band", "use low below high, both within 0 and 1, and steps of 0 or more", fmt.Sprintf("%+v", *b))
	}
	return nil
}

// scaleParser keeps the first error.
type scaleParser struct {
	fields map[string]string
	field  func(string) string
	err    error
}

// read hands on the value of a key that is given.
func (p *scaleParser) read(key, remedy string, parse func(string) bool) bool {
	v, given := p.fields[key]
	if given && p.err == nil && !parse(v) {
		p.err = Invalid(p.field(key), remedy, fmt.Sprintf("%q is not understood", v))
	}
	return given
}

func (p *scaleParser) number(key string, to *int, low, high int) bool {
	return p.read(key, fmt.Sprintf("write a number from %d to %d", low, high), func(v string) bool {
		n, err := strconv.Atoi(v)
		*to = n
		return err == nil && n >= low && n <= high && strconv.Itoa(n) == v
	})
}

func (p *scaleParser) boolean(key string, to *bool) {
	p.read(key, "write true or false", func(v string) bool {
		*to = v == "true"
		return v == "true" || v == "false"
	})
}

func (p *scaleParser) duration(key string, to *int64) {
	p.read(key, "write a time such as 90s or 15m", func(v string) bool {
		d, err := time.ParseDuration(v)
		*to = d.Milliseconds()
		return err == nil && d >= 0
	})
}

func (p *scaleParser) word(key string, to *string, words ...string) {
	p.read(key, "write one of "+strings.Join(words, ", "), func(v string) bool {
		*to = v
		return slices.Contains(words, v)
	})
}

func (p *scaleParser) share(key string, to *float64) bool {
	return p.read(key, "write a number over 0 and at most 1, such as 0.9", func(v string) bool {
		f, err := strconv.ParseFloat(v, 64)
		*to = f
		return err == nil && f > 0 && f <= 1
	})
}

// band reads the steps, if the policy counts by them.
func (p *scaleParser) band(s *Scale) {
	b := ScaleBand{Low: s.Proportion / 2, High: s.Proportion, Add: 1, Remove: 1}
	factor := 0
	byFactor := p.number("factor", &factor, 0, 100)
	if byFactor {
		b.Add = (s.Max*factor + 99) / 100
		b.Remove = b.Add
	}
	given := byFactor
	low, high := p.share("low", &b.Low), p.share("high", &b.High)
	for _, step := range []struct {
		key string
		to  *int
	}{{"add", &b.Add}, {"remove", &b.Remove}} {
		if p.number(step.key, step.to, 0, maxReplicas) {
			given = true
			if byFactor && p.err == nil {
				p.err = Invalid(p.field(step.key), "leave one of the two out", "a factor is given too")
			}
		}
	}
	if !given && !low && !high {
		return
	}
	if p.err == nil && b.Low >= b.High {
		p.err = Invalid(p.field("low"), "set it below high", fmt.Sprintf("the band ends at %g and begins at %g", b.High, b.Low))
	}
	s.Band = &b
}
