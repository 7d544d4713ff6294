package queue

import (
	"bytes"
	"context"
	"io"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// Take stores what r gives under its digest, for records that name it already: it
// was a file while the coordinator was alone. It may be repeated. ErrFenced says
// that no record names it any more. The first piece comes last: until then Get finds
// no body.
func (c *Chunks) Take(ctx context.Context, digest string, r io.Reader) error {
	put := func(i int, b []byte) error {
		res, err := c.q.commit(ctx, "take a body over", []clientv3.Cmp{c.q.blobUses(digest, ">")},
			[]clientv3.Op{clientv3.OpPut(c.key(digest, i), string(b))}, nil)
		return fenced(res, err)
	}
	var first []byte
	buf := make([]byte, chunkSize)
	for i := 0; ; i++ {
		if err := c.roomAt(ctx, i); err != nil {
			return err
		}
		n, last, err := readPiece(r, buf)
		if err != nil {
			return err
		}
		if i == 0 {
			first = bytes.Clone(buf[:n])
		} else if n > 0 {
			if err := put(i, buf[:n]); err != nil {
				return err
			}
		}
		if last {
			return put(0, first)
		}
	}
}
