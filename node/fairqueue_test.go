package node

import (
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/faasd-sec/faasd-sec/api"
)

func TestQueueServesFunctionsInTurn(t *testing.T) {
	var q fairQueue[string]
	for i := range 4 {
		q.push("greedy", fmt.Sprintf("g%d", i))
	}
	q.push("a", "a0")
	q.push("b", "b0")
	q.push("b", "b1")
	if !q.remove("greedy", "g1") || q.remove("greedy", "g1") || q.remove("nobody", "x") {
		t.Error("removal")
	}
	got := ""
	for v, ok := q.pop(); ok; v, ok = q.pop() {
		got += v + " "
	}
	if want := "g0 a0 b0 g2 b1 g3 "; got != want || q.len() != 0 {
		t.Errorf("served %q, want %q; %d left", got, want, q.len())
	}
}

// Nobody is lost or served twice, and between two of one function every other
// function that waits all the while is served once at most, and at least.
func TestQueueIsFairWhateverTheOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var q fairQueue[int]
		in, last := map[int]api.FunctionName{}, map[api.FunctionName]int{}
		next := 0
		since := map[api.FunctionName]map[api.FunctionName]int{} // f -> turns of others while f waits
		for range rapid.IntRange(1, 80).Draw(t, "steps") {
			f := api.FunctionName(rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "function"))
			switch rapid.IntRange(0, 3).Draw(t, "what") {
			case 0, 1:
				if !waits(in, f) {
					since[f] = map[api.FunctionName]int{}
				}
				next++
				q.push(f, next)
				in[next] = f
			case 2:
				v, ok := q.pop()
				if ok != (len(in) > 0) {
					t.Fatalf("popped %t of %d", ok, len(in))
				}
				if !ok {
					continue
				}
				g, known := in[v]
				if !known || v <= last[g] {
					t.Fatalf("%d of %s after %d", v, g, last[g])
				}
				last[g] = v
				delete(in, v)
				since[g] = map[api.FunctionName]int{}
				for other := range since {
					if waits(in, other) && other != g {
						if since[other][g]++; since[other][g] > 1 {
							t.Fatalf("%s had two turns while %s waited", g, other)
						}
					} else if other != g {
						since[other] = map[api.FunctionName]int{}
					}
				}
			case 3:
				for v, g := range in {
					if !q.remove(g, v) {
						t.Fatalf("%d was not there", v)
					}
					delete(in, v)
					break
				}
			}
			if q.len() != len(in) {
				t.Fatalf("%d wait, %d should", q.len(), len(in))
			}
		}
	})
}

func waits(in map[int]api.FunctionName, f api.FunctionName) bool {
	for _, g := range in {
		if g == f {
			return true
		}
	}
	return false
}

func TestDemandIsTheBusiestSecondUntilItIsLongPast(t *testing.T) {
	var d demand
	at := time.Unix(1_000_000, 0)
	if d.want(at) != 0 {
		t.Error("wanted before anybody came")
	}
	for i := range 10 {
		d.note(at.Add(time.Duration(i) * 10 * time.Millisecond))
	}
	d.note(at.Add(5 * time.Second))
	d.filled(100 * time.Millisecond)
	for after, want := range map[time.Duration]int{6 * time.Second: 10, 29 * time.Second: 10, 31 * time.Second: 1, time.Hour: 0} {
		c := d
		if got := c.want(at.Add(after)); got != want {
			t.Errorf("after %s: %d, want %d", after, got, want)
		}
	}
	for range 50 {
		d.filled(3 * time.Second)
	}
	if got := d.want(at.Add(6 * time.Second)); got < 29 || got > 30 {
		t.Errorf("where one takes 3 s to make: %d", got)
	}
}
