package scratch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
)

// Keeper has the volumes of sandboxes by the sandboxes' ids.
type Keeper struct {
	store *Store

	mu   sync.Mutex
	held map[string]*Volume // nil while it is made or removed
}

// NewKeeper keeps volumes of s.
func NewKeeper(s *Store) *Keeper { return &Keeper{store: s, held: make(map[string]*Volume)} }

// Give makes a volume for sandbox id and hands its mount to mount. After an error
// nothing remains. A sandbox has one volume.
func (k *Keeper) Give(ctx context.Context, id string, bytes int64, mount func(tree *os.File) error) error {
	k.mu.Lock()
	_, taken := k.held[id]
	if !taken {
		k.held[id] = nil
	}
	k.mu.Unlock()
	if taken {
		return fmt.Errorf("sandbox %s has its scratch already", id)
	}
	v, err := k.store.Create(ctx, bytes)
	if err == nil {
		if err = mount(v.Tree()); err != nil {
			err = errors.Join(err, v.Remove(context.WithoutCancel(ctx)))
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if err != nil {
		delete(k.held, id)
		return fmt.Errorf("scratch of sandbox %s: %w", id, err)
	}
	k.held[id] = v
	return nil
}

// Take removes the volume of sandbox id, which has ended. It is idempotent: of one
// that is not known, such as that of a sandbox from before the daemon was started,
// nobody but the sandbox had anything, and it went with it. It can be tried again.
func (k *Keeper) Take(ctx context.Context, id string) error {
	k.mu.Lock()
	v := k.held[id]
	if v != nil {
		k.held[id] = nil
	}
	k.mu.Unlock()
	if v == nil {
		return nil
	}
	err := v.Remove(ctx)
	k.mu.Lock()
	defer k.mu.Unlock()
	if err != nil {
		k.held[id] = v
		return fmt.Errorf("scratch of sandbox %s: %w", id, err)
	}
	delete(k.held, id)
	return nil
}

// Used is how many bytes of its volume sandbox id uses, 0 where it has none that
// is known.
func (k *Keeper) Used(id string) (int64, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if v := k.held[id]; v != nil {
		return v.Used()
	}
	return 0, nil
}
