package coordinator

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/queue"
)

// Stores are the two places of large bodies, so that a coordinator finds what it
// stored while it was alone once it has others beside it, and the other way round.
type Stores struct {
	Files   Bodies        // on this coordinator's disk
	Pieces  *queue.Chunks // in the store that all coordinators share
	Several bool          // new bodies are stored in pieces, and files become that
}

// Put implements Bodies.
func (s *Stores) Put(r io.Reader) (name string, size int64, release func(), err error) {
	if s.Several {
		return s.Pieces.Put(r)
	}
	return s.Files.Put(r)
}

// Get implements Bodies.
func (s *Stores) Get(name string) (io.ReadCloser, error) {
	if len(name) == fileName {
		if f, err := s.Files.Get(name); api.CodeOf(err) != api.CodeNotFound {
			return f, err
		}
	}
	return s.Pieces.Get(name)
}

// fileName is how long a file's name is: that of a body in pieces is longer.
const fileName = 64

// Collect implements Bodies. Where there are several coordinators it moves files
// that are used into the store, as far as there is room.
func (s *Stores) Collect(ctx context.Context, age time.Duration, used func(context.Context, string) (bool, error)) (int, error) {
	var unmoved error
	files, ferr := s.Files.Collect(ctx, age, func(ctx context.Context, name string) (bool, error) {
		if in, err := used(ctx, name); err != nil || !in || !s.Several {
			return in, err
		}
		stays, err := s.move(ctx, name)
		unmoved = errors.Join(unmoved, err) // one that is damaged keeps no other back
		return stays, nil
	})
	pieces, err := s.Pieces.Collect(ctx, age, used)
	return files + pieces, errors.Join(ferr, unmoved, err)
}

// move stores a file in pieces; stays says that it is still needed as a file.
func (s *Stores) move(ctx context.Context, name string) (stays bool, err error) {
	f, err := s.Files.Get(name)
	if err != nil {
		return true, err
	}
	defer f.Close()
	switch err := s.Pieces.Take(ctx, name, f); {
	case err == nil:
		return false, nil
	case errors.Is(err, queue.ErrFenced), api.CodeOf(err) == api.CodeBusy:
		return true, nil // looked at again with the next collection
	default:
		return true, err
	}
}
