package node

import (
	"context"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
)

const freezeTimeout = 5 * time.Second

// freeze stops the processes of an idle sandbox where they are: it costs memory
// from then on, and nothing else. A call meanwhile waits for it and thaws.
func (n *Node) freeze(s *sandbox) {
	n.mu.Lock()
	if s.state != ready || s.inFlight > 0 || s.retiring || n.draining {
		n.mu.Unlock()
		return
	}
	ctx, cancel := context.WithTimeout(n.life, freezeTimeout)
	defer cancel()
	s.state, s.unfreeze = frozen, cancel
	n.mu.Unlock()
	s.frost.Lock()
	n.mu.Lock()
	still, b := s.state == frozen && s.melting == nil, s.box
	n.mu.Unlock()
	var err error
	if still {
		s.iced = true // also after an error: part of it may stand
		err = b.runtime().Freeze(ctx)
	}
	s.frost.Unlock()
	if err == nil || n.life.Err() != nil {
		return
	}
	n.mu.Lock()
	mine := s.state == frozen && s.melting == nil // else a call or the end of s came in between
	if mine {
		s.melting, s.unfreezable = make(chan struct{}), true
	}
	n.mu.Unlock()
	if !mine {
		return
	}
	n.log.Warn("sandbox could not be frozen", "sandbox", s.id, "err", err)
	if err := n.melt(s); err != nil {
		n.remove(s, err.Error())
	}
}

// thaw makes a frozen sandbox ready, for an invocation that holds a slot in it
// already. Of several callers one does the work. mu is held when it is called
// and not when it returns.
func (n *Node) thaw(ctx context.Context, s *sandbox) error {
	melting := s.melting
	mine := melting == nil
	if mine {
		melting = make(chan struct{})
		s.melting = melting
		s.unfreeze() // who freezes it just now need not finish
	}
	n.mu.Unlock()
	if mine {
		return n.melt(s)
	}
	select {
	case <-melting:
	case <-ctx.Done():
		return api.Errorf(api.CodeDeadline, "the function was not thawed in time")
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if s.state != ready {
		return errNotThawed
	}
	return nil
}

var errNotThawed = api.Errorf(api.CodeStartFailed, "the sandbox could not be thawed")

// melt thaws s, whose melting the caller has set.
func (n *Node) melt(s *sandbox) error {
	began := time.Now()
	err := n.letGo(s)
	n.mu.Lock()
	close(s.melting)
	s.melting = nil
	if err == nil && s.state == frozen {
		s.state = ready
	}
	if err == nil && s.state != ready {
		err = errNotThawed // it was stopped meanwhile
	}
	n.mu.Unlock()
	if err != nil {
		n.log.Warn("sandbox could not be thawed", "sandbox", s.id, "err", err)
		return api.Wrap(api.CodeStartFailed, err, "the sandbox could not be thawed")
	}
	n.met.thawSeconds.Observe(time.Since(began).Seconds())
	n.touch()
	return nil
}

// letGo lets the processes of s go on if they stand.
func (n *Node) letGo(s *sandbox) error {
	s.frost.Lock()
	defer s.frost.Unlock()
	if !s.iced {
		return nil
	}
	// Also while the node ends: a frozen agent would not hear what it is told.
	ctx, cancel := cleanupContext(freezeTimeout)
	defer cancel()
	n.mu.Lock()
	b := s.box
	n.mu.Unlock()
	if err := b.runtime().Thaw(ctx); err != nil {
		return err
	}
	s.iced = false
	return nil
}
