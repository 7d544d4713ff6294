package agent

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed"
)

// The streams of a log record, as docs/envelope.md numbers them.
const (
	streamOut      = api.LogOut
	streamErr      = api.LogErr
	streamPlatform = api.LogPlatform
)

const (
	logFlushBytes = 32 << 10               // a batch is sealed when it has so much text
	logFlushAfter = 100 * time.Millisecond // or when its first line is so old
	logLine       = 8 << 10                // a longer line is split
)

// logRecord is one line.
type logRecord struct {
	Time   int64 // unix nanoseconds
	Stream uint
	Text   string
}

// logSink collects what a function prints, seals it to the function's owner in
// batches and hands them to the node. It never holds a function up: when the
// node does not take them and the buffer is full, lines are dropped and counted,
// and a sealed line says how many. One of run owns it.
type logSink struct {
	now   func() time.Time
	log   *slog.Logger
	limit int

	mu      sync.Mutex
	seal    func(records []logRecord) ([]byte, error) // nil: until the keys are there lines wait
	clear   bool                                      // they go out as they are: a plain function's
	records []logRecord
	bytes   int
	dropped int64
	wake    chan struct{}
}

func newLogSink(now func() time.Time, log *slog.Logger, limit int) *logSink {
	return &logSink{now: now, log: log, limit: limit, wake: make(chan struct{}, 1)}
}

// to says how batches are sealed from now on.
func (s *logSink) to(seal func([]logRecord) ([]byte, error)) {
	s.mu.Lock()
	s.seal = seal
	s.mu.Unlock()
}

// add takes one line.
func (s *logSink) add(stream uint, text string) {
	now := s.now().UnixNano()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.bytes+len(text) > s.limit {
		s.dropped++
		return
	}
	s.bytes += len(text) + 16
	s.records = append(s.records, logRecord{Time: now, Stream: stream, Text: text})
	if len(s.records) == 1 || s.bytes >= logFlushBytes {
		select {
		case s.wake <- struct{}{}:
		default:
		}
	}
}

// platform adds a line of the agent's own.
func (s *logSink) platform(format string, args ...any) {
	s.add(streamPlatform, fmt.Sprintf(format, args...))
}

// take removes up to one batch.
func (s *logSink) take() (batch []logRecord, seal func([]logRecord) ([]byte, error)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.seal == nil && !s.clear || len(s.records) == 0 && s.dropped == 0 {
		return nil, nil
	}
	n, size := 0, 0
	for n < len(s.records) && size < logFlushBytes {
		size += len(s.records[n].Text)
		n++
	}
	batch = append(batch, s.records[:n]...)
	s.records = append(s.records[:0], s.records[n:]...)
	s.bytes = 0
	for _, r := range s.records {
		s.bytes += len(r.Text) + 16
	}
	if s.dropped > 0 && len(s.records) == 0 {
		batch = append(batch, logRecord{Time: s.now().UnixNano(), Stream: streamPlatform,
			Text: fmt.Sprintf("%d log lines were dropped: the node took none, or they came too fast", s.dropped)})
		s.dropped = 0
	}
	return batch, s.seal
}

// run seals and sends batches until ctx ends, and then what is left. ready
// reports whether send would find a node.
func (s *logSink) run(ctx context.Context, ready func() bool, send func(api.Control) error) {
	var unsent *api.Log // sealed, but the node went away
	flush := func() {
		for ready() {
			if unsent == nil {
				batch, seal := s.take()
				if len(batch) == 0 {
					return
				}
				l, err := s.frame(batch, seal)
				if err != nil {
					s.log.Warn("seal a log batch", "err", err)
					return
				}
				if unsent = l; unsent == nil { // the owner wants no log
					continue
				}
			}
			if err := send(api.Control{Log: unsent}); err != nil {
				return
			}
			unsent = nil
		}
	}
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			flush()
			return
		case <-s.wake:
			s.mu.Lock()
			full := s.bytes >= logFlushBytes
			s.mu.Unlock()
			if full {
				flush()
			}
			timer.Reset(logFlushAfter)
		case <-timer.C:
			flush()
			if s.waiting() || unsent != nil {
				timer.Reset(logFlushAfter)
			}
		}
	}
}

// frame is what the node gets of a batch, nil for nothing.
func (s *logSink) frame(batch []logRecord, seal func([]logRecord) ([]byte, error)) (*api.Log, error) {
	if seal != nil {
		b, err := seal(batch)
		if b == nil {
			return nil, err
		}
		return &api.Log{Sealed: b}, err
	}
	l := &api.Log{Lines: make([]api.LogLine, len(batch))}
	for i, r := range batch {
		l.Lines[i] = api.LogLine{Time: r.Time, Stream: int(r.Stream), Text: r.Text}
	}
	return l, nil
}

// openly has lines go out as they are from now on.
func (s *logSink) openly() {
	s.mu.Lock()
	s.clear = true
	s.mu.Unlock()
}

func (s *logSink) waiting() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.records) > 0 || s.dropped > 0
}

// lines reads r to its end and adds its lines.
func (s *logSink) lines(stream uint, r io.Reader) {
	br := bufio.NewReaderSize(r, logLine)
	for {
		b, err := br.ReadSlice('\n')
		for len(b) > 0 && (b[len(b)-1] == '\n' || b[len(b)-1] == '\r') {
			b = b[:len(b)-1]
		}
		if len(b) > 0 {
			s.add(stream, string(b))
		}
		if err != nil && err != bufio.ErrBufferFull {
			return
		}
	}
}

// sealLogs returns how n's log batches are sealed: role 7, to the descriptor's
// log recipient, signed by the function. Batches for nobody become nil.
func sealLogs(n *binding, grants *sealed.GrantCache, now func() time.Time) (func([]logRecord) ([]byte, error), error) {
	if n.desc.LogRecipient == (sealed.PublicKey{}) {
		return func([]logRecord) ([]byte, error) { return nil, nil }, nil
	}
	return func(records []logRecord) ([]byte, error) {
		lines := make([]sealed.LogLine, len(records))
		for i, r := range records {
			lines[i] = sealed.LogLine{Time: uint64(r.Time), Stream: sealed.Stream(r.Stream), Text: []byte(r.Text)}
		}
		body, err := sealed.AppendLog(nil, lines...)
		if err != nil {
			return nil, fmt.Errorf("encode logs: %w", err)
		}
		defer clear(body)
		g, err := grants.Get(sealed.GrantParams{Role: sealed.RoleLog, Recipient: n.desc.LogRecipient,
			Sender: n.signer, Context: n.revision, Name: n.name})
		if err != nil {
			return nil, fmt.Errorf("grant for logs: %w", err)
		}
		defer g.Release()
		return g.Append(nil, sealed.MessageParams{Issued: now()}, body)
	}, nil
}
