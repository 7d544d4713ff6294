package coordinator

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emmansun/gmsm/sm2"
	"github.com/emmansun/gmsm/sm3"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/reqauth"
	"github.com/faasd-sec/faasd-sec/schedule"
	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/store"
)

// ticks seals a body to f.ns for each of some times, as sender.
func (w *world) ticks(sender *sm2.PrivateKey, body string, at ...time.Time) []byte {
	w.t.Helper()
	var out []byte
	for _, tick := range at {
		g, err := sealed.NewGrant(sealed.GrantParams{Role: sealed.RoleRequest, Recipient: w.point(w.keys[1]), Sender: sender,
			Context: w.rev, Name: "f.ns", NotBefore: tick, NotAfter: tick.Add(time.Hour)})
		if err != nil {
			w.t.Fatal(err)
		}
		b, _, _, err := g.AppendRequest(nil, sealed.MessageParams{Issued: tick, Life: 2 * time.Minute}, sealed.RequestHead{Method: "POST", Path: "/" + body}, []byte(body))
		g.Release()
		if err != nil {
			w.t.Fatal(err)
		}
		out = append(binary.BigEndian.AppendUint32(out, uint32(len(b))), b...)
	}
	return out
}

// every gives n times, a second apart, from a while from now.
func every(from time.Duration, n int) (at []time.Time) {
	start := time.Now().Add(from).Truncate(time.Second)
	for i := range n {
		at = append(at, start.Add(time.Duration(i)*time.Second))
	}
	return at
}

func (w *world) putTicks(who *sm2.PrivateKey, id, mode string, body []byte, header ...string) answer {
	w.t.Helper()
	target := "/v1/schedules/" + id + "?function=f.ns&mode=" + mode
	auth, err := (&reqauth.Signer{Key: who, Random: rand.Reader, Now: time.Now}).Sign("PUT", target, sm3.Sum(body))
	if err != nil {
		w.t.Fatal(err)
	}
	return w.do("PUT", target, api.ContentTypeTicks, body, append(header, "Authorization", auth)...)
}

// known gives the schedule as one that its maker sees.
func (w *world) schedule(id string) (s api.Schedule) {
	w.t.Helper()
	a := w.signed(w.owner, "GET", "/v1/schedules/"+id, nil)
	if a.status == http.StatusNotFound {
		return s
	}
	if a.status != 200 || json.Unmarshal(a.body, &s) != nil {
		w.t.Fatalf("%d %s", a.status, a.body)
	}
	return s
}

func TestSealedTicksAreMadeAtTheirTimeAndNotBefore(t *testing.T) {
	var mu sync.Mutex
	came := map[string]time.Time{}
	w := asyncWorld(t, 1)
	n := w.nodes["node-1"]
	echo := *n.invoke.Load()
	n.on(&n.invoke, func(rw http.ResponseWriter, r *http.Request) {
		mu.Lock()
		came[r.Header.Get(api.HeaderCallID)] = time.Now()
		mu.Unlock()
		echo(rw, r)
	})
	at := every(-2*time.Second, 7)
	a := w.putTicks(w.owner, "s1", "new", w.ticks(w.owner, "x", at...))
	if a.status != 200 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	w.eventuallyWithin(time.Minute, "all are made", func() bool { s := w.schedule("s1"); return s.Made == 7 && s.Next == 0 && s.Left == 0 })
	for _, tick := range at {
		id := schedule.TickID("s1", tick)
		r := w.result(id)
		if r.status != 200 || r.header.Get(api.HeaderAttempts) != "1" {
			t.Errorf("%s: %d %s", tick, r.status, r.body)
		}
		mu.Lock()
		if came[id].Before(tick) {
			t.Errorf("tick %s came at %s", tick, came[id])
		}
		mu.Unlock()
	}
	if n.offered.Load() != 7 {
		t.Errorf("%d calls for 7 ticks", n.offered.Load())
	}
	if a := w.putTicks(w.owner, "s1", "append", w.ticks(w.owner, "x", every(2*time.Second, 2)...)); a.status != 200 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	w.eventuallyWithin(time.Minute, "what was added is made, too", func() bool { return w.schedule("s1").Made == 9 })
}

func (w *world) eventuallyWithin(d time.Duration, what string, f func() bool) {
	w.t.Helper()
	for deadline := time.Now().Add(d); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if f() {
			return
		}
	}
	w.t.Fatalf("not in time: %s", what)
}

