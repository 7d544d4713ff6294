package queue

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/emmansun/gmsm/sm3"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/faasd-sec/faasd-sec/api"
)

// Chunks keeps large bodies in etcd itself, in pieces, for clusters of several
// coordinators: what a majority has no single loss takes away. A package blob's Dir
// is for one that is alone.
type Chunks struct {
	q     *Queue
	max   int64
	total int64
	life  context.Context
}

const (
	keyChunk  = "chunk/" // BLOB/NUMBER: a piece
	chunkSize = 256 << 10
)

// NewChunks keeps bodies of up to most bytes, and about total bytes of them. life
// bounds what is done for callers that bring no context.
func (q *Queue) NewChunks(life context.Context, most, total int64) *Chunks {
	return &Chunks{q: q, max: most, total: total, life: life}
}

// Put stores what r gives up to its end, and holds it until release is called. An
// error of r is returned as it is; CodeTooLarge and CodeBusy tell of the bounds.
func (c *Chunks) Put(r io.Reader) (name string, size int64, release func(), retErr error) {
	q, ctx := c.q, c.life
	q.mu.Lock()
	lease := q.lease
	q.mu.Unlock()
	if lease == 0 {
		return "", 0, nil, api.Errorf(api.CodeUnavailable, "the coordinator is not registered with the store")
	}
	var raw [16]byte
	_, _ = rand.Read(raw[:]) // never fails
	upload := hex.EncodeToString(raw[:])
	hold := q.key(keyBlob, upload+"/"+q.cfg.ID+"-upload")
	if _, err := q.commit(ctx, "begin a body", nil, []clientv3.Op{clientv3.OpPut(hold, "", clientv3.WithLease(lease))}, nil); err != nil {
		return "", 0, nil, err
	}
	end := sync.OnceFunc(func() {
		if _, err := q.commit(ctx, "end a hold", nil, []clientv3.Op{clientv3.OpDelete(hold)}, nil); err != nil {
			q.cfg.Log.Debug("hold on a body not ended; it ends with the lease", "err", err)
		}
	})
	defer func() {
		if retErr != nil {
			end()
		}
	}()
	h, buf := sm3.New(), make([]byte, chunkSize)
	for i := 0; ; i++ {
		if err := c.roomAt(ctx, i); err != nil {
			return "", 0, nil, err
		}
		n, last, err := readPiece(r, buf)
		if err != nil {
			return "", 0, nil, err
		}
		if size += int64(n); size > c.max {
			e := api.Errorf(api.CodeTooLarge, "the body is over the %d bytes that an asynchronous call may have", c.max)
			e.Field, e.Remedy = "body", "send less, or have the operator raise -async-max-body"
			return "", 0, nil, e
		}
		_, _ = h.Write(buf[:n])
		if n > 0 {
			// Only while the hold is there: it goes with the lease, and then the
			// pieces may be collected.
			res, err := q.commit(ctx, "store a body", []clientv3.Cmp{present(hold)},
				[]clientv3.Op{clientv3.OpPut(c.key(upload, i), string(buf[:n]))}, nil)
			if err = fenced(res, err); err != nil {
				return "", 0, nil, err
			}
		}
		if last {
			break
		}
	}
	return upload + hex.EncodeToString(h.Sum(nil)), size, end, nil
}

// readPiece fills buf, but for the last piece; last says that r has ended. Other than
// with io.ReadFull, a body that r says was cut is none that has ended.
func readPiece(r io.Reader, buf []byte) (n int, last bool, err error) {
	for n < len(buf) && err == nil {
		var m int
		m, err = r.Read(buf[n:])
		n += m
	}
	if err == io.EOF {
		return n, true, nil
	}
	return n, false, err
}

func (c *Chunks) key(upload string, i int) string { return c.q.piece(upload, i) }

func (q *Queue) piece(upload string, i int) string {
	return q.key(keyChunk, fmt.Sprintf("%s/%06d", upload, i))
}

// inPieces tells the name of a body that Put stored from a file's digest.
func inPieces(name string) bool { return len(name) > 64 }

// uploadOf is the part of a body's name under which its pieces and uses are.
func uploadOf(name string) string { return name[:min(len(name), 32)] }

// Get opens a body; CodeNotFound if there is none. Its last Read fails where the
// content is not what was stored.
func (c *Chunks) Get(name string) (io.ReadCloser, error) {
	if len(name) != 96 && len(name) != 64 || strings.Trim(name, "0123456789abcdef") != "" {
		return nil, api.Invalid("digest", "use 64 or 96 hex characters", "it is no name of a body")
	}
	r := &chunkReader{c: c, upload: useOf(name), digest: name[len(name)-64:], sum: sm3.New()}
	found, err := r.fetch()
	if err != nil {
		return nil, err
	}
	if !found {
		return nil, api.Errorf(api.CodeNotFound, "the body is not in the store")
	}
	return r, nil
}

type chunkReader struct {
	c      *Chunks
	upload string
	digest string
	next   int
	have   bytes.Reader
	sum    hash.Hash
}

// fetch gets the next piece, if there is one.
func (r *chunkReader) fetch() (bool, error) {
	var b []byte
	_, found, err := r.c.q.get(r.c.life, "body", r.c.key(r.upload, r.next), &b)
	if err != nil || !found {
		return false, err
	}
	r.next++
	_, _ = r.sum.Write(b)
	r.have.Reset(b)
	return true, nil
}

// Read implements io.Reader.
func (r *chunkReader) Read(p []byte) (int, error) {
	if r.have.Len() == 0 {
		switch found, err := r.fetch(); {
		case err != nil:
			return 0, err
		case !found && hex.EncodeToString(r.sum.Sum(nil)) != r.digest:
			return 0, api.Errorf(api.CodeInternal, "a stored body is damaged or gone")
		case !found:
			return 0, io.EOF
		}
	}
	return r.have.Read(p)
}

// Close implements io.Closer.
func (r *chunkReader) Close() error { return nil }

// Collect removes bodies that no record and no upload uses. It returns how many.
// The pieces of one go together, and only while nothing uses them.
func (c *Chunks) Collect(ctx context.Context, _ time.Duration, _ func(context.Context, string) (bool, error)) (int, error) {
	q, n := c.q, 0
	from, end := q.cfg.Prefix+keyChunk, clientv3.GetPrefixRangeEnd(q.cfg.Prefix+keyChunk)
	for {
		rctx, cancel := q.bound(ctx)
		res, err := q.etc.Get(rctx, from, clientv3.WithRange(end), clientv3.WithLimit(1), clientv3.WithKeysOnly())
		cancel()
		if err != nil {
			return n, failure("look through stored bodies", err)
		}
		if len(res.Kvs) == 0 {
			return n, nil
		}
		upload, _, _ := strings.Cut(string(res.Kvs[0].Key[len(q.cfg.Prefix+keyChunk):]), "/")
		pieces := q.key(keyChunk, upload+"/")
		from = clientv3.GetPrefixRangeEnd(pieces)
		// A use is made before the hold ends, so that none comes after the last; and
		// where the hold lapsed, one is made only while the pieces are there.
		gone, err := q.commit(ctx, "remove a body", []clientv3.Cmp{q.blobUses(upload, "=")},
			[]clientv3.Op{clientv3.OpDelete(pieces, clientv3.WithPrefix())}, nil)
		if err != nil {
			return n, err
		}
		if gone.Succeeded {
			n++
		}
	}
}
