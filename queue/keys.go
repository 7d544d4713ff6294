package queue

import (
	"context"
	"encoding/json"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/faasd-sec/faasd-sec/api"
)

// PublishKey tells with which key this coordinator signs callbacks.
func (q *Queue) PublishKey(ctx context.Context, k api.CallbackKey) error {
	_, err := q.commit(ctx, "publish a key", nil, []clientv3.Op{put(q.key(keyCallback, k.Fingerprint), &k)}, nil)
	return err
}

// Keys are the keys of all coordinators that ever were.
func (q *Queue) Keys(ctx context.Context) ([]api.CallbackKey, error) {
	out := []api.CallbackKey{}
	err := q.list(ctx, keyCallback, "", func(b []byte) (bool, error) {
		var k api.CallbackKey
		if err := json.Unmarshal(b, &k); err != nil {
			return false, api.Wrap(api.CodeInternal, err, "a published key is damaged")
		}
		out = append(out, k)
		return true, nil
	})
	return out, err
}