// An attacker has the coordinator's store and all that passes: no word of what was
// sealed is in it.
func TestWhatIsKeptOfSealedTicksHoldsNoWordOfThem(t *testing.T) {
	const canary = "canary-6f1d9a"
	dir := t.TempDir()
	var etcd *clientv3.Client
	var seen bytes.Buffer
	w := newWorld(t, 1, func(w *world) {
		s, err := store.Open(t.Context(), store.DefaultConfig(dir+"/etcd", slog.New(slog.DiscardHandler)))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		etcd, _ = s.Etcd()
		w.async = asyncOn(t, s, dir, "co-1")
	})
	body := w.ticks(w.owner, canary, every(20*time.Minute, 50)...)
	seen.Write(body)
	if a := w.putTicks(w.owner, "s1", "new", body); a.status != 200 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	all, err := etcd.Get(t.Context(), "\x00", clientv3.WithFromKey())
	if err != nil {
		t.Fatal(err)
	}
	kept := 0
	for _, kv := range all.Kvs {
		seen.Write(kv.Value)
		if strings.Contains(string(kv.Key), "/tick/") {
			kept++
		}
	}
	if kept != 50 {
		t.Errorf("%d ticks are kept", kept)
	}
	if bytes.Contains(seen.Bytes(), []byte(canary)) {
		t.Error("the canary is there to be read")
	}
}

func (w *world) stranger() *sm2.PrivateKey {
	w.t.Helper()
	k, err := sm2.GenerateKey(rand.Reader)
	if err != nil {
		w.t.Fatal(err)
	}
	return k
}

func TestSchedulesAreTheirMakersAndTheFunctionsOwners(t *testing.T) {
	w := asyncWorld(t, 1)
	maker, stranger := w.stranger(), w.stranger()
	at := every(20*time.Minute, 3)
	if a := w.putTicks(maker, "s1", "new", w.ticks(maker, "x", at...)); a.status != 200 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	w.eventually("it is known", func() bool { return w.schedule("s1").Left == 3 })
	for _, test := range []struct {
		what string
		a    answer
		code api.Code
	}{
		{"not signed", w.do("PUT", "/v1/schedules/s2?function=f.ns&mode=new", api.ContentTypeTicks, w.ticks(maker, "x", at...)), api.CodeUnauthorized},
		{"another's ticks", w.putTicks(stranger, "s2", "new", w.ticks(maker, "x", at...)), api.Code(sealed.CodeSender)},
		{"another's schedule", w.putTicks(stranger, "s1", "replace", w.ticks(stranger, "x", at...)), api.CodeForbidden},
		{"more of another's", w.putTicks(stranger, "s1", "append", w.ticks(stranger, "x", every(30*time.Minute, 1)...)), api.CodeForbidden},
		{"a look by a stranger", w.signed(stranger, "GET", "/v1/schedules/s1", nil), api.CodeForbidden},
		{"a removal by a stranger", w.signed(stranger, "DELETE", "/v1/schedules/s1", nil), api.CodeForbidden},
		{"a look without a name", w.do("GET", "/v1/schedules/s1", "", nil), api.CodeUnauthorized},
		{"a list without a name", w.do("GET", "/v1/schedules", "", nil), api.CodeUnauthorized},
		{"cut short", w.putTicks(maker, "s2", "new", w.ticks(maker, "x", at...)[:700]), api.CodeInvalid},
		{"no frames", w.putTicks(maker, "s2", "new", []byte("\xff\xff\xff\xff")), api.CodeTooLarge},
		{"not in order", w.putTicks(maker, "s2", "new", w.ticks(maker, "x", at[1], at[0])), api.CodeInvalid},
		{"twice the same", w.putTicks(maker, "s2", "new", w.ticks(maker, "x", at[0], at[0])), api.CodeInvalid},
		{"over", w.putTicks(maker, "s2", "new", w.ticks(maker, "x", every(-10*time.Minute, 1)...)), api.CodeInvalid},
		{"beyond the function's keys", w.putTicks(maker, "s2", "new", w.ticks(maker, "x", every(5*time.Hour, 1)...)), api.Code(sealed.CodeUnknownKey)},
		{"too far", w.putTicks(maker, "s2", "new", w.ticks(maker, "x", every(9999*time.Hour, 1)...)), api.CodeInvalid},
		{"nothing", w.putTicks(maker, "s2", "new", nil), api.CodeInvalid},
		{"another type", w.signed(maker, "PUT", "/v1/schedules/s2?function=f.ns&mode=new", nil), api.CodeMediaType},
		{"no mode", w.putTicks(maker, "s2", "often", nil), api.CodeInvalid},
		{"no name", w.putTicks(maker, "s2%2f", "new", nil), api.CodeInvalid},
		{"there already", w.putTicks(maker, "s1", "new", w.ticks(maker, "x", at...)), api.CodeConflict},
		{"none to go on with", w.putTicks(maker, "s2", "append", w.ticks(maker, "x", at...)), api.CodeNotFound},
	} {
		if test.a.code != test.code {
			t.Errorf("%s: %d %s %s %v", test.what, test.a.status, test.a.code, test.a.body, test.a.err)
		}
	}
	// A body that is not the one that was signed leaves nothing behind.
	s := &reqauth.Signer{Key: maker, Random: rand.Reader, Now: time.Now}
	target := "/v1/schedules/s3?function=f.ns&mode=new"
	auth, err := s.Sign("PUT", target, sm3.Sum(w.ticks(maker, "x", at...)))
	if err != nil {
		t.Fatal(err)
	}
	if a := w.do("PUT", target, api.ContentTypeTicks, w.ticks(maker, "y", at...), "Authorization", auth); a.status != http.StatusUnauthorized {
		t.Errorf("another body: %d %s", a.status, a.body)
	}
	for _, who := range []*sm2.PrivateKey{maker, w.owner, stranger} {
		var list []api.Schedule
		a := w.signed(who, "GET", "/v1/schedules?function=f.ns", nil)
		if json.Unmarshal(a.body, &list) != nil || (len(list) == 1) == (who == stranger) || len(list) == 1 && (list[0].ID != "s1" || list[0].Left != 3) {
			t.Errorf("%d %s", a.status, a.body)
		}
	}
	if a := w.signed(w.owner, "DELETE", "/v1/schedules/s1", nil); a.status != http.StatusNoContent {
		t.Errorf("by the function's owner: %d %s", a.status, a.body)
	}
	w.eventually("it is gone", func() bool { return w.schedule("s1").ID == "" })
}

