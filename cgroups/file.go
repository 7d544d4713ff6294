package cgroups

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// write puts value into a kernel file, in one write as the kernel demands.
// It never creates a file, and truncates one only where the kernel ignores it.
//
// The files are opened without package os, which would try to have each of them
// polled: a start writes and reads some forty of them before a function may run.
func write(path, value string) error {
	fd, err := open(path, unix.O_WRONLY|unix.O_TRUNC)
	if err != nil {
		return fmt.Errorf("write %q: %w", value, err)
	}
	n, err := retry(func() (int, error) { return unix.Write(fd, []byte(value)) })
	if err == nil && n != len(value) {
		err = io.ErrShortWrite
	}
	if cerr := unix.Close(fd); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("write %q: %w", value, &fs.PathError{Op: "write", Path: path, Err: err})
	}
	return nil
}

func open(path string, flags int) (int, error) {
	fd, err := retry(func() (int, error) { return unix.Open(path, flags|unix.O_CLOEXEC, 0) })
	if err != nil {
		return -1, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return fd, nil
}

// retry makes a call again that a signal interrupted.
func retry(call func() (int, error)) (int, error) {
	for {
		if n, err := call(); err != unix.EINTR {
			return n, err
		}
	}
}

// readFile gives the content of a kernel file.
func readFile(path string) ([]byte, error) {
	fd, err := open(path, unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	b := make([]byte, 0, 512)
	for {
		n, err := retry(func() (int, error) { return unix.Read(fd, b[len(b):cap(b)]) })
		if err != nil {
			return nil, &fs.PathError{Op: "read", Path: path, Err: err}
		}
		if n == 0 {
			return b, nil
		}
		if b = b[:len(b)+n]; len(b) == cap(b) {
			b = append(b, 0)[:len(b)]
		}
	}
}

// file is the path of one of the group's files.
func (g Group) file(c Controller, name string) string {
	return filepath.Join(g.fs.dir(c, g.path), name)
}

// read gives the content of one of the group's files without the last newline.
func (g Group) read(c Controller, name string) (string, error) {
	b, err := g.readFile(c, name)
	if err != nil {
		return "", err
	}
	return string(trimLine(b)), nil
}

func trimLine(b []byte) []byte { return bytes.TrimSuffix(b, []byte("\n")) }

// number reads a file that holds one integer. "max", v2's word for no limit,
// is -1.
func (g Group) number(c Controller, name string) (int64, error) {
	s, err := g.read(c, name)
	if err != nil {
		return 0, err
	}
	if s == "max" {
		return -1, nil
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", g.file(c, name), err)
	}
	return n, nil
}

// field reads the value after key in a file of "key value" lines. A key that
// is not there is an error: which keys exist is part of the kernel's contract.
func (g Group) field(c Controller, name, key string) (int64, error) {
	s, err := g.read(c, name)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(s) {
		k, v, ok := strings.Cut(strings.TrimSpace(line), " ")
		if !ok || k != key {
			continue
		}
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%s: %s: %w", g.file(c, name), key, err)
		}
		return n, nil
	}
	return 0, fmt.Errorf("%s: no field %q", g.file(c, name), key)
}

// Mismatch is a limit that the kernel does not hold as it was asked to.
type Mismatch struct {
	File   string // the kernel's file
	Wanted string
	Got    string
}

// Error names the file, what was wanted and what is there.
func (m *Mismatch) Error() string {
	return fmt.Sprintf("cgroups: %s holds %q, wanted %q", m.File, m.Got, m.Wanted)
}

// expect compares one file with the value it must hold.
func (g Group) expect(c Controller, name, wanted string) error {
	got, err := g.read(c, name)
	if err != nil {
		return fmt.Errorf("read back: %w", err)
	}
	if got != wanted {
		return &Mismatch{File: g.file(c, name), Wanted: wanted, Got: got}
	}
	return nil
}
