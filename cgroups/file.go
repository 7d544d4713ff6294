package cgroups

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// write puts value into a kernel file, in one write as the kernel demands.
// It never creates a file, and truncates one only where the kernel ignores it.
func write(path, value string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return fmt.Errorf("write %q: %w", value, err)
	}
	_, err = f.WriteString(value)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("write %q: %w", value, err)
	}
	return nil
}

// file is the path of one of the group's files.
func (g Group) file(c Controller, name string) string {
	return filepath.Join(g.fs.dir(c, g.path), name)
}

// read gives the content of one of the group's files without the last newline.
func (g Group) read(c Controller, name string) (string, error) {
	b, err := os.ReadFile(g.file(c, name))
	if err != nil {
		return "", err
	}
	return string(bytes.TrimSuffix(b, []byte("\n"))), nil
}

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
