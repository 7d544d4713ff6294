package queue

import (
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

// A body that was cut is refused, also where its reader tells so with its last bytes.
func TestChunksRefuseABodyThatWasCut(t *testing.T) {
	etcd, prefix := etcdOf(t, t.TempDir())
	m := open(t, etcd, prefix, "a")
	c := m.NewChunks(t.Context(), 1<<30, 1<<30)
	for name, r := range map[string]io.Reader{
		"after": io.MultiReader(strings.NewReader("the first half"), iotest.ErrReader(io.ErrUnexpectedEOF)),
		"with":  iotest.DataErrReader(io.MultiReader(strings.NewReader("the first half"), iotest.ErrReader(io.ErrUnexpectedEOF))),
	} {
		if got, size, _, err := c.Put(r); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%s: %q, %d bytes: %v", name, got, size, err)
		}
		if err := c.Take(t.Context(), strings.Repeat("a", 64), r); err == nil {
			t.Errorf("%s: taken over", name)
		}
	}
}
