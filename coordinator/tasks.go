package coordinator

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/faasd-sec/faasd-sec/anomaly"
	"github.com/faasd-sec/faasd-sec/api"
)

// Watching is a coordinator's own anomaly log. Its zero value keeps none.
type Watching struct {
	ID        string             // of this coordinator
	Anomalies anomaly.Sink       // nil forgets
	Dir       string             // of the log, "" for none to read
	Key       func() *api.LogKey // who signs it, nil for nobody
}

// maxReads bounds the readers of anomalies, of which anybody may be one: each
// costs a stream from every node.
const maxReads = 16

// statuses asks every node, and tells each of those that are members.
func (c *Coordinator) statuses(query url.Values, only string, each func(api.NodeView, *api.NodeStatus, error)) error {
	select {
	case c.looks <- struct{}{}:
		defer func() { <-c.looks }()
	default:
		return api.Errorf(api.CodeBusy, "too many others ask about all nodes; ask again in a moment")
	}
	ctx, cancel := context.WithTimeout(c.life, describeTimeout)
	defer cancel()
	path := api.NodePathStatus
	if q := query.Encode(); q != "" {
		path += "?" + q
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, v := range c.dep.Mesh.Snapshot().Nodes {
		if !slices.Contains(v.Meta.Roles, api.RoleNode) || only != "" && v.Meta.ID != only {
			continue
		}
		wg.Add(1)
		go func() {
			defer wg.Done()
			st := &api.NodeStatus{}
			b, err := c.ask(ctx, c.peers.get(v), http.MethodGet, path, nil)
			if err == nil {
				if err = json.Unmarshal(b, st); err != nil {
					err = api.Wrap(api.CodeUnavailable, err, "the node's answer is no status")
				}
			}
			if err != nil {
				c.log.Warn("ask for a status", "node", v.Meta.ID, "err", err)
				st = nil
			}
			mu.Lock()
			defer mu.Unlock()
			each(v, st, err)
		}()
	}
	wg.Wait()
	return nil
}

// listNodes tells what gossip says of the members, and asks the nodes themselves
// where details are wanted.
func (c *Coordinator) listNodes(ctx *fasthttp.RequestCtx) (any, error) {
	args := ctx.QueryArgs()
	if !args.Has(api.QueryDetail) {
		known := c.warmKeys()
		nodes := slices.Clone(c.dep.Mesh.Snapshot().Nodes)
		for i := range nodes {
			nodes[i] = forEverybody(nodes[i], known)
		}
		return nodes, nil
	}
	list := &api.NodeList{Nodes: []api.NodeDetail{}}
	if key := c.dep.Watching.Key; key != nil {
		list.Coordinator = key()
	}
	query := url.Values{}
	if args.Has(api.QueryHistory) {
		query.Set(api.QueryHistory, "1")
	}
	known := c.warmKeys()
	err := c.statuses(query, string(args.Peek(api.QueryNode)), func(v api.NodeView, st *api.NodeStatus, err error) {
		d := api.NodeDetail{View: forEverybody(v, known), Status: st}
		if err != nil {
			d.Error = api.CodeOf(err).Label()
		}
		list.Nodes = append(list.Nodes, d)
	})
	slices.SortFunc(list.Nodes, func(a, b api.NodeDetail) int { return strings.Compare(a.View.Meta.ID, b.View.Meta.ID) })
	return list, err
}

// warmKeys are those of the functions' revisions as they were deployed.
func (c *Coordinator) warmKeys() map[string]bool {
	known := map[string]bool{}
	for _, f := range c.dep.Cache.Snapshot().Functions {
		known[api.RevisionKey(f.Revision)] = true
	}
	return known
}

// forEverybody is a member without what would tell of manifests: what is free in
// hundredths, and no sandbox by a key that is made of its needs, which could be
// guessed from it.
func forEverybody(v api.NodeView, known map[string]bool) api.NodeView {
	v.Load.Free = v.Load.Free.DownToHundredths(v.Meta.Capacity)
	warm := v.Load.Warm
	v.Load.Warm = nil
	for key, free := range warm {
		if !known[key] {
			continue
		}
		if v.Load.Warm == nil {
			v.Load.Warm = map[string]int{}
		}
		v.Load.Warm[key] = free
	}
	return v
}

// listTasks asks the nodes what they run. Nodes that do not answer are named.
func (c *Coordinator) listTasks(ctx *fasthttp.RequestCtx) (any, error) {
	args := ctx.QueryArgs()
	query := url.Values{}
	if f := string(args.Peek(api.QueryFunction)); f != "" {
		name, err := api.ParseFunctionName(f)
		if err != nil {
			return nil, err
		}
		query.Set(api.QueryFunction, string(name))
	}
	if args.Has(api.QueryHistory) {
		query.Set(api.QueryHistory, "1")
	}
	list := &api.TaskList{Tasks: []api.TaskStatus{}}
	err := c.statuses(query, string(args.Peek(api.QueryNode)), func(v api.NodeView, st *api.NodeStatus, err error) {
		if err != nil {
			list.Missing = append(list.Missing, api.MissingNode{Node: v.Meta.ID, Error: api.CodeOf(err).Label()})
			return
		}
		list.Tasks = append(list.Tasks, st.Tasks...)
	})
	slices.SortFunc(list.Tasks, func(a, b api.TaskStatus) int { return strings.Compare(a.Node+"/"+a.ID, b.Node+"/"+b.ID) })
	slices.SortFunc(list.Missing, func(a, b api.MissingNode) int { return strings.Compare(a.Node, b.Node) })
	return list, err
}

// watchMembers notes nodes that are members no more, or in another life, and had
// not said that they would go.
func (c *Coordinator) watchMembers() {
	before := map[string]api.NodeLoad{}
	for {
		view := c.dep.Mesh.Snapshot()
		now := make(map[string]api.NodeLoad, len(view.Nodes))
		for _, n := range view.Nodes {
			if n.Load.Epoch != 0 {
				now[n.Meta.ID] = n.Load
			} else if was, ok := before[n.Meta.ID]; ok {
				now[n.Meta.ID] = was // it came back, and its load is on its way
			}
		}
		for id, was := range before {
			is, ok := now[id]
			code := "dead"
			if ok {
				code = "node" // it is another life of its daemon
			}
			if (!ok || is.Epoch > was.Epoch) && !was.Draining {
				c.dep.Watching.Anomalies.Append(anomaly.Event{Kind: anomaly.HeartbeatMissed, Node: id, Code: code,
					Numbers: map[string]int64{"sandboxes": int64(was.Running), "inflight": int64(was.InFlight)}})
			}
		}
		before = now
		c.members.Store(int64(len(now)))
		select {
		case <-c.life.Done():
			return
		case <-c.dep.Mesh.Changed(view.Version):
		}
		select { // a view may come every few milliseconds
		case <-c.life.Done():
			return
		case <-time.After(memberPause):
		}
	}
}

// memberPause is the least time between two looks at who is a member.
const memberPause = 100 * time.Millisecond

// serveAnomalies merges the anomaly logs of all nodes and this coordinator's own
// into one stream of lines, in no order but that of each log.
func (c *Coordinator) serveAnomalies(ctx *fasthttp.RequestCtx) error {
	q, err := url.ParseQuery(string(ctx.QueryArgs().QueryString()))
	if err != nil {
		return api.Invalid("query", "encode it as a URL's", "it does not parse")
	}
	f, err := anomaly.ParseQuery(q)
	if err != nil {
		return err
	}
	follow := q.Get(api.QueryFollow) == "1"
	select {
	case c.reads <- struct{}{}:
	default:
		return api.Errorf(api.CodeBusy, "too many others read anomalies; ask again in a moment")
	}
	ctx.SetContentType(api.ContentTypeLines)
	conn := ctx.Conn()
	ctx.SetBodyStreamWriter(func(w *bufio.Writer) {
		defer func() { <-c.reads }()
		rctx, cancel := context.WithCancel(c.life)
		defer cancel()
		if !follow {
			rctx, cancel = context.WithTimeout(rctx, storeTimeout)
			defer cancel()
		}
		lines, done := make(chan []byte, 64), make(chan struct{})
		send := func(line []byte) error {
			select {
			case lines <- line:
				return nil
			case <-rctx.Done():
				return rctx.Err()
			}
		}
		go func() { defer close(done); c.readAnomalies(rctx, f, follow, send) }()
		write := func(line []byte) bool {
			_ = conn.SetWriteDeadline(time.Now().Add(30 * time.Second))
			_, err := w.Write(line)
			if err == nil && (follow && len(lines) == 0) {
				err = w.Flush()
			}
			return err == nil
		}
		for reading := true; reading; {
			select {
			case line := <-lines:
				reading = write(line)
			case <-done:
				for reading && len(lines) > 0 {
					reading = write(<-lines)
				}
				return
			}
		}
		cancel()
		<-done
	})
	return nil
}

// readAnomalies reads all logs at once. With follow it looks for new members, and
// reads one that broke off from where it began to read it.
func (c *Coordinator) readAnomalies(ctx context.Context, f anomaly.Filter, follow bool, send func([]byte) error) {
	var wg sync.WaitGroup
	defer wg.Wait()
	if w := c.dep.Watching; w.Dir != "" {
		wg.Add(1)
		go func() {
			defer wg.Done()
			if err := anomaly.Stream(ctx, w.Dir, w.ID, f, follow, send); err != nil && ctx.Err() == nil {
				c.log.Warn("read the anomaly log", "err", err)
			}
		}()
	}
	var mu sync.Mutex
	reading := map[string]bool{}
	again := map[string]time.Time{} // nodes that were read, and since when events are new
	for {
		for _, v := range c.dep.Mesh.Snapshot().Nodes {
			id := v.Meta.ID
			mu.Lock()
			skip := reading[id] || !slices.Contains(v.Meta.Roles, api.RoleNode)
			nf := f
			if since, ok := again[id]; ok && since.After(nf.Since) {
				nf.Since = since
			}
			if !skip {
				reading[id] = true
			}
			mu.Unlock()
			if skip {
				continue
			}
			p := c.peers.get(v)
			wg.Add(1)
			go func() {
				defer wg.Done()
				err := c.nodeAnomalies(ctx, p, nf, follow, send)
				if err != nil && ctx.Err() == nil {
					c.log.Warn("read a node's anomaly log", "node", id, "err", err)
					// Whoever reads must know that something is missing.
					line, jerr := json.Marshal(map[string]string{"log": id, "error": api.CodeOf(err).Label()})
					if jerr == nil {
						_ = send(append(line, '\n')) // fails with ctx
					}
				}
				mu.Lock()
				defer mu.Unlock()
				if follow {
					again[id] = time.Now()
					delete(reading, id)
				}
			}()
		}
		if !follow {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Second):
		}
	}
}

// maxLine bounds one line of a node's; an event has far less.
const maxLine = 8 << 10

func (c *Coordinator) nodeAnomalies(ctx context.Context, p *peer, f anomaly.Filter, follow bool, send func([]byte) error) error {
	q := f.Query()
	if follow {
		q.Set(api.QueryFollow, "1")
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://node"+api.NodePathAnomalies+"?"+q.Encode(), nil)
	if err != nil {
		return err
	}
	resp, err := p.up.RoundTrip(req)
	if err != nil {
		return api.Wrap(api.CodeUnavailable, err, "node "+p.id+" cannot be reached")
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return api.Errorf(api.CodeUnavailable, "status %d", resp.StatusCode)
	}
	r := bufio.NewReaderSize(resp.Body, maxLine)
	for {
		line, err := r.ReadSlice('\n')
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return api.Wrap(api.CodeUnavailable, err, "node "+p.id+" broke off")
		}
		if err := send(bytes.Clone(line)); err != nil {
			return nil
		}
	}
}
