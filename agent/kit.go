package agent

import (
	"fmt"
	"os"
)

// kit is what every function that serves by itself is started with, whatever it
// is: a sandbox that waits has it ready. Nobody but the function gets any of it.
type kit struct {
	listen   *os.File // the socket that it may serve on
	addr     string   // of it
	null     *os.File // its standard input
	out, err pipePair
}

// pipePair is a pipe; an end is nil once somebody has taken it.
type pipePair struct{ ours, theirs *os.File }

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
	for _, f := range []*os.File{k.listen, k.null, k.out.ours, k.out.theirs, k.err.ours, k.err.theirs} {
		if f != nil {
			_ = f.Close()
		}
	}
}
