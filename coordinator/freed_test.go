package coordinator

import (
	"strconv"
	"testing"
	"time"
)

func TestFreedSlotsAreHandedOnOnceAndForAMoment(t *testing.T) {
	var f freedSlots
	at := time.Unix(1000, 0)
	a, b := &peer{id: "a"}, &peer{id: "b"}
	if f.take(nil, at) != nil {
		t.Error("a slot came from nowhere")
	}
	f.put(a, at)
	f.put(b, at.Add(freedLife/2))
	f.put(a, at.Add(freedLife/2))
	if got := f.take([]string{"a"}, at.Add(freedLife/2)); got != b {
		t.Errorf("got %v: a node that refused is asked again", got)
	}
	if got := f.take(nil, at.Add(freedLife/2)); got != a {
		t.Errorf("got %v, want the latest", got)
	}
	if got := f.take(nil, at.Add(freedLife+1)); got != nil {
		t.Errorf("got %v: by now the mesh knows better", got)
	}
	if len(f.slots) != 0 {
		t.Errorf("%d old slots are kept", len(f.slots))
	}
}

func TestFreedSlotsAreBounded(t *testing.T) {
	var f freedSlots
	at := time.Unix(1000, 0)
	for i := range 3 * maxFreed {
		f.put(&peer{id: strconv.Itoa(i)}, at)
	}
	if len(f.slots) != maxFreed || cap(f.slots) > 4*maxFreed {
		t.Errorf("%d slots in room for %d", len(f.slots), cap(f.slots))
	}
	if got := f.take(nil, at); got.id != strconv.Itoa(3*maxFreed-1) {
		t.Errorf("the latest is %s", got.id)
	}
}