// After the function was deployed anew its ticks are not handed in: no dead letters.
func TestStaleTicksAreNotMadeUntilTheyAreReplaced(t *testing.T) {
	w := asyncWorld(t, 1)
	if a := w.putTicks(w.owner, "s1", "new", w.ticks(w.owner, "x", every(6*time.Second, 100)...)); a.status != 200 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	w.eventually("it is known", func() bool { return w.schedule("s1").Left > 90 })
	w.deploy(3, func(d *sealed.Descriptor) { d.Config.Labels = map[string]string{"new": "one"} })
	w.eventuallyWithin(time.Minute, "it says so", func() bool {
		s := w.schedule("s1")
		return s.Refused >= 2 && s.Code == api.CodeStaleRevision && s.Stale == s.Left && s.Made == 0
	})
	if a := w.signed(w.owner, "GET", api.GatewayPathDead, nil); string(a.body) != "[]" {
		t.Errorf("dead letters: %s", a.body)
	}
	if a := w.putTicks(w.owner, "s1", "replace", w.ticks(w.owner, "x", every(0, 3)...)); a.status != 200 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	w.eventuallyWithin(time.Minute, "what is new is made", func() bool {
		s := w.schedule("s1")
		return s.Made >= 1 && s.Next == 0 && s.Code == "" && s.Stale == 0
	})
}

// Ticks that are older than five minutes, or expired, are missed and not made late.
func TestTicksThatNobodyMadeInTimeAreCounted(t *testing.T) {
	w := asyncWorld(t, 1)
	w.deploy(3, func(d *sealed.Descriptor) { d.Decryption[0].NotBefore -= 3600 })
	at := slices.Concat(every(-4*time.Minute, 2), every(-time.Second, 2)) // the first two expired after two minutes
	if a := w.putTicks(w.owner, "s1", "new", w.ticks(w.owner, "x", at...)); a.status != 200 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	w.eventuallyWithin(time.Minute, "two and two", func() bool { s := w.schedule("s1"); return s.Missed == 2 && s.Made == 2 && s.Refused == 0 })
}
