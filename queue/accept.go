package queue

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/emmansun/gmsm/sm3"

	"github.com/faasd-sec/faasd-sec/api"
)

// idem is what is remembered of an idempotency key.
type idem struct {
	ID     string `json:"id"`
	Digest string `json:"digest"` // of the body, hex
}

// Key is an idempotency key: the second call under one is the first.
type Key struct {
	Key    string // the caller's; "" for none
	Digest string // of the body, hex
}

// maxKey bounds an idempotency key, in bytes.
const maxKey = 255

// Scope hashes an idempotency key with what it is unique within.
func (k Key) scope(c *Call) string {
	sum := sm3.Sum(fmt.Appendf(nil, "%d:%s%d:%s%s", len(c.Function), c.Function, len(c.Sender), c.Sender, k.Key))
	return hex.EncodeToString(sum[:])
}

// Accept stores a call with its body, which is nil where c.Body names a blob. When
// it returns without an error the call is durable. It gives the call's id: that of
// an earlier call where the idempotency key is known, and then known is true.
// CodeConflict tells of an id that is taken, or of a key that came with another
// body; CodeBusy that too many wait. After any other error whether it was accepted
// is not known.
func (q *Queue) Accept(ctx context.Context, c Call, body []byte, key Key) (id string, known bool, err error) {
	if len(body) > MaxInline || body != nil && c.Body.Blob != "" {
		return "", false, fmt.Errorf("queue: accept %s: a body of %d bytes belongs into the blob store", c.ID, len(body))
	}
	if len(key.Key) > maxKey {
		return "", false, api.Invalid("Idempotency-Key", fmt.Sprintf("use at most %d bytes", maxKey), fmt.Sprintf("it has %d", len(key.Key)))
	}
	now := q.cfg.Now()
	c.By, c.Arrived, c.Attempts = q.cfg.ID, now.UnixMilli(), 0
	q.mu.Lock()
	begun := q.ready()
	err = q.view.room(c.Owner)
	q.mu.Unlock()
	if begun != nil {
		return "", false, begun
	}
	if err != nil {
		if key.Key != "" { // who asks again for what is there already is told so
			if id, known, kerr := q.known(ctx, q.key(keyIdem, key.scope(&c)), key); known || kerr != nil {
				return id, known, kerr
			}
		}
		return "", false, err
	}
	var idemKey string
	var idemCmps []clientv3.Cmp
	var idemOps []clientv3.Op
	if key.Key != "" {
		c.Scope = key.scope(&c)
		idemKey = q.key(keyIdem, c.Scope)
		idemCmps = []clientv3.Cmp{absent(idemKey)}
		// As long as a result may be there, and no shorter.
		until := max(c.Expires, now.UnixMilli()) + q.cfg.Keep.Milliseconds()
		idemOps = []clientv3.Op{put(idemKey, idem{c.ID, key.Digest}), q.remember(until, "idem", c.Scope)}
	}
	cmps, then, err := q.write(&c, body)
	if err != nil {
		return "", false, err
	}
	cmps, then = append(cmps, idemCmps...), append(then, idemOps...)
	res, err := q.commit(ctx, "accept", cmps, then, nil)
	if err != nil {
		return "", false, err
	}
	if res.Succeeded {
		return c.ID, false, nil
	}
	if idemKey != "" {
		if id, known, err := q.known(ctx, idemKey, key); known || err != nil {
			return id, known, err
		}
	}
	if inPieces(c.Body.Blob) {
		var first []byte
		if _, found, err := q.get(ctx, "body", q.piece(useOf(c.Body.Blob), 0), &first); err != nil {
			return "", false, err
		} else if !found {
			return "", false, api.Errorf(api.CodeUnavailable, "the body was collected before the call was stored: the coordinator was away from the store for too long")
		}
	}
	return "", false, taken(c.ID)
}

func taken(id string) error {
	e := api.Errorf(api.CodeConflict, "there is a call %q already", id)
	e.Field, e.Remedy = api.HeaderCallID, "leave the header out, or use one that is new; an Idempotency-Key makes a repetition safe"
	return e
}

// write stores a call that is new, with its body.
func (q *Queue) write(c *Call, body []byte) ([]clientv3.Cmp, []clientv3.Op, error) {
	record, err := json.Marshal(c)
	if err != nil {
		return nil, nil, fmt.Errorf("queue: encode call %s: %w", c.ID, err)
	}
	if len(record) > maxRecord {
		return nil, nil, api.Errorf(api.CodeTooLarge, "the call's headers and manifest have %d bytes, at most %d are stored", len(record), maxRecord)
	}
	cmps := []clientv3.Cmp{absent(q.key(keyCall, c.ID)), absent(q.key(keyResult, c.ID)), absent(q.key(keyDead, c.ID))}
	then := []clientv3.Op{clientv3.OpPut(q.key(keyCall, c.ID), string(record))}
	if c.Body.Blob == "" {
		return cmps, append(then, clientv3.OpPut(q.key(keyBody, c.ID), string(body))), nil
	}
	if inPieces(c.Body.Blob) { // their hold may have lapsed, and they may be collected
		cmps = append(cmps, present(q.piece(useOf(c.Body.Blob), 0)))
	}
	return cmps, append(then, q.useBlob(c.Body.Blob, c.ID, "q")), nil
}

