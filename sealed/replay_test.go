package sealed

import (
	"errors"
	"testing"
	"time"
)

func TestReplaySetTakesAMessageAgainThatNobodyAccepted(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	s, err := NewReplaySet(ReplayConfig{Size: 4, Clock: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	expires := uint64(now.UnixMilli()) + 5000
	ids := []ID{{1}, {2}, {3}}
	for _, id := range ids {
		if err := s.Add(Digest{9}, id, expires); err != nil {
			t.Fatal(err)
		}
	}
	s.Remove(Digest{9}, ids[1], expires)
	s.Remove(Digest{9}, ids[1], expires) // once more is no error
	s.Remove(Digest{8}, ids[0], expires) // another grant's is another message
	if s.Len() != 2 {
		t.Errorf("%d remembered, want 2", s.Len())
	}
	if err := s.Add(Digest{9}, ids[1], expires); err != nil {
		t.Errorf("the removed one: %v", err)
	}
	for _, id := range ids {
		if err := s.Add(Digest{9}, id, expires); !errors.Is(err, CodeReplay) {
			t.Errorf("%s a second time: %v", id, err)
		}
	}
	now = now.Add(10 * time.Second)
	if err := s.Add(Digest{9}, ID{7}, expires+20_000); err != nil || s.Len() != 1 {
		t.Errorf("%d remembered after their time, %v", s.Len(), err)
	}
}
