package queue

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/faasd-sec/faasd-sec/api"
)

// Upload takes the messages of one part of a plan, the earliest first. They are in
// the store as they come, and count for nothing until Commit; what is not committed
// is forgotten, also after a crash.
type Upload struct {
	q     *Queue
	part  Part
	note  string
	batch []clientv3.Op
	bytes int
	n     int // batches
}

// Kinds of what is to be forgotten.
const (
	untilPart = "part" // unless it was committed
	untilPlan = "plan" // unless it goes on
	untilGone = "gone"
)

const (
	// uploadLife bounds one upload.
	uploadLife = 10 * time.Minute
	batchOps   = 64        // of one transaction: etcd takes 128
	batchBytes = 512 << 10 // likewise
	// goneFor keeps a request to make a plan from making it again after it was
	// removed: longer than a signed request is taken.
	goneFor = 10 * time.Minute
)

// Upload begins a part of messages that were sealed for a revision of the function.
// It is ended with Commit or Abort.
func (q *Queue) Upload(ctx context.Context, revision string) (*Upload, error) {
	if err := q.Ready(); err != nil {
		return nil, err
	}
	var raw [16]byte
	_, _ = rand.Read(raw[:]) // never fails
	u := &Upload{q: q, part: Part{ID: hex.EncodeToString(raw[:]), Revision: revision}}
	u.note = q.untilKey(q.cfg.Now().Add(uploadLife).UnixMilli(), untilPart, u.part.ID)
	_, err := q.commit(ctx, "begin a schedule", nil, []clientv3.Op{clientv3.OpPut(u.note, "")}, nil)
	return u, err
}

// Add takes the sealed message of a tick, in unix milliseconds.
func (u *Upload) Add(ctx context.Context, at int64, message []byte) error {
	b := &u.q.cfg.Plans
	switch {
	case len(message) > MaxInline:
		e := api.Errorf(api.CodeTooLarge, "a sealed tick has %d bytes, at most %d are kept", len(message), MaxInline)
		e.Field, e.Remedy = "body", "send less with each tick, or have the function fetch what is large"
		return e
	case at <= u.part.Last:
		return api.Invalid("body", "send the ticks in their order, each once", "a tick does not come after the one before it")
	case u.part.Ticks >= b.Ticks:
		return tooMuch("it has over %d ticks", b.Ticks)
	case u.part.Size+int64(len(message)) > b.Size:
		return tooMuch("its sealed ticks have over %d bytes", b.Size)
	}
	if u.part.Ticks == 0 {
		u.part.First = at
	}
	u.part.Last, u.part.Ticks, u.part.Size = at, u.part.Ticks+1, u.part.Size+int64(len(message))
	u.batch = append(u.batch, clientv3.OpPut(u.q.tickKey(u.part.ID, at), string(message)))
	if u.bytes += len(message); len(u.batch) < batchOps && u.bytes < batchBytes {
		return nil
	}
	return u.flush(ctx)
}

func tooMuch(format string, args ...any) error {
	e := api.Errorf(api.CodeTooLarge, format, args...)
	e.Field, e.Remedy = "body", "seal for a shorter time (--for), or send less with each tick"
	return e
}

// flush stores what was added, while the part's note is there.
func (u *Upload) flush(ctx context.Context) error {
	if len(u.batch) == 0 {
		return nil
	}
	if u.n%lookEvery == 0 {
		qctx, cancel := u.q.bound(ctx)
		defer cancel()
		if err := u.q.quota(qctx); err != nil {
			return err
		}
	}
	res, err := u.q.commit(ctx, "store ticks", []clientv3.Cmp{present(u.note)}, u.batch, nil)
	if err == nil && !res.Succeeded {
		err = api.Errorf(api.CodeDeadline, "the ticks came too slowly, and what there was is forgotten")
	}
	u.batch, u.bytes, u.n = u.batch[:0], 0, u.n+1
	return err
}

// Abort forgets what was added.
func (u *Upload) Abort(ctx context.Context) {
	if _, err := u.q.commit(ctx, "forget an upload", []clientv3.Cmp{present(u.note)}, u.q.dropPart(u.part.ID, u.note), nil); err != nil {
		u.q.cfg.Log.Debug("ticks of an upload that failed are forgotten later", "err", err)
	}
}

func (q *Queue) dropPart(part, note string) []clientv3.Op {
	return []clientv3.Op{clientv3.OpDelete(note), clientv3.OpDelete(q.key(keyTick, part+"/"), clientv3.WithPrefix())}
}
