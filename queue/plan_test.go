package queue

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/faasd-sec/faasd-sec/api"
)

// put stores n ticks, a step apart.
func (m *member) put(t testing.TB, p Plan, mode string, from time.Time, step time.Duration, n int) (Plan, error) {
	t.Helper()
	u, err := m.Upload(t.Context(), "revision")
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		at := from.Add(time.Duration(i) * step).UnixMilli()
		if err := u.Add(t.Context(), at, fmt.Appendf(nil, "sealed %d", at)); err != nil {
			u.Abort(t.Context())
			return p, err
		}
	}
	out, err := u.Commit(t.Context(), p, mode)
	if err != nil {
		u.Abort(t.Context())
	}
	return out, err
}

func plan(id string) Plan { return Plan{ID: id, Function: "f.ns", Owner: "owner", Maker: "maker"} }

// work makes all ticks that come, as a coordinator does, until ctx ends.
func (m *member) work(ctx context.Context, t testing.TB, late time.Duration) {
	for ctx.Err() == nil {
		for _, p := range m.Due(time.Now(), late) {
			for p.Cursor.Next != 0 && p.Cursor.Next <= time.Now().UnixMilli() {
				body, err := m.Tick(ctx, &p)
				if err == nil {
					at := p.Cursor.Next
					if string(body) != fmt.Sprintf("sealed %d", at) {
						t.Errorf("tick %d is %q", at, body)
					}
					err = m.Make(ctx, &p, call(fmt.Sprintf("%s-%d", p.ID, at)), body)
				}
				if err != nil && !errors.Is(err, ErrFenced) && ctx.Err() == nil && api.CodeOf(err) != api.CodeUnavailable {
					t.Error(err)
				}
				if err != nil {
					break
				}
			}
		}
		sleep(ctx, 5*time.Millisecond)
	}
}

