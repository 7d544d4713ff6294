package queue

import (
	"context"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/faasd-sec/faasd-sec/api"
)

// lookEvery is how many pieces are stored between two looks at the room.
const lookEvery = 32

// roomAt refuses the i-th piece of a body while those that are there fill their
// share of the store, or the store itself is filled. What was removed fills it too
// until etcd forgets its old versions; were it full, it would take no writes at all.
func (c *Chunks) roomAt(ctx context.Context, i int) error {
	if i%lookEvery != 0 {
		return nil
	}
	ctx, cancel := c.q.bound(ctx)
	defer cancel()
	res, err := c.q.etc.Get(ctx, c.q.cfg.Prefix+keyChunk, clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil {
		return failure("count stored bodies", err)
	}
	if res.Count*chunkSize >= c.total+int64(i)*chunkSize {
		return full(fmt.Sprintf("large bodies fill their %d bytes of the store", c.total))
	}
	return c.q.quota(ctx)
}

// quota refuses what is large where the store has not much room left.
func (q *Queue) quota(ctx context.Context) error {
	status, err := q.status(ctx)
	if err != nil {
		return failure("look at the store's size", err)
	}
	// An external etcd before 3.6 does not tell its quota.
	// In use is what counts here; but it is the file's size that etcd goes by, and that
	// grows further where free pages do not lie together.
	if quota := status.DbSizeQuota; quota > 0 && (status.DbSizeInUse >= quota/4*3 || status.DbSize >= quota/10*9) {
		return full("the store is filled to three quarters, and large bodies leave it the rest")
	}
	return nil
}

// status asks the store's members in turn: one that is away keeps no body out.
func (q *Queue) status(ctx context.Context) (status *clientv3.StatusResponse, err error) {
	all := q.etc.Endpoints()
	if len(all) == 0 {
		all = []string{""} // it is in this process
	}
	for _, at := range all {
		each, cancel := context.WithTimeout(ctx, q.cfg.Timeout/time.Duration(len(all)))
		status, err = q.etc.Status(each, at)
		cancel()
		if err == nil {
			break
		}
	}
	return status, err
}

func full(message string) error {
	e := api.Errorf(api.CodeBusy, "%s", message)
	e.Remedy = "retry later, or send bodies below 64 KiB"
	return e
}
