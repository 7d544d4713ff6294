package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/faasd-sec/faasd-sec/api"
)

// heldTerm is one leadership as its holder sees it.
type heldTerm struct {
	fence int64
	ctx   context.Context
}

// campaignFor leads in the background and tells each term; stop ends it and
// returns what Lead did.
func campaignFor(t *testing.T, s *Store, holder string) (terms <-chan heldTerm, stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	won, done := make(chan heldTerm, 16), make(chan error, 1)
	go func() {
		done <- s.Lead(ctx, "tests", holder, func(ctx context.Context, fence int64) error {
			won <- heldTerm{fence, ctx}
			<-ctx.Done()
			return ctx.Err()
		})
	}()
	stopped := false
	stop = func() error {
		if stopped {
			return nil
		}
		stopped = true
		cancel()
		return <-done
	}
	t.Cleanup(func() { stop() })
	return won, stop
}

func nextTerm(t *testing.T, terms <-chan heldTerm, within time.Duration) heldTerm {
	t.Helper()
	select {
	case term := <-terms:
		return term
	case <-time.After(within):
		t.Fatalf("no leadership within %v", within)
		return heldTerm{}
	}
}

func TestALoneMemberLeadsAtOnceAndResigns(t *testing.T) {
	s, ctx := testStore(t), t.Context()
	terms, stop := campaignFor(t, s, "a")
	first := nextTerm(t, terms, 4*leadTTL)
	l, err := s.Leader(ctx, "tests")
	if err != nil || l.Holder != "a" || l.Fence != first.fence {
		t.Fatalf("leader is %+v, %v; want a with fence %d", l, err, first.fence)
	}
	if err := stop(); !errors.Is(err, context.Canceled) {
		t.Fatalf("Lead returned %v", err)
	}
	_, err = s.Leader(ctx, "tests")
	wantCode(t, err, api.CodeNotFound)

	// What run returns while it leads is what Lead returns.
	enough := errors.New("enough")
	err = s.Lead(ctx, "tests", "b", func(_ context.Context, fence int64) error {
		if fence <= first.fence {
			t.Errorf("fence %d after %d", fence, first.fence)
		}
		return enough
	})
	if err != enough {
		t.Fatalf("Lead returned %v", err)
	}
	wantCode(t, s.Lead(ctx, "No Name", "b", nil), api.CodeInvalid)
}

func TestLeadershipOutlastsItsLease(t *testing.T) {
	s := testStore(t)
	terms, _ := campaignFor(t, s, "a")
	first := nextTerm(t, terms, 4*leadTTL)
	select {
	case <-first.ctx.Done():
		t.Fatal("a leader that could renew lost its leadership")
	case again := <-terms:
		t.Fatalf("a second term %d while the first holds", again.fence)
	case <-time.After(2 * leadTTL):
	}
}

func TestALeaderThatIsCutOffEndsBeforeTheNextBegins(t *testing.T) {
	e := startEtcd(t)
	cut, other := e.open(t), e.direct(t)
	terms, _ := campaignFor(t, cut, "cut")
	first := nextTerm(t, terms, 4*leadTTL)
	others, stop := campaignFor(t, other, "other")
	e.setCut(true)
	second := nextTerm(t, others, 4*leadTTL)
	if first.ctx.Err() == nil {
		t.Fatal("two lead at once")
	}
	if second.fence <= first.fence {
		t.Fatalf("fence %d after %d", second.fence, first.fence)
	}
	for fence, may := range map[int64]bool{first.fence: false, second.fence: true} {
		leads, err := other.Leads("tests", fence)
		if err != nil {
			t.Fatal(err)
		}
		res, err := other.client.Txn(t.Context()).If(leads).Then(clientv3.OpPut("/faasd-sec/settings/late", "x")).Commit()
		if err != nil || res.Succeeded != may {
			t.Fatalf("a write with fence %d: %v, %v", fence, res, err)
		}
	}
	e.setCut(false)
	stop()
	third := nextTerm(t, terms, 4*leadTTL)
	if third.fence <= second.fence {
		t.Fatalf("fence %d after %d", third.fence, second.fence)
	}
}

const leaderDirEnv, leaderEtcdEnv = "FAASD_SEC_TEST_LEADER_DIR", "FAASD_SEC_TEST_LEADER_ETCD"

// leadUntilKilled is the child process: it says so when it leads.
func leadUntilKilled() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cfg := DefaultConfig(os.Getenv(leaderDirEnv), slog.New(slog.NewTextHandler(os.Stderr, nil)))
	if e := os.Getenv(leaderEtcdEnv); e != "" {
		cfg.Endpoints = []string{e}
	}
	s, err := Open(ctx, cfg)
	if err == nil {
		err = s.Lead(ctx, "tests", "killed", func(ctx context.Context, fence int64) error {
			fmt.Println(fence)
			<-ctx.Done()
			return ctx.Err()
		})
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(2)
}

// killedLeader starts a process that leads, kills it once it does, and returns
// its fence.
func killedLeader(t *testing.T, env string) int64 {
	t.Helper()
	child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^$")
	child.Env = append(os.Environ(), env)
	child.Stderr = t.Output()
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	var fence int64
	_, err = fmt.Fscan(out, &fence)
	child.Process.Kill()
	child.Wait()
	if err != nil {
		t.Fatalf("the child did not lead: %v", err)
	}
	return fence
}

func TestKilledLeaderIsSucceeded(t *testing.T) {
	e := startEtcd(t)
	fence := killedLeader(t, leaderEtcdEnv+"=unix://"+e.unix)
	terms, _ := campaignFor(t, e.direct(t), "next")
	if next := nextTerm(t, terms, 4*leadTTL); next.fence <= fence {
		t.Fatalf("fence %d after %d", next.fence, fence)
	}
}

func TestALoneMemberDoesNotWaitForItsKilledPredecessor(t *testing.T) {
	for try := 1; ; try++ { // a busy machine may itself take as long
		dir := t.TempDir()
		fence := killedLeader(t, leaderDirEnv+"="+dir)
		terms, _ := campaignFor(t, openStore(t, testConfig(t, dir)), "next")
		select {
		case next := <-terms:
			if next.fence <= fence {
				t.Fatalf("fence %d after %d", next.fence, fence)
			}
			return
		case <-time.After(leadTTL - time.Second):
			if try == 3 {
				t.Fatalf("it waited for %v and more", leadTTL-time.Second)
			}
		}
	}
}
