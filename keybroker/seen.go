package keybroker

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/faasd-sec/faasd-sec/api"
)

const (
	// maxSeen bounds the bytes of a file that is kept: a few keys fit by far.
	maxSeen = 16 << 10
	// settled is how long ago a file that was found must have changed for its times
	// to tell of the next change: the kernel's stamps are milliseconds apart.
	settled = time.Second
)

// seenFile is a file of the vault as it lies on the disk: encrypted. A release
// opens it anew each time, and nothing opened is kept.
type seenFile struct {
	id    fileID
	bytes []byte
}

// fileID is what changes when a file is replaced or written to.
type fileID struct {
	dev, ino     uint64
	size         int64
	mtime, ctime unix.Timespec
}

func idOf(st *unix.Stat_t) fileID {
	return fileID{dev: uint64(st.Dev), ino: st.Ino, size: st.Size, mtime: st.Mtim, ctime: st.Ctim}
}

// recall is read, with the encrypted bytes from memory while the file is the one
// they were read from. The caller holds the lock and wipes the record.
func (v *vault) recall(name api.FunctionName) (*record, error) {
	var st unix.Stat_t
	switch err := unix.Stat(v.path(name), &st); {
	case errors.Is(err, unix.ENOENT):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("keybroker: vault: look at %s: %w", name, err)
	}
	v.seenMu.Lock()
	had, ok := v.seen[name]
	v.seenMu.Unlock()
	if ok && had.id == idOf(&st) {
		return v.decode(name, had.bytes)
	}
	b, id, err := v.load(name)
	if b == nil || err != nil {
		return nil, err
	}
	if time.Since(time.Unix(id.ctime.Unix())) > settled {
		v.keep(name, id, b)
	}
	return v.decode(name, b)
}

// keep holds on to the bytes of name's file.
func (v *vault) keep(name api.FunctionName, id fileID, b []byte) {
	if len(b) > maxSeen {
		return
	}
	v.seenMu.Lock()
	defer v.seenMu.Unlock()
	if v.seen == nil {
		v.seen = make(map[api.FunctionName]seenFile)
	}
	makeRoom(v.seen, name)
	v.seen[name] = seenFile{id: id, bytes: b}
}
