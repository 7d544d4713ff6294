package opener

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// What lies where in the page, in bytes.
const (
	keySize    = 16 // SM4
	scalarSize = 32
	slots      = 4 // manifest keys: two live ones, and room for a clumsy clock
	atStorage  = 0
	atKeyFiles = keySize
	atIdentity = 2 * keySize
	atScalars  = atIdentity + scalarSize
)

// page is memory for keys. Where the kernel offers memfd_secret nobody but this
// process reads it: it is in no other mapping, the kernel's own included, and
// /proc/PID/mem refuses it to root too. Elsewhere it is locked, and left out of
// core files.
type page struct {
	b      []byte
	secret bool
}

func newPage() (*page, error) {
	size := os.Getpagesize()
	b, err := secretMemory(size)
	if err == nil {
		return &page{b: b, secret: true}, nil
	}
	if !errors.Is(err, unix.ENOSYS) && !errors.Is(err, unix.EPERM) {
		return nil, fmt.Errorf("manifest opener: memory for keys: %w", err)
	}
	if b, err = unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS); err != nil {
		return nil, fmt.Errorf("manifest opener: memory for keys: %w", err)
	}
	if err := errors.Join(unix.Mlock(b), unix.Madvise(b, unix.MADV_DONTDUMP)); err != nil {
		return nil, errors.Join(fmt.Errorf("manifest opener: memory for keys: %w", err), unix.Munmap(b))
	}
	return &page{b: b}, nil
}

func secretMemory(size int) ([]byte, error) {
	fd, err := unix.MemfdSecret(unix.O_CLOEXEC)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd) // the mapping stays
	if err := unix.Ftruncate(fd, int64(size)); err != nil {
		return nil, err
	}
	return unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
}

func (p *page) storage() []byte  { return p.b[atStorage : atStorage+keySize] }
func (p *page) keyFiles() []byte { return p.b[atKeyFiles : atKeyFiles+keySize] }
func (p *page) identity() []byte { return p.b[atIdentity : atIdentity+scalarSize] }
func (p *page) scalar(slot int) []byte {
	at := atScalars + slot*scalarSize
	return p.b[at : at+scalarSize]
}

// close wipes and unmaps the page.
func (p *page) close() error {
	clear(p.b)
	return unix.Munmap(p.b)
}
