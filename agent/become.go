package agent

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/faasd-sec/faasd-sec/agent/launcher"
	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed"
)

// restAfter is how long an agent waits for its function before it gives back
// what only its own start needed.
const restAfter = 200 * time.Millisecond

// awaitBind waits for the node's Bind. A sandbox may wait for hours with many
// others, so an agent that is not wanted at once makes itself small, and then
// ready for what it will be wanted for: again with each new statement, for what
// is not used for long goes back to the system.
func (a *Agent) awaitBind(ctx context.Context) (*api.Bind, error) {
	rest := time.NewTimer(restAfter)
	defer rest.Stop()
	for {
		select {
		case b := <-a.binds:
			return b, nil
		case <-a.restated:
			rest.Reset(restAfter)
		case <-rest.C:
			if a.cfg.Rest == nil {
				continue
			}
			a.cfg.Rest()
			if err := a.rehearse(func() bool { return len(a.binds) == 0 && ctx.Err() == nil }); err != nil {
				a.log.Warn("rehearsal", "err", err) // the start will be slower, or say more
			}
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// awaitMounted waits until the function may run, and checks its ids.
func (a *Agent) awaitMounted(ctx context.Context) (*api.Mounted, error) {
	var m *api.Mounted
	select {
	case m = <-a.mounted:
	case <-ctx.Done():
		return nil, waited(ctx, "for the function's root")
	}
	own := a.cfg.Launcher
	switch {
	case m.UID <= 0 || m.GID <= 0:
		return nil, api.Errorf(api.CodeStartFailed, "the node says the function is %d:%d: it never runs as root", m.UID, m.GID)
	case !own.Blank && (m.UID != own.UID || m.GID != own.GID):
		return nil, api.Errorf(api.CodeStartFailed,
			"the node says the function is %d:%d, but the launcher runs as %d:%d", m.UID, m.GID, own.UID, own.GID)
	}
	return m, nil
}

// bind waits for the node's Bind, takes the function's keys and its bundle, and
// starts it. Code that is not sealed need not wait for the keys: it starts while
// they are on their way, and sees nothing of a caller before they are here.
func (a *Agent) bind(ctx context.Context) (*function, error) {
	b, err := a.awaitBind(ctx)
	if err != nil {
		return nil, err
	}
	n, err := newBinding(b)
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	a.bound = n
	a.mu.Unlock()
	deadline, cancel := context.WithTimeout(ctx, n.start)
	defer cancel()
	f := newFunction(&a.cfg, n, a.launcher, a.logs, a.oom)
	f.kit, a.kit = a.kit, nil
	defer func() { f.kit.close() }() // of a function that takes none
	m, err := a.awaitMounted(deadline)
	if err != nil {
		return f, err
	}
	enter := launcher.EnterOptions{FilterOptions: launcher.FilterOptions{DenyInet: n.network == "unix" && !m.Inet}}
	if a.cfg.Launcher.Blank {
		enter.Root, enter.UID, enter.GID = api.FunctionRoot, m.UID, m.GID
	}
	if n.plain != nil {
		return f, a.startPlain(deadline, f, enter)
	}
	f.looked = make(chan struct{})
	// The launcher is asked first: it works while this process opens the keys.
	asked := make(chan struct{})
	tell := sync.OnceFunc(func() { close(asked) })
	defer tell()
	unlocked := make(chan error, 1)
	go func() {
		<-asked
		err := a.unlock(deadline, n, f)
		if err != nil {
			cancel()
		}
		unlocked <- err
		if err != nil {
			return
		}
		select {
		case w := <-a.waiting: // it was sent before the keys
			f.foresee(w.Grant)
		default:
			close(f.looked)
		}
	}()
	open := n.desc.Config.Bundle.IsZero()
	entered := a.launcher.Enter(deadline, enter)
	if open {
		err = f.start(deadline, nil, tell)
	}
	tell()                              // of what is sealed nothing runs before the keys are here
	if eerr := entered(); eerr != nil { // which is why the start failed, too
		err = fmt.Errorf("prepare the launcher: %w", eerr)
	}
	if err != nil && deadline.Err() == nil {
		cancel()
		<-unlocked
		return f, err
	}
	if refused := <-unlocked; refused != nil {
		return f, refused
	}
	if err != nil || open {
		return f, err
	}
	env, err := a.askBundle(deadline, n)
	if err != nil {
		return f, err
	}
	return f, f.start(deadline, env, nil)
}

// unlock takes the keys and opens what they are for: requests, replies and logs.
func (a *Agent) unlock(ctx context.Context, n *binding, f *function) error {
	if err := a.awaitKeys(ctx, n); err != nil {
		return err
	}
	grants, err := n.grantCache(&a.cfg)
	if err != nil {
		return err
	}
	seal, err := sealLogs(n, grants, a.cfg.Now)
	if err != nil {
		return err
	}
	a.logs.to(seal) // from here on the owner hears what goes wrong
	return f.unlock(grants)
}

// grantCache is for the grants of replies and logs.
func (n *binding) grantCache(cfg *Config) (*sealed.GrantCache, error) {
	gc := sealed.DefaultGrantCacheConfig()
	gc.Size, gc.Clock, gc.Random = 512, cfg.Now, cfg.Random
	return sealed.NewGrantCache(gc)
}

// restate makes the statement about this sandbox's key anew.
func (a *Agent) restate() error {
	st, err := statement(a.ephemeral.PublicKey(), a.cfg.Random, a.cfg.Now())
	if err != nil {
		return err
	}
	a.mu.Lock()
	a.statement = st
	a.mu.Unlock()
	return nil
}

// awaitKeys waits for what the broker released, and opens it.
func (a *Agent) awaitKeys(ctx context.Context, n *binding) error {
	select {
	case c := <-a.keys:
		if p := c.Refused; p != nil {
			return &api.Error{Code: p.Code, Message: p.Detail, Field: p.Field, Remedy: p.Remedy}
		}
		if err := n.takeKeys(&a.cfg, a.ephemeral, c.Keys.Sealed); err != nil {
			return err
		}
		a.mu.Lock()
		a.statement = nil
		a.mu.Unlock()
		return nil
	case <-ctx.Done():
		return waited(ctx, "for the function's keys")
	}
}