// known looks an idempotency key up.
func (q *Queue) known(ctx context.Context, idemKey string, key Key) (string, bool, error) {
	var was idem
	_, found, err := q.get(ctx, "idempotency key", idemKey, &was)
	if err != nil || !found {
		return "", false, err
	}
	if was.Digest != key.Digest {
		e := api.Errorf(api.CodeConflict, "the idempotency key came with another body before")
		e.Field, e.Remedy = "Idempotency-Key", "use a new key for a new call; a sealed call is repeated with the very same bytes"
		return "", false, e
	}
	return was.ID, true, nil
}

// useOf is under which name a body's uses are: a digest, or the upload's name of one
// that is in pieces.
func useOf(name string) string {
	if inPieces(name) {
		return uploadOf(name)
	}
	return name
}

func (q *Queue) useBlob(digest, id, as string) clientv3.Op {
	return clientv3.OpPut(q.key(keyBlob, useOf(digest)+"/"+id+"-"+as), "")
}

func (q *Queue) dropBlob(digest, id, as string) clientv3.Op {
	return clientv3.OpDelete(q.key(keyBlob, useOf(digest)+"/"+id+"-"+as))
}

// remember has a record forgotten at a time, in unix milliseconds.
func (q *Queue) remember(until int64, kind, id string) clientv3.Op {
	return clientv3.OpPut(q.untilKey(until, kind, id), "")
}

func (q *Queue) untilKey(until int64, kind, id string) string {
	return q.key(keyUntil, fmt.Sprintf("%014x/%s/%s", max(until, 0), kind, id))
}

// blobUses compares the uses under a name: "=" holds while there are none, ">" while
// there is one.
func (q *Queue) blobUses(use, op string) clientv3.Cmp {
	return clientv3.Compare(clientv3.CreateRevision(q.key(keyBlob, use+"/")), op, 0).WithPrefix()
}

// BlobUsed reports whether any record names a blob.
func (q *Queue) BlobUsed(ctx context.Context, digest string) (bool, error) {
	ctx, cancel := q.bound(ctx)
	defer cancel()
	res, err := q.etc.Get(ctx, q.key(keyBlob, digest+"/"), clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil {
		return true, failure("count the uses of a blob", err)
	}
	return res.Count > 0, nil
}

// forgetEvery is between two looks for what is over.
const forgetEvery = 2 * time.Second

// forgetOld drops what is to be forgotten, with the blobs' uses.
func (q *Queue) forgetOld(ctx context.Context) {
	for sleep(ctx, forgetEvery) {
		for {
			n, err := q.forgetSome(ctx)
			if err != nil && ctx.Err() == nil {
				q.cfg.Log.Warn("old results not forgotten; tried again", "err", err)
			}
			if err != nil || n < forgetPage {
				break
			}
		}
	}
}

const forgetPage = 200

func (q *Queue) forgetSome(ctx context.Context) (int, error) {
	rctx, cancel := q.bound(ctx)
	defer cancel()
	from := q.cfg.Prefix + keyUntil
	res, err := q.etc.Get(rctx, from, clientv3.WithRange(q.untilKey(q.cfg.Now().UnixMilli(), "", "")), clientv3.WithLimit(forgetPage), clientv3.WithKeysOnly())
	if err != nil {
		return 0, failure("look for what is over", err)
	}
	for _, kv := range res.Kvs {
		parts := strings.SplitN(string(kv.Key[len(from):]), "/", 3)
		if len(parts) != 3 {
			continue
		}
		id, note := parts[2], clientv3.OpDelete(string(kv.Key))
		switch parts[1] {
		case "idem":
			_, err = q.commit(ctx, "forget", nil, []clientv3.Op{note, clientv3.OpDelete(q.key(keyIdem, id))}, nil)
		case "result":
			err = q.forget(ctx, id, note)
		case "dead":
			err = q.purge(ctx, id, note)
		case untilPart, untilPlan, untilGone:
			err = q.forgetTicks(ctx, parts[1], id, note)
		}
		if e := (*api.Error)(nil); errors.As(err, &e) && e.Code == api.CodeInternal { // else it would keep all others too
			q.cfg.Log.Error("a record that is over is damaged; it stays", "kind", parts[1], "id", id, "err", err)
			_, err = q.commit(ctx, "forget", nil, []clientv3.Op{note}, nil)
		}
		if err != nil {
			return 0, err
		}
	}
	return len(res.Kvs), nil
}
