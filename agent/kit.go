package agent

import (
	"fmt"
	"net"
	"os"

	"github.com/faasd-sec/faasd-sec/nbio"
)

// kit is what every function that serves by itself is started with, whatever it
// is: a sandbox that waits has it ready. Nobody but the function gets any of it.
type kit struct {
	listen   *os.File // the socket that it may serve on
	addr     string   // of it
	conn     net.Conn // to it: a function accepts it when it serves
	null     *os.File // its standard input
	out, err pipePair
}

// pipePair is a pipe; an end is nil once somebody has taken it.
type pipePair struct{ ours, theirs *os.File }

// dialAbstract connects to the function's socket, which nobody may serve on yet.
func dialAbstract(addr string) (net.Conn, error) {
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Net: "unix", Name: addr})
	if err != nil {
		return nil, fmt.Errorf("connect to the function: %w", err)
	}
	return nbio.Wrap(c), nil
}

func newKit() (_ *kit, retErr error) {
	k := &kit{}
	defer func() {
		if retErr != nil {
			k.close()
		}
	}()
	var err error
	if k.listen, k.addr, err = listenAbstract(); err != nil {
		return nil, err
	}
	if k.conn, err = dialAbstract(k.addr); err != nil {
		return nil, err
	}
	if k.null, err = os.OpenFile(os.DevNull, os.O_RDONLY, 0); err != nil {
		return nil, err
	}
	for _, p := range []*pipePair{&k.out, &k.err} {
		if p.ours, p.theirs, err = pipeTo(false); err != nil {
			return nil, fmt.Errorf("pipe for the log: %w", err)
		}
	}
	return k, nil
}

// close closes what nobody took. A nil kit has nothing.
func (k *kit) close() {
	if k == nil {
		return
	}
	if k.conn != nil {
		_ = k.conn.Close()
	}
	for _, f := range []*os.File{k.listen, k.null, k.out.ours, k.out.theirs, k.err.ours, k.err.theirs} {
		if f != nil {
			_ = f.Close()
		}
	}
}
