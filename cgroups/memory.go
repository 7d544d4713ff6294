package cgroups

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

func (g Group) applyMemory(l MemoryLimit) error {
	if l.Bytes < int64(os.Getpagesize()) {
		return fmt.Errorf("%d bytes is less than a page", l.Bytes)
	}
	want := strconv.FormatInt(l.Bytes, 10)
	if g.fs.mode == V2 {
		if err := g.change(Memory, "memory.swap.max", "0"); err != nil && !g.swapFree(err) {
			return err
		}
		return g.write(Memory, "memory.max", want)
	}
	// memory+swap may never be under memory, so the order depends on whether
	// the limit grows or shrinks: try to shrink, and grow where that is refused.
	// Equal limits leave no room for swap.
	if err := g.write(Memory, "memory.limit_in_bytes", want); err != nil {
		if werr := g.write(Memory, "memory.memsw.limit_in_bytes", want); werr != nil {
			return err
		}
		if err := g.write(Memory, "memory.limit_in_bytes", want); err != nil {
			return err
		}
	} else if err := g.write(Memory, "memory.memsw.limit_in_bytes", want); err != nil && !g.swapFree(err) {
		return err
	}
	if err := g.change(Memory, "memory.swappiness", "0"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func (g Group) verifyMemory(l MemoryLimit) error {
	want := strconv.FormatInt(pageDown(l.Bytes), 10)
	if g.fs.mode == V2 {
		if err := g.expect(Memory, "memory.swap.max", "0"); err != nil && !g.swapFree(err) {
			return err
		}
		return g.expect(Memory, "memory.max", want)
	}
	if err := g.expect(Memory, "memory.limit_in_bytes", want); err != nil {
		return err
	}
	if err := g.expect(Memory, "memory.memsw.limit_in_bytes", want); err != nil && !g.swapFree(err) {
		return err
	}
	if err := g.expect(Memory, "memory.swappiness", "0"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// swapFree reports whether err may be passed over: the kernel accounts no
// swap, and there is none. With swap and no accounting the limit would fail
// open, so that stays an error.
func (g Group) swapFree(err error) bool {
	if !errors.Is(err, fs.ErrNotExist) {
		return false
	}
	b, rerr := os.ReadFile(filepath.Join(g.fs.proc, "swaps"))
	return rerr == nil && strings.Count(strings.TrimSpace(string(b)), "\n") == 0
}

// pageDown is what the kernel makes of a byte limit.
func pageDown(n int64) int64 { p := int64(os.Getpagesize()); return n / p * p }

// memoryUsage is the memory charged now, and at most so far (0 where the
// kernel does not tell).
func (g Group) memoryUsage() (now, peak int64, err error) {
	current, top := "memory.usage_in_bytes", "memory.max_usage_in_bytes"
	if g.fs.mode == V2 {
		current, top = "memory.current", "memory.peak"
	}
	if now, err = g.number(Memory, current); err != nil {
		return 0, 0, err
	}
	peak, err = g.number(Memory, top)
	if errors.Is(err, fs.ErrNotExist) { // memory.peak came with Linux 5.19
		return now, 0, nil
	}
	return now, peak, err
}

// OOMKills counts processes of the group that the kernel killed for memory
// since the group was made.
func (g Group) OOMKills() (int64, error) {
	if g.fs.mode == V2 {
		return g.field(Memory, "memory.events", "oom_kill")
	}
	return g.field(Memory, "memory.oom_control", "oom_kill")
}
