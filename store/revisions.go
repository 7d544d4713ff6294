package store

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/faasd-sec/faasd-sec/api"
)

// HistoryKept is how many former revisions of a function are kept.
const HistoryKept = 10

// Beside is a revision that serves beside a function's current one: one that is
// being drained until Until, in unix milliseconds, or, with Until 0, one that
// takes a share of the calls.
type Beside struct {
	Function *Function `json:"function"`
	Until    int64     `json:"until,omitempty"`
	Percent  int       `json:"percent,omitempty"` // of the calls; callers of a sealed function keep to it by themselves
}

// Serving are the revisions of a function that may have replicas now, the current
// one first.
func (f *Function) Serving() []*Function {
	all := []*Function{f}
	if f.Next != nil {
		all = append(all, f.Next)
	}
	for _, b := range f.Beside {
		all = append(all, b.Function)
	}
	return all
}

// Newest is the highest sequence that was ever deployed.
func (f *Function) Newest() uint64 {
	n := f.Highest
	for _, s := range f.Serving() {
		n = max(n, s.Sequence)
	}
	return n
}

// Alone is a copy of one revision without what concerns the function as a whole.
func (f *Function) Alone() *Function {
	a := *f
	a.Next, a.Beside, a.Rollout, a.Highest, a.Replicas, a.ReplicasAt, a.Version = nil, nil, nil, 0, nil, 0, 0
	a.Traffic, a.Stated = nil, 0
	return &a
}

func (s *Store) historyPrefix(n api.FunctionName) string {
	return s.cfg.Prefix + "history/" + string(n) + "/"
}

// KeepRevision puts a revision into its function's history, and drops those beyond
// HistoryKept. One that was there before under another sequence is there once.
func (s *Store) KeepRevision(ctx context.Context, f Function) error {
	if _, err := s.functionKey(f.Name); err != nil {
		return err
	}
	b, err := json.Marshal(f.Alone())
	if err != nil {
		return fmt.Errorf("encode revision of %s: %w", f.Name, err)
	}
	prefix := s.historyPrefix(f.Name)
	if _, err := s.put(ctx, "revision of "+f.Name.Short(), prefix+fmt.Sprintf("%020d", f.Sequence), b, AnyVersion); err != nil {
		return err
	}
	past, err := s.Revisions(ctx, f.Name)
	if err != nil {
		return err
	}
	for i, p := range past {
		if i < HistoryKept && (p.Revision != f.Revision || p.Sequence == f.Sequence) {
			continue
		}
		if _, err := s.remove(ctx, "revision of "+f.Name.Short(), prefix+fmt.Sprintf("%020d", p.Sequence), AnyVersion); err != nil && api.CodeOf(err) != api.CodeNotFound {
			return err
		}
	}
	return nil
}

// Revisions are a function's former revisions, the latest first. A record that is
// damaged is left out.
func (s *Store) Revisions(ctx context.Context, n api.FunctionName) ([]*Function, error) {
	var all []*Function
	_, err := s.list(ctx, "history", s.historyPrefix(n), func(key string, value []byte, version int64) {
		if f, err := parseFunction(string(n), value, version); err == nil {
			all = append(all, f)
		} else {
			s.cfg.Log.Error("revision left out", "function", n, "sequence", key, "error", err)
		}
	})
	slices.Reverse(all)
	return all, err
}

// ForgetRevisions drops a removed function's history.
func (s *Store) ForgetRevisions(ctx context.Context, n api.FunctionName) error {
	past, err := s.Revisions(ctx, n)
	for _, p := range past {
		if _, rerr := s.remove(ctx, "revision of "+n.Short(), s.historyPrefix(n)+fmt.Sprintf("%020d", p.Sequence), AnyVersion); rerr != nil && api.CodeOf(rerr) != api.CodeNotFound {
			return rerr
		}
	}
	return err
}
