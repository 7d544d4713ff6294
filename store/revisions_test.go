package store

import (
	"fmt"
	"testing"
)

func TestHistoryKeepsTheLatestRevisionsOnce(t *testing.T) {
	s := testStore(t)
	if past, err := s.Revisions(t.Context(), "f.openfaas-fn"); err != nil || len(past) != 0 {
		t.Fatalf("%v, %v", past, err)
	}
	keep := func(revision string, seq uint64) {
		t.Helper()
		f := fn("f", seq)
		f.Revision = revision
		f.Next, f.Beside, f.Replicas = &Function{}, []Beside{{Function: &Function{}}}, new(int)
		if err := s.KeepRevision(t.Context(), f); err != nil {
			t.Fatal(err)
		}
	}
	for i := range HistoryKept + 3 {
		keep(fmt.Sprintf("r%d", i), uint64(i+1))
	}
	keep("r9", 100) // again
	other := fn("g", 1)
	if err := s.KeepRevision(t.Context(), other); err != nil {
		t.Fatal(err)
	}
	past, err := s.Revisions(t.Context(), "f.openfaas-fn")
	if err != nil || len(past) > HistoryKept || past[0].Revision != "r9" || past[0].Sequence != 100 || past[1].Revision != "r12" {
		t.Fatalf("%d kept, %+v, %v", len(past), past, err)
	}
	seen := map[string]bool{}
	for _, p := range past {
		if seen[p.Revision] || p.Next != nil || p.Beside != nil || p.Replicas != nil {
			t.Errorf("%+v", p)
		}
		seen[p.Revision] = true
	}
	if err := s.ForgetRevisions(t.Context(), "f.openfaas-fn"); err != nil {
		t.Fatal(err)
	}
	if past, err = s.Revisions(t.Context(), "f.openfaas-fn"); err != nil || len(past) != 0 {
		t.Errorf("forgotten: %v, %v", past, err)
	}
	if past, err = s.Revisions(t.Context(), "g.openfaas-fn"); err != nil || len(past) != 1 {
		t.Errorf("another function's: %v, %v", past, err)
	}
}

func TestNewestCountsWhatCameToNothing(t *testing.T) {
	f := fn("f", 3)
	f.Next, f.Beside, f.Highest = &Function{Sequence: 5}, []Beside{{Function: &Function{Sequence: 2}}}, 4
	if f.Newest() != 5 || len(f.Serving()) != 3 {
		t.Errorf("%d, %d serve", f.Newest(), len(f.Serving()))
	}
	if f.Next = nil; f.Newest() != 4 {
		t.Errorf("%d", f.Newest())
	}
}
