package node

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// taskLog is the file in which a node remembers the tasks that it took, over its
// own end: a task is in it, and on the disk, before the first byte of it goes to
// an agent. Records are appended; now and then, and at each start, those that
// count are written to a new file that takes the place of the old one.
//
// A record is 28 bytes: the id, the time in unix milliseconds until which it
// counts, big-endian, and the CRC-32 (Castagnoli) of both. A time of 0 takes back
// what an earlier record says. Records of which a crash left a part are skipped:
// nobody was told yet that they are there.
type taskLog struct {
	path string
	live func() []taskRecord // what a new file begins with

	mu   sync.Mutex
	next *taskBatch // of records that wait for the disk

	disk    sync.Mutex // one write at a time; guards what follows
	f       *os.File
	records int  // in f
	unsure  bool // what f ends with is not known
}

// taskRecord is one task, until which it is remembered.
type taskRecord struct {
	id    [16]byte
	until int64 // unix milliseconds, 0 for forgotten
}

// taskBatch are records that one call of the disk's makes durable.
type taskBatch struct {
	once  sync.Once
	bytes []byte
	err   error
}

const (
	taskLogMagic   = "FSTASKS\x01"
	taskRecordSize = 16 + 8 + 4
	taskLogSlack   = 4096 // records that are worth no new file
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func (r taskRecord) append(b []byte) []byte {
	at := len(b)
	b = append(b, r.id[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(r.until))
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b[at:], castagnoli))
}

// parseTask reads a record; ok is false for one that was not written whole.
func parseTask(b []byte) (r taskRecord, ok bool) {
	copy(r.id[:], b)
	r.until = int64(binary.BigEndian.Uint64(b[16:]))
	return r, crc32.Checksum(b[:24], castagnoli) == binary.BigEndian.Uint32(b[24:]) && r.until >= 0
}

// readTasks reads which tasks count at the time now, and how many records are
// damaged. A file that is not there has none.
func readTasks(path string, now time.Time) (until map[string]time.Time, damaged int, err error) {
	until = map[string]time.Time{}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return until, 0, nil
	}
	if err != nil {
		return nil, 0, fmt.Errorf("tasks of an earlier life: %w", err)
	}
	if len(b) < len(taskLogMagic) || string(b[:len(taskLogMagic)]) != taskLogMagic {
		return nil, 0, fmt.Errorf("tasks of an earlier life: %s is of another release, or damaged: remove it once every task that this node took has expired", path)
	}
	b = b[len(taskLogMagic):]
	for ; len(b) >= taskRecordSize; b = b[taskRecordSize:] {
		r, ok := parseTask(b[:taskRecordSize])
		id, at := hex.EncodeToString(r.id[:]), time.UnixMilli(r.until)
		switch {
		case !ok:
			damaged++
		case now.After(at): // r.until is 0 where it was taken back
			delete(until, id)
		default:
			until[id] = at
		}
	}
	if len(b) > 0 {
		damaged++
	}
	return until, damaged, nil
}

// open begins a new file with what is live, and keeps to it.
func (l *taskLog) open() error {
	l.disk.Lock()
	defer l.disk.Unlock()
	return l.renew(l.live())
}

// keep returns once r is on the disk. Those who come while it works wait for the
// next write together.
func (l *taskLog) keep(r taskRecord) error {
	l.mu.Lock()
	b := l.next
	if b == nil {
		b = &taskBatch{}
		l.next = b
	}
	b.bytes = r.append(b.bytes)
	l.mu.Unlock()
	b.once.Do(func() {
		l.disk.Lock()
		defer l.disk.Unlock()
		l.mu.Lock()
		l.next = nil // from here on it takes no more
		l.mu.Unlock()
		if b.err = l.write(b.bytes); b.err != nil {
			return
		}
		if b.err = unix.Fdatasync(int(l.f.Fd())); b.err != nil {
			l.unsure = true // the kernel may have dropped what it could not write
		}
	})
	return b.err
}

// forget takes back what keep wrote. If a crash loses it the task is remembered
// for longer than it had to be.
func (l *taskLog) forget(id [16]byte) error {
	l.disk.Lock()
	defer l.disk.Unlock()
	return l.write(taskRecord{id: id}.append(nil))
}

// write appends b, or makes a new file, in which all of b is that still counts.
// disk is held.
func (l *taskLog) write(b []byte) error {
	if l.f == nil {
		return errors.New("tasks: the node has ended")
	}
	l.records += len(b) / taskRecordSize
	if l.unsure || l.records > taskLogSlack {
		if live := l.live(); l.unsure || l.records > 2*len(live)+taskLogSlack {
			return l.renew(live)
		}
	}
	if _, err := l.f.Write(b); err != nil {
		l.unsure = true
		return fmt.Errorf("tasks: %w", err)
	}
	return nil
}

// renew writes a new file, has it on the disk, and puts it in the place of the old
// one. disk is held.
func (l *taskLog) renew(live []taskRecord) (err error) {
	l.unsure = true
	b := append(make([]byte, 0, len(taskLogMagic)+len(live)*taskRecordSize), taskLogMagic...)
	for _, r := range live {
		b = r.append(b)
	}
	f, err := os.OpenFile(l.path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("tasks: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("tasks: %w", err), f.Close())
		}
	}()
	if _, err = f.Write(b); err != nil {
		return err
	}
	if err = f.Sync(); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), l.path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(l.path))
	if err != nil {
		return err
	}
	if err = errors.Join(dir.Sync(), dir.Close()); err != nil {
		return err
	}
	if l.f != nil {
		_ = l.f.Close() // nothing of it counts any more
	}
	l.f, l.records, l.unsure = f, len(live), false
	return nil
}

// close ends the use of the file: from then on no task is kept.
func (l *taskLog) close() {
	l.disk.Lock()
	defer l.disk.Unlock()
	if l.f != nil {
		_ = l.f.Close() // what counts was synced
		l.f = nil
	}
}
