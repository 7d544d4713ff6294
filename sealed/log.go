package sealed

import (
	"fmt"

	"github.com/faasd-sec/faasd-sec/sealed/internal/dcbor"
)

// Stream says who wrote a log line.
type Stream uint8

// The streams.
const (
	StreamStdout Stream = 1 // the function
	StreamStderr Stream = 2 // the function
	StreamAgent  Stream = 3 // the agent, about the function
)

// MaxLogLine is the most bytes of one log line; longer lines are split.
const MaxLogLine = 32768

// LogLine is one line of a function's log.
type LogLine struct {
	Time       uint64 // unix nanoseconds
	Stream     Stream
	Invocation ID     // zero where the line belongs to none, or to nobody knows which
	Text       []byte // as it was written, without the newline
}

// AppendLog appends lines to the body of a log message (role 7), which is a
// sequence of them. The error names the line.
func AppendLog(dst []byte, lines ...LogLine) ([]byte, error) {
	for i := range lines {
		l := &lines[i]
		if err := l.check(); err != nil {
			return dst, fmt.Errorf("sealed: log line %d: %w", i, err)
		}
		dst = dcbor.AppendMap(dst, 4)
		dst = dcbor.AppendUint(dcbor.AppendUint(dst, 1), l.Time)
		dst = dcbor.AppendUint(dcbor.AppendUint(dst, 2), uint64(l.Stream))
		dst = appendOptional(dcbor.AppendUint(dst, 3), l.Invocation[:], l.Invocation.IsZero())
		dst = dcbor.AppendBytes(dcbor.AppendUint(dst, 4), l.Text)
	}
	return dst, nil
}

// ParseLog reads the body of a log message strictly. The lines alias b.
func ParseLog(b []byte) ([]LogLine, error) {
	var lines []LogLine
	for r := dcbor.NewDecoder(b); len(r.Rest()) > 0; {
		var l LogLine
		r.Field("line").MapOf(4)
		l.Time = r.Key(1, "time").Uint()
		l.Stream = Stream(min(r.Key(2, "stream").Uint(), 255))
		readOptional(r.Key(3, "invocation"), l.Invocation[:])
		l.Text = r.Key(4, "text").Bytes(MaxLogLine)
		err := r.Err()
		if err == nil {
			err = l.check()
		}
		if err != nil {
			return nil, fmt.Errorf("sealed: log line %d: %w", len(lines), err)
		}
		lines = append(lines, l)
	}
	return lines, nil
}

func (l *LogLine) check() error {
	if l.Stream < StreamStdout || l.Stream > StreamAgent {
		return fmt.Errorf("stream: %d is unknown", l.Stream)
	}
	if len(l.Text) > MaxLogLine {
		return fmt.Errorf("text: %d bytes, at most %d", len(l.Text), MaxLogLine)
	}
	return nil
}
