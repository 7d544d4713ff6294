package coordinator

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/coordinator/openfaas"
)

// maxLogLines bounds the lines that are sorted for one reader: the newest ones.
const maxLogLines = 10_000

// seenLines is what a reader of a log was given of each node, so that nothing comes
// twice when it goes on to follow.
type seenLines struct {
	until time.Time // lines that are younger were not seen
	seq   map[string]uint64
}

// Lines implements openfaas.Logs. What nodes keep is sorted by time; what is followed
// comes in the order of each replica.
func (s system) Lines(ctx context.Context, q openfaas.LogQuery, each func(openfaas.LogLine) error, alive func() error) error {
	seen := seenLines{until: time.Now(), seq: map[string]uint64{}}
	var kept []openfaas.LogLine
	err := newMerger(s.Coordinator, q.Function, "").each(ctx, func(b []byte) error {
		lines, f, err := plainLines(b, &q)
		if err != nil {
			return err
		}
		seen.seq[f.Node] = max(seen.seq[f.Node], f.Seq)
		if kept = append(kept, lines...); len(kept) > 2*maxLogLines {
			kept = newest(kept, maxLogLines)
		}
		return nil
	})
	if err != nil {
		return err
	}
	want := maxLogLines
	if q.Tail > 0 {
		want = min(want, q.Tail)
	}
	for _, l := range newest(kept, want) {
		if err := each(l); err != nil {
			return err
		}
	}
	if !q.Follow {
		return nil
	}
	return newMerger(s.Coordinator, q.Function, "?follow=1").each(ctx, func(b []byte) error {
		if len(b) == 0 {
			return alive()
		}
		lines, f, err := plainLines(b, &q)
		if err != nil {
			return err
		}
		for _, l := range lines {
			// Numbers begin anew with a node's daemon, times do not.
			if f.Seq <= seen.seq[f.Node] && !l.At.After(seen.until) {
				continue
			}
			if err := each(l); err != nil {
				return err
			}
		}
		return nil
	})
}

// newest sorts lines by time and keeps the last n.
func newest(lines []openfaas.LogLine, n int) []openfaas.LogLine {
	slices.SortStableFunc(lines, func(a, b openfaas.LogLine) int { return a.At.Compare(b.At) })
	return lines[max(0, len(lines)-n):]
}

// plainLines are the function's own lines of a frame that are asked for.
func plainLines(b []byte, q *openfaas.LogQuery) (lines []openfaas.LogLine, f api.LogFrame, err error) {
	if len(b) == 0 {
		return nil, f, nil
	}
	if err := json.Unmarshal(b, &f); err != nil {
		return nil, f, fmt.Errorf("decode a frame of a log: %w", err)
	}
	if q.Instance != "" && f.Sandbox != q.Instance {
		return nil, f, nil
	}
	for _, l := range f.Lines {
		at := time.Unix(0, l.Time)
		if l.Stream == api.LogPlatform || at.Before(q.Since) {
			continue
		}
		lines = append(lines, openfaas.LogLine{Instance: f.Sandbox, At: at, Text: l.Text})
	}
	return lines, f, nil
}
