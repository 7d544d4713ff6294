package agent

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/faasd-sec/faasd-sec/api"
)

// spoolStep is how much a spool reserves at a time.
const spoolStep = 256 << 10

// spool is an anonymous file in memory. It holds ciphertext of a request that
// must be verified to its end before it is handed on, or the output of a
// process that is sent only once the process has ended well.
type spool struct {
	f      *os.File
	budget *budget
	size   int64 // written
	held   int64 // taken from the budget
}

// newSpool makes an empty spool that draws on b.
func newSpool(b *budget) (*spool, error) {
	fd, err := unix.MemfdCreate("spool", unix.MFD_CLOEXEC|unix.MFD_NOEXEC_SEAL)
	if err == unix.EINVAL { // before Linux 6.3
		fd, err = unix.MemfdCreate("spool", unix.MFD_CLOEXEC)
	}
	if err != nil {
		return nil, fmt.Errorf("spool: %w", err)
	}
	return &spool{f: os.NewFile(uintptr(fd), "spool"), budget: b}, nil
}

// Write appends p, or refuses with CodeTooLarge.
func (s *spool) Write(p []byte) (int, error) {
	for s.size+int64(len(p)) > s.held {
		if !s.budget.take(spoolStep) {
			return 0, spoolSpent()
		}
		s.held += spoolStep
	}
	n, err := s.f.Write(p)
	s.size += int64(n)
	return n, err
}

// Read implements io.Reader at the file's offset.
func (s *spool) Read(p []byte) (int, error) { return s.f.Read(p) }

// Seek implements io.Seeker.
func (s *spool) Seek(offset int64, whence int) (int64, error) { return s.f.Seek(offset, whence) }

// Close frees the memory.
func (s *spool) Close() error {
	s.budget.give(s.held)
	s.held = 0
	return s.f.Close()
}

// spoolSpent says that the sandbox lends no more memory to bodies that wait.
func spoolSpent() error {
	e := api.Errorf(api.CodeTooLarge, "the body needs more spool than the sandbox has left")
	e.Field, e.Remedy = "body", "use the stream option and a streaming mode, which need no spool, or send less at once"
	return e
}