func (m *member) plan(t testing.TB, id string) Plan {
	t.Helper()
	p, err := m.readPlan(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// keys lists the names below a prefix.
func keys(t testing.TB, etcd *clientv3.Client, prefix string) (names []string) {
	t.Helper()
	res, err := etcd.Get(t.Context(), prefix, clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		t.Fatal(err)
	}
	for _, kv := range res.Kvs {
		names = append(names, string(kv.Key[len(prefix):]))
	}
	return names
}

// Three coordinators, of which one dies and comes back, make each tick once; all of
// them look at all ticks at once, which is worse than they do.
func TestThreeCoordinatorsMakeEachTickOnce(t *testing.T) {
	etcd, prefix := etcdOf(t, t.TempDir())
	members := []*member{open(t, etcd, prefix, "a"), open(t, etcd, prefix, "b"), open(t, etcd, prefix, "c")}
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer func() { stop(); wg.Wait() }()
	for _, m := range members {
		wg.Go(func() { m.work(ctx, t, 0) })
	}
	const plans, ticks = 5, 60
	from := time.Now().Add(100 * time.Millisecond).Truncate(time.Millisecond)
	for i := range plans {
		if _, err := members[i%3].put(t, plan(fmt.Sprint("p", i)), PlanNew, from, 50*time.Millisecond, ticks); err != nil {
			t.Fatal(err)
		}
	}
	time.AfterFunc(500*time.Millisecond, members[1].kill)
	eventually(t, "all ticks are made", func() bool {
		for i := range plans {
			if p := members[0].plan(t, fmt.Sprint("p", i)); p.Cursor.Next != 0 {
				return false
			}
		}
		return true
	})
	for i := range plans {
		p := members[0].plan(t, fmt.Sprint("p", i))
		if c := p.Cursor; c.Made != ticks || c.Missed != 0 || c.Refused != 0 || c.Left != 0 || c.Last != p.Until() {
			t.Errorf("plan %d: %+v", i, c)
		}
	}
	calls := keys(t, etcd, prefix+"async/w/call/")
	if len(calls) != plans*ticks {
		t.Errorf("%d calls, want %d", len(calls), plans*ticks)
	}
	for i := range plans {
		for j := range ticks {
			if id := fmt.Sprintf("p%d-%d", i, from.Add(time.Duration(j)*50*time.Millisecond).UnixMilli()); !slices.Contains(calls, id) {
				t.Error("no call", id)
			}
		}
	}
	if left := keys(t, etcd, prefix+"async/tick/"); len(left) != 0 {
		t.Error("ticks were left behind:", left)
	}
}

// Of a plan one coordinator is told at once, the others only when nobody made it.
func TestPlansAreOneCoordinatorsUntilTheyAreLate(t *testing.T) {
	etcd, prefix := etcdOf(t, t.TempDir())
	a, b := open(t, etcd, prefix, "a"), open(t, etcd, prefix, "b")
	for i := range 8 {
		if _, err := a.put(t, plan(fmt.Sprint("p", i)), PlanNew, time.Now().Add(-time.Minute), time.Second, 3); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "both know", func() bool { return len(a.Plans(nil)) == 8 && len(b.Plans(nil)) == 8 })
	eventually(t, "each is one's", func() bool {
		return len(a.Due(time.Now(), time.Hour))+len(b.Due(time.Now(), time.Hour)) == 8
	})
	if n := len(b.Due(time.Now(), time.Second)); n != 8 {
		t.Error("late ones are everybody's:", n)
	}
	b.kill()
	eventually(t, "the other's are taken over", func() bool { return len(a.Due(time.Now(), time.Hour)) == 8 })
}

func TestTopUpGoesOnAndReplaceKeepsWhatWasMade(t *testing.T) {
	etcd, prefix := etcdOf(t, t.TempDir())
	m := open(t, etcd, prefix, "a")
	from := time.Now().Add(-10 * time.Second).Truncate(time.Second)
	if _, err := m.put(t, plan("p"), PlanNew, from, time.Second, 20); err != nil {
		t.Fatal(err)
	}
	if _, err := m.put(t, plan("p"), PlanNew, from, time.Second, 20); api.CodeOf(err) != api.CodeConflict {
		t.Error("a second one of its name:", err)
	}
	if _, err := m.put(t, plan("p"), PlanAppend, from.Add(19*time.Second), time.Second, 5); api.CodeOf(err) != api.CodeConflict {
		t.Error("a tick twice:", err)
	}
	other := plan("p")
	other.Maker = "somebody"
	if _, err := m.put(t, other, PlanReplace, from, time.Second, 20); api.CodeOf(err) != api.CodeForbidden {
		t.Error("another's:", err)
	}
	p := m.plan(t, "p")
	for i := range 5 {
		if err := m.Make(t.Context(), &p, call(fmt.Sprint("c", i)), []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	if p.Cursor.Left != 15 || p.Cursor.Next != from.Add(5*time.Second).UnixMilli() {
		t.Fatalf("%+v", p.Cursor)
	}
	stale := p
	p, err := m.put(t, plan("p"), PlanAppend, from.Add(20*time.Second), time.Second, 5)
	if err != nil || p.Cursor.Left != 20 || p.Cursor.Next != from.Add(5*time.Second).UnixMilli() || p.Until() != from.Add(24*time.Second).UnixMilli() {
		t.Fatalf("%+v %v", p, err)
	}
	if err := m.Make(t.Context(), &stale, call("late"), []byte("x")); !errors.Is(err, ErrFenced) {
		t.Error("by an old picture:", err)
	}
	// What replaces begins before what was made last, and neither repeats nor leaves out.
	if p, err = m.put(t, plan("p"), PlanReplace, from.Add(2*time.Second), 2*time.Second, 10); err != nil {
		t.Fatal(err)
	}
	if p.Cursor.Next != from.Add(6*time.Second).UnixMilli() || p.Cursor.Left != 8 || p.Cursor.Made != 5 || len(p.Parts) != 1 {
		t.Fatalf("%+v", p)
	}
	if n, err := m.Pass(t.Context(), &p, from.Add(11*time.Second).UnixMilli(), nil); err != nil || n != 3 || p.Cursor.Missed != 3 || p.Cursor.Next != from.Add(12*time.Second).UnixMilli() {
		t.Fatalf("%d, %+v, %v", n, p.Cursor, err)
	}
	if n, err := m.Pass(t.Context(), &p, p.Cursor.Next, &Failure{Code: api.CodeStaleRevision}); err != nil || n != 1 || p.Cursor.Refused != 1 || p.Cursor.Why == nil {
		t.Fatalf("%d, %+v, %v", n, p.Cursor, err)
	}
	if left := keys(t, etcd, prefix+"async/tick/"); len(left) != p.Cursor.Left || len(left) != 4 {
		t.Errorf("%d are left: %v", p.Cursor.Left, left)
	}
	if err := m.Make(t.Context(), &p, call("c1"), []byte("x")); api.CodeOf(err) != api.CodeConflict {
		t.Error("an id that is taken:", err)
	}
	if err := m.RemovePlan(t.Context(), "p"); err != nil {
		t.Fatal(err)
	}
	if left := keys(t, etcd, prefix+"async/tick/"); len(left) != 0 {
		t.Error("left:", left)
	}
	if _, err := m.put(t, plan("p"), PlanNew, time.Now(), time.Second, 1); api.CodeOf(err) != api.CodeConflict {
		t.Error("a request to make it that was repeated after it was removed:", err)
	}
}

func TestPlansAreBounded(t *testing.T) {
	etcd, prefix := etcdOf(t, t.TempDir())
	m := open(t, etcd, prefix, "a", func(c *Config) {
		c.Plans = PlanBounds{Ticks: 10, Parts: 32, Size: 300, Each: 3, Bytes: 500, Total: 700}
	})
	now := time.Now()
	try := func(id, maker, owner string, mode string, from time.Time, n int) error {
		p := plan(id)
		p.Maker, p.Owner = maker, owner
		_, err := m.put(t, p, mode, from, time.Second, n)
		known := func() bool { _, err := m.Plan(id); return err == nil }
		if err == nil {
			eventually(t, "it is known", known)
		}
		return err
	}
	for _, test := range []struct {
		what, id, maker, owner, mode string
		from                         time.Time
		n                            int
		want                         api.Code
	}{
		{"none", "a", "m", "o", PlanNew, now, 0, api.CodeInvalid},
		{"too many", "a", "m", "o", PlanNew, now, 11, api.CodeTooLarge},
		{"as many as may be", "a", "m", "o", PlanNew, now, 10, ""},
		{"more of it", "a", "m", "o", PlanAppend, now.Add(time.Minute), 1, api.CodeTooLarge},
		{"a second", "b", "m", "p", PlanNew, now, 10, ""},
		{"over the maker's bytes", "c", "m", "q", PlanNew, now, 10, api.CodeBusy},
		{"over the owner's bytes", "c", "n", "o", PlanNew, now, 10, ""},
		{"over the owner's bytes, all the same", "d", "l", "o", PlanNew, now, 10, api.CodeBusy},
		{"over all bytes", "d", "l", "r", PlanNew, now, 10, api.CodeBusy},
	} {
		if err := try(test.id, test.maker, test.owner, test.mode, test.from, test.n); api.CodeOf(err) != test.want && (err != nil || test.want != "") {
			t.Errorf("%s: %v", test.what, err)
		}
	}
	for i := range 4 {
		if err := try(fmt.Sprint("s", i), "x", "y", PlanNew, now, 1); (i == 3) != (api.CodeOf(err) == api.CodeBusy) || i < 3 && err != nil {
			t.Errorf("%d schedules of one maker: %v", i, err)
		}
	}
	u, err := m.Upload(t.Context(), "revision")
	if err != nil {
		t.Fatal(err)
	}
	if err := u.Add(t.Context(), 5, make([]byte, MaxInline+1)); api.CodeOf(err) != api.CodeTooLarge {
		t.Error(err)
	}
	if err := errors.Join(u.Add(t.Context(), 5, nil), u.Add(t.Context(), 6, nil)); err != nil {
		t.Error(err)
	}
	if err := u.Add(t.Context(), 6, nil); api.CodeOf(err) != api.CodeInvalid {
		t.Error("a tick twice:", err)
	}
	u.Abort(t.Context())
}

// What a coordinator that died had taken of an upload is forgotten, and so are plans
// that ran out long ago.
func TestUnfinishedUploadsAndOldPlansAreForgotten(t *testing.T) {
	etcd, prefix := etcdOf(t, t.TempDir())
	var mu sync.Mutex
	ahead := time.Duration(0)
	m := open(t, etcd, prefix, "a", func(c *Config) {
		c.Now = func() time.Time { mu.Lock(); defer mu.Unlock(); return time.Now().Add(ahead) }
	})
	u, err := m.Upload(t.Context(), "revision")
	if err != nil {
		t.Fatal(err)
	}
	for i := range 2*batchOps + 1 {
		if err := u.Add(t.Context(), int64(i+1), []byte("sealed")); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(keys(t, etcd, prefix+"async/tick/")); n != 2*batchOps {
		t.Fatal(n)
	}
	if _, err := m.put(t, plan("p"), PlanNew, time.Now(), time.Second, 3); err != nil {
		t.Fatal(err)
	}
	jump := func(d time.Duration) { mu.Lock(); ahead = d; mu.Unlock() }
	jump(uploadLife + time.Second)
	eventually(t, "the upload is forgotten", func() bool { return len(keys(t, etcd, prefix+"async/tick/")) == 3 })
	if _, err := u.Commit(t.Context(), plan("late"), PlanNew); err == nil {
		t.Error("it was committed all the same")
	}
	if p := m.plan(t, "p"); p.Cursor.Left != 3 {
		t.Errorf("%+v", p)
	}
	jump(m.cfg.KeepDead + time.Hour)
	eventually(t, "the plan is forgotten", func() bool {
		return len(keys(t, etcd, prefix+"async/w/plan/"))+len(keys(t, etcd, prefix+"async/tick/"))+len(keys(t, etcd, prefix+"async/w/cursor/")) == 0
	})
}
