package cgroups

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Counters are all that a Meter reads of a group in one look. What the kernel
// does not tell is zero.
type Counters struct {
	CPU              time.Duration // processor time used in all
	Throttled        time.Duration // held back by the CPU quota in all
	Periods          int64         // of the quota, in which something ran
	ThrottledPeriods int64         // of these, cut short
	Memory           int64         // bytes now
	PIDs             int64         // processes and threads now
	OOMKills         int64         // in all
	InnerMemory      int64         // of the inner groups alone, bytes now
	InnerPIDs        int64         // of the inner groups alone
	ReadBytes        int64         // from block devices in all
	WriteBytes       int64         // to block devices in all
}

// Meter reads a group's counters over and over: its files stay open, so that a
// look costs one call of the kernel for each and no look-up of a path. Open files
// do not keep a group from being deleted. A Meter is for one goroutine.
type Meter struct {
	path  string
	files []meterFile
	buf   []byte
}

type meterFile struct {
	name string
	fd   int
	read func(c *Counters, b []byte) error
}

// Meter opens the group's counters, and memory and pids of inner, groups inside
// it. OOM kills are counted in all of them: a v1 kernel counts a kill only in the
// group whose limit was passed. Counters of controllers that the group lacks, block I/O
// mostly, are left out; CPU, memory and pids must be there. Close it.
func (g Group) Meter(inner ...Group) (_ *Meter, retErr error) {
	m := &Meter{path: g.path, buf: make([]byte, 4096)}
	defer func() {
		if retErr != nil {
			m.Close()
		}
	}()
	v2 := g.fs.mode == V2
	add := func(of Group, c Controller, name string, optional bool, read func(*Counters, []byte) error) error {
		if of.fs.dir(c, of.path) == "" && optional {
			return nil
		}
		fd, err := open(of.file(c, name), unix.O_RDONLY)
		if optional && errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("meter cgroup %s: %w", of.path, err)
		}
		m.files = append(m.files, meterFile{of.file(c, name), fd, read})
		return nil
	}
	memory, oom, io := "memory.usage_in_bytes", "memory.oom_control", "blkio.throttle.io_service_bytes"
	if v2 {
		memory, oom, io = "memory.current", "memory.events", "io.stat"
	} else {
		if err := add(g, CPUAcct, "cpuacct.usage", false, func(c *Counters, b []byte) (err error) {
			ns, err := integer(b)
			c.CPU = time.Duration(ns)
			return err
		}); err != nil {
			return nil, err
		}
	}
	for _, child := range inner {
		err := errors.Join(
			add(child, Memory, memory, true, func(c *Counters, b []byte) error { n, err := integer(b); c.InnerMemory += n; return err }),
			add(child, PIDs, "pids.current", true, func(c *Counters, b []byte) error { n, err := integer(b); c.InnerPIDs += n; return err }))
		if err == nil && !v2 { // v2 counts a kill in the groups above too
			err = add(child, Memory, oom, true, readKills)
		}
		if err != nil {
			return nil, err
		}
	}
	return m, errors.Join(
		add(g, CPU, "cpu.stat", false, readCPUStat),
		add(g, Memory, memory, false, func(c *Counters, b []byte) (err error) { c.Memory, err = integer(b); return err }),
		add(g, Memory, oom, false, readKills),
		add(g, PIDs, "pids.current", false, func(c *Counters, b []byte) (err error) { c.PIDs, err = integer(b); return err }),
		add(g, BlockIO, io, true, readIO),
	)
}

// Read looks at all counters, one after the other. Once the group is deleted it
// fails with ENODEV or fs.ErrNotExist.
func (m *Meter) Read() (c Counters, err error) {
	for _, f := range m.files {
		n, err := retry(func() (int, error) { return unix.Pread(f.fd, m.buf, 0) })
		for err == nil && n == len(m.buf) { // a machine of many block devices
			m.buf = make([]byte, 2*len(m.buf))
			n, err = retry(func() (int, error) { return unix.Pread(f.fd, m.buf, 0) })
		}
		if err != nil {
			return Counters{}, &fs.PathError{Op: "read", Path: f.name, Err: err}
		}
		if err := f.read(&c, m.buf[:n]); err != nil {
			return Counters{}, fmt.Errorf("%s: %w", f.name, err)
		}
	}
	return c, nil
}

// Close closes the files. Closing again does nothing.
func (m *Meter) Close() {
	for _, f := range m.files {
		_ = unix.Close(f.fd) // a kernel file has nothing to flush
	}
	m.files = nil
}

func integer(b []byte) (int64, error) { return strconv.ParseInt(string(bytes.TrimSpace(b)), 10, 64) }

// pairs calls each with every line "key value" of b.
func pairs(b []byte, each func(key []byte, value int64)) error {
	for line := range bytes.Lines(b) {
		key, value, ok := bytes.Cut(bytes.TrimSpace(line), []byte(" "))
		if !ok {
			continue
		}
		n, err := integer(value)
		if err != nil {
			return err
		}
		each(key, n)
	}
	return nil
}

// readCPUStat takes v1's cpu.stat in nanoseconds and v2's in microseconds.
func readCPUStat(c *Counters, b []byte) error {
	return pairs(b, func(key []byte, v int64) {
		switch string(key) {
		case "nr_periods":
			c.Periods = v
		case "nr_throttled":
			c.ThrottledPeriods = v
		case "throttled_time":
			c.Throttled = time.Duration(v)
		case "throttled_usec":
			c.Throttled = time.Duration(v) * time.Microsecond
		case "usage_usec":
			c.CPU = time.Duration(v) * time.Microsecond
		}
	})
}

func readKills(c *Counters, b []byte) error {
	return pairs(b, func(key []byte, v int64) {
		if string(key) == "oom_kill" {
			c.OOMKills += v
		}
	})
}

// readIO sums over devices: v1 has "8:0 Read 4096" and a "Total" line, v2 has
// "8:0 rbytes=4096 wbytes=0 …".
func readIO(c *Counters, b []byte) error {
	for line := range bytes.Lines(b) {
		f := bytes.Fields(line)
		if len(f) == 3 && (string(f[1]) == "Read" || string(f[1]) == "Write") {
			n, err := integer(f[2])
			if err != nil {
				return err
			}
			if string(f[1]) == "Read" {
				c.ReadBytes += n
			} else {
				c.WriteBytes += n
			}
			continue
		}
		for _, kv := range f {
			key, value, ok := bytes.Cut(kv, []byte("="))
			if k := string(key); !ok || k != "rbytes" && k != "wbytes" {
				continue
			}
			n, err := integer(value)
			if err != nil {
				return err
			}
			if key[0] == 'r' {
				c.ReadBytes += n
			} else {
				c.WriteBytes += n
			}
		}
	}
	return nil
}
