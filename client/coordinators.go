package client

import (
	"context"
	"errors"
	"net"
	"net/http"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/upstream"
)

// openOthers makes entries for the cluster's other coordinators.
func (c *Client) openOthers(direct bool) error {
	c.entries = []*entry{c.entry}
	for _, s := range c.cfg.Others {
		u, err := parseGateway("gateway", s)
		if err != nil {
			return err
		}
		c.entries = append(c.entries, newEntry(u, direct))
	}
	return nil
}

// entryAt is the i-th coordinator to try, counted from the one that served last.
func (c *Client) entryAt(i int) (*entry, int) {
	n := (int(c.serving.Load()) + i) % len(c.entries)
	return c.entries[n], n
}

// atCoordinators makes an exchange with the coordinator that served last and,
// where that does not take it, once with the next.
func (c *Client) atCoordinators(ctx context.Context, f *function, req Request, in *input) (*Response, error) {
	again := func(err error) bool { return (untaken(err) || c.cfg.Resend && broken(err)) && in.rewind() }
	return askNext(ctx, c, again, func(to *entry) (*Response, error) { return c.exchange(ctx, to, f, req, in) })
}

// askNext asks the coordinator that served last and, where again says so of its
// error, once the next, which then is the one that served last.
func askNext[T any](ctx context.Context, c *Client, again func(error) bool, ask func(to *entry) (T, error)) (T, error) {
	first, _ := c.entryAt(0)
	res, err := ask(first)
	if err == nil || len(c.entries) == 1 || ctx.Err() != nil || !again(err) {
		return res, err
	}
	next, n := c.entryAt(1)
	if res, err = ask(next); err == nil {
		c.serving.Store(int32(n))
	}
	return res, err
}

// send makes a management request, as atCoordinators does.
func (c *Client) send(ctx context.Context, k call) (*http.Response, error) {
	again := func(err error) bool { return untaken(err) || k.method == http.MethodGet && broken(err) }
	return askNext(ctx, c, again, func(to *entry) (*http.Response, error) { return c.sendTo(ctx, to.url, k) })
}

// untaken reports whether an error says that a coordinator did nothing with a
// request: nobody was there, or it said that it cannot serve now.
func untaken(err error) bool { return undialled(err) || refused(err) }

// undialled: no connection was had, so nothing was sent.
func undialled(err error) bool {
	var oe *net.OpError
	return errors.Is(err, upstream.ErrDial) || errors.As(err, &oe) && oe.Op == "dial"
}

// refused: the coordinator answered that it cannot serve now, which none does
// once a byte reached an agent.
func refused(err error) bool {
	told, unavailable := unavailability(err)
	return unavailable && told
}

// broken: the connection ended before any byte of the answer. What became of
// the request is not known.
func broken(err error) bool {
	told, unavailable := unavailability(err)
	return unavailable && !told
}

// unavailability tells whether err is of a service that is not to be had, and
// whether that was told in an answer: what was found out here has a cause.
func unavailability(err error) (told, unavailable bool) {
	var e *api.Error
	if !errors.As(err, &e) || e.Code != api.CodeUnavailable && e.Code != api.CodeDraining {
		return false, false
	}
	return e.Err == nil, true
}
