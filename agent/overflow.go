package agent

import (
	"io"

	"github.com/faasd-sec/faasd-sec/sealed/unseal"
)

// overflow holds a process's output until it has ended: up to unseal.HoldLimit
// bytes in memory, all of both against a budget.
type overflow struct {
	budget *budget
	mem    []byte
	held   int64
	at     int
	rest   *spool
}

// Write implements io.Writer.
func (o *overflow) Write(p []byte) (int, error) {
	if o.rest == nil && len(o.mem)+len(p) <= unseal.HoldLimit {
		for o.held < int64(len(o.mem)+len(p)) {
			if !o.budget.take(spoolStep) {
				return 0, spoolSpent()
			}
			o.held += spoolStep
		}
		o.mem = append(o.mem, p...)
		return len(p), nil
	}
	if o.rest == nil {
		s, err := newSpool(o.budget)
		if err != nil {
			return 0, err
		}
		o.rest = s
	}
	return o.rest.Write(p)
}

// rewind makes it ready to be read.
func (o *overflow) rewind() error {
	if o.rest == nil {
		return nil
	}
	_, err := o.rest.Seek(0, io.SeekStart)
	return err
}

// Read implements io.Reader.
func (o *overflow) Read(p []byte) (int, error) {
	if o.at < len(o.mem) {
		n := copy(p, o.mem[o.at:])
		o.at += n
		return n, nil
	}
	if o.rest == nil {
		return 0, io.EOF
	}
	return o.rest.Read(p)
}

// Buffered implements resultBody: everything is here.
func (o *overflow) Buffered() int { return 1 }

// Finish implements resultBody.
func (o *overflow) Finish() error { return nil }

// Close wipes and frees it.
func (o *overflow) Close() error {
	clear(o.mem)
	o.mem = nil
	if o.held > 0 {
		o.budget.give(o.held)
		o.held = 0
	}
	if o.rest == nil {
		return nil
	}
	return o.rest.Close()
}
