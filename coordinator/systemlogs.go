package coordinator

import (
	"context"
	"encoding/json"
	"sort"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/coordinator/openfaas"
	"github.com/faasd-sec/faasd-sec/sealed"
)

const (
	logsSettle = 200 * time.Millisecond // how long nodes' lines are brought into one order before they are told
	logsAlive  = 5 * time.Second        // between two looks whether the reader is there
)

// Lines implements openfaas.Logs. Lines of several nodes are told in the order of
// their times, as far as they came together.
func (s system) Lines(ctx context.Context, q openfaas.LogQuery, each func(openfaas.LogLine) error, alive func() error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	query := ""
	if q.Follow {
		query = "?follow=1"
	}
	m := newMerger(s.Coordinator, q.Function, query)
	done, end := m.start(ctx)
	defer func() { cancel(); end() }()
	// Everything that is there first, in order and cut to the last ones; then, with
	// Follow, what comes, a moment's worth at a time.
	var lines []openfaas.LogLine
	seen := map[string]uint64{} // node -> last sequence: one that is read again starts over
	first := true
	tell := func() error {
		sort.SliceStable(lines, func(i, j int) bool { return lines[i].At.Before(lines[j].At) })
		if first && q.Tail > 0 && len(lines) > q.Tail {
			lines = lines[len(lines)-q.Tail:]
		}
		first = false
		for _, l := range lines {
			if err := each(l); err != nil {
				return err
			}
		}
		lines = lines[:0]
		return nil
	}
	settled := time.NewTimer(logsSettle)
	defer settled.Stop()
	beat := time.NewTicker(logsAlive)
	defer beat.Stop()
	for {
		select {
		case f := <-m.frames:
			if len(lines) == 0 {
				settled.Reset(logsSettle)
			}
			lines = append(lines, linesOf(f, q, seen)...)
		case <-settled.C:
			if !q.Follow {
				continue // until all nodes have told all
			}
			if err := tell(); err != nil {
				return err
			}
		case <-beat.C:
			if err := alive(); err != nil {
				return err
			}
		case <-done:
			for len(m.frames) > 0 {
				lines = append(lines, linesOf(<-m.frames, q, seen)...)
			}
			return tell()
		case <-ctx.Done():
			return nil
		}
	}
}

// linesOf are the lines of a frame that are asked for; what is sealed is one line.
func linesOf(frame []byte, q openfaas.LogQuery, seen map[string]uint64) []openfaas.LogLine {
	var f api.LogFrame
	if json.Unmarshal(frame, &f) != nil || f.Seq <= seen[f.Node] {
		return nil
	}
	seen[f.Node] = f.Seq
	if q.Instance != "" && f.Sandbox != q.Instance {
		return nil
	}
	if len(f.Sealed) > 0 {
		p, err := sealed.Peek(f.Sealed)
		if at := time.UnixMilli(int64(min(p.Message.Issued, 1<<62))); err == nil && !at.Before(q.Since) {
			return []openfaas.LogLine{{Instance: f.Sandbox, At: at, Text: api.SealedLine(q.Function, f.Sealed)}}
		}
		return nil
	}
	var out []openfaas.LogLine
	for _, l := range f.Lines {
		at := time.Unix(0, l.Time)
		if at.Before(q.Since) {
			continue
		}
		out = append(out, openfaas.LogLine{Instance: f.Sandbox, At: at, Text: l.Text})
	}
	return out
}
