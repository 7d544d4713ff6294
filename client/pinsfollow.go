package client

import (
	"errors"
	"io/fs"
	"os"
	"reflect"
)

// following is how Pins keep up with their file.
type following struct {
	seen    os.FileInfo // of the file when it was read last; nil where there was none
	broken  error       // of that reading: the pins read before it hold
	changes uint64      // readings that gave other pins
	report  func(err error)
}

// Follow makes p keep up with its file, for a process that lives longer than one
// command. The file is read again before a lookup where it is not the one that was
// read last, or was written to; and where a lookup finds nobody, or finds another
// than who signed. A reading replaces all pins or none: a file that cannot be read
// or does not parse leaves those of before. Without a file nobody is pinned.
// report, which must not use p, is told of each reading of another file, nil for
// one that went well.
func (p *Pins) Follow(report func(err error)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.follow = &following{seen: p.opened, changes: 1, report: report}
	p.read()
}

// version counts the changes of the pins; it is 0 where they do not follow.
func (p *Pins) version() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.follow == nil {
		return 0
	}
	p.look()
	return p.follow.changes
}

// again reads the file whatever it looks like, before somebody is refused: two
// changes within a tick of the file system's clock can look like none.
func (p *Pins) again() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.read()
}

// look reads the file if it is another one, or was written to. mu is held.
func (p *Pins) look() {
	if p.follow == nil || p.path == "" {
		return
	}
	info, err := os.Stat(p.path)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if f := p.follow; err != nil || !sameFile(info, f.seen) || info == nil && f.broken != nil {
		p.read()
	}
}

// read takes the pins of the file, or keeps those there are. mu is held.
func (p *Pins) read() {
	f := p.follow
	if f == nil || p.path == "" {
		return
	}
	file, info, err := readPins(p.path)
	news := !sameFile(info, f.seen) || (err == nil) != (f.broken == nil)
	if err == nil && !reflect.DeepEqual(file, p.file) {
		p.file, news = file, true
		f.changes++
	}
	if f.seen, f.broken = info, err; news {
		f.report(err)
	}
}

func sameFile(a, b os.FileInfo) bool {
	if a == nil || b == nil {
		return a == nil && b == nil
	}
	return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}
