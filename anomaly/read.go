package anomaly

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"slices"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
)

// Filter chooses events; the zero value takes all.
type Filter struct {
	Since, Until time.Time // from Since on and before Until; zero is no bound
	Kinds        []Kind    // one of these; empty is any
	Function     string    // full name
	Node         string
}

// Match reports whether f takes e.
func (f *Filter) Match(e *Event) bool {
	return (f.Since.IsZero() || !e.Time().Before(f.Since)) && (f.Until.IsZero() || e.Time().Before(f.Until)) &&
		(len(f.Kinds) == 0 || slices.Contains(f.Kinds, e.Kind)) &&
		(f.Function == "" || f.Function == e.Function) && (f.Node == "" || f.Node == e.Node)
}

// Read yields the events of the log in dir that filter takes, in order. It
// checks the chain and no signature: what it shows is what Verify judges. A
// *Break is yielded as an error; the events after it are those of the next
// segments. Any other error is the last.
func Read(ctx context.Context, dir string, filter Filter) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		r := &reader{dir: dir, filter: filter}
		r.run(ctx, yield)
	}
}

// Follow is Read that goes on with new events, looking for them every poll (at
// least 10 ms), until ctx ends. It may begin before the log does.
func Follow(ctx context.Context, dir string, filter Filter, poll time.Duration) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		r := &reader{dir: dir, filter: filter, poll: max(poll, 10*time.Millisecond)}
		r.run(ctx, yield)
	}
}

type reader struct {
	dir    string
	filter Filter
	poll   time.Duration // 0 ends at the end
	parser *parser

	file   *os.File
	cursor *cursor
	number uint64 // of the segment being read, or read last
	broken bool   // the rest of that segment is not read
}

func (r *reader) run(ctx context.Context, yield func(Event, error) bool) {
	defer func() {
		if r.file != nil {
			r.file.Close()
		}
	}()
	var err error
	if r.parser, err = newParser(); err != nil {
		yield(Event{}, err)
		return
	}
	for {
		// The list comes before the reading: where it has a later segment, this one
		// has ended and is read to its end.
		list, err := listSegments(r.dir)
		if err != nil && !(r.poll > 0 && errors.Is(err, fs.ErrNotExist)) {
			yield(Event{}, err)
			return
		}
		if len(list) == 0 && r.poll == 0 {
			yield(Event{}, &api.Error{Code: api.CodeNotFound, Field: "DIR", Message: "there is no anomaly log in " + r.dir,
				Remedy: "name the directory that holds " + headName + " and files such as " + segmentName(1, false)})
			return
		}
		if !r.segment(ctx, yield) {
			return
		}
		if err := ctx.Err(); err != nil {
			yield(Event{}, fmt.Errorf("anomaly: read: %w", err))
			return
		}
		next := slices.IndexFunc(list, func(f segmentFile) bool { return f.number > r.number })
		if next >= 0 {
			if err := r.open(list[next]); err != nil {
				yield(Event{}, err)
				return
			}
			continue
		}
		if r.poll == 0 {
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(r.poll):
		}
	}
}

// open goes to another segment. One that retention has just removed is passed over.
func (r *reader) open(f segmentFile) error {
	if r.file != nil {
		r.file.Close()
	}
	r.file, r.cursor, r.number, r.broken = nil, nil, f.number, false
	file, err := os.Open(f.path(r.dir))
	if errors.Is(err, fs.ErrNotExist) {
		f.damaged = !f.damaged
		file, err = os.Open(f.path(r.dir)) // it was set aside meanwhile
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return fmt.Errorf("anomaly: open a segment: %w", err)
	}
	r.file, r.cursor = file, newCursor(file)
	return nil
}

// segment yields what there is of the open segment, and reports whether to go on.
func (r *reader) segment(ctx context.Context, yield func(Event, error) bool) bool {
	for n := 0; r.cursor != nil && !r.broken; n++ {
		if n%1024 == 0 && ctx.Err() != nil {
			return true // run tells
		}
		rec, err := r.cursor.next()
		var b *Break
		switch {
		case errors.Is(err, errEnd), errors.Is(err, errTorn):
			return true
		case errors.As(err, &b):
			b.Segment, r.broken = r.number, true
			if !yield(Event{}, b) {
				return false
			}
			continue
		case err != nil:
			yield(Event{}, err)
			return false
		case typeOf(rec.body) != typeEvent:
			continue
		}
		e, err := r.parser.event(rec.body)
		if err != nil {
			r.broken = true
			if !yield(Event{}, &Break{Segment: r.number, Offset: rec.offset, Reason: ReasonEncoding, Detail: err.Error()}) {
				return false
			}
			continue
		}
		if r.filter.Match(&e) && !yield(e, nil) {
			return false
		}
	}
	return true
}
