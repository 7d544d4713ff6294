package node

import (
	"bufio"
	"encoding/json"
	"sync"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/faasd-sec/faasd-sec/api"
)

// logbook keeps the last log messages of each function, bounded in bytes. Those of
// a sealed function only its owner can open.
type logbook struct {
	node  string
	limit int

	mu    sync.Mutex
	books map[api.FunctionName]*book
}

type book struct {
	frames []api.LogFrame
	bytes  int
	seq    uint64
	news   chan struct{} // closed and replaced with every frame
}

func newLogbook(node string, limit int) *logbook {
	return &logbook{node: node, limit: limit, books: map[api.FunctionName]*book{}}
}

// of finds or makes a function's book. mu is held.
func (l *logbook) of(name api.FunctionName) *book {
	b := l.books[name]
	if b == nil {
		// The sequence starts at the clock so that a reader's position stays
		// behind what a restarted daemon writes.
		b = &book{news: make(chan struct{}), seq: uint64(time.Now().UnixMicro())}
		l.books[name] = b
	}
	return b
}

// frameOverhead is what a frame costs beside its content, about: without it,
// empty frames would be without limit.
const (
	frameOverhead = 128
	lineOverhead  = 48
)

// add keeps what an agent sent: of a sealed function sealed messages alone.
func (l *logbook) add(rev *revision, sandbox string, log *api.Log) {
	f := api.LogFrame{Node: l.node, Sandbox: sandbox, Sealed: log.Sealed}
	if rev.plain != nil {
		f.Sealed, f.Lines = nil, log.Lines
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.of(rev.name)
	b.seq++
	f.Seq = b.seq
	b.frames = append(b.frames, f)
	b.bytes += frameSize(&f)
	for b.bytes > l.limit && len(b.frames) > 1 {
		b.bytes -= frameSize(&b.frames[0])
		b.frames = b.frames[1:]
	}
	close(b.news)
	b.news = make(chan struct{})
}

// frameSize is what a frame costs of a book's limit.
func frameSize(f *api.LogFrame) int {
	n := len(f.Sealed) + frameOverhead
	for _, line := range f.Lines {
		n += len(line.Text) + lineOverhead
	}
	return n
}

func (l *logbook) drop(name api.FunctionName) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if b := l.books[name]; b != nil {
		close(b.news)
		delete(l.books, name)
	}
}

// after returns frames with a larger sequence and a channel that tells of more.
func (l *logbook) after(name api.FunctionName, seq uint64) ([]api.LogFrame, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.of(name)
	for i, f := range b.frames {
		if f.Seq > seq {
			return append([]api.LogFrame(nil), b.frames[i:]...), b.news
		}
	}
	return nil, b.news
}

// logSettle is how long after an invocation what was printed for it may still be
// on its way: an agent sends lines in batches.
const logSettle = 300 * time.Millisecond

// settleLogs waits until what was printed for invocations of fn that have ended is
// here: who has just had a reply reads on.
func (n *Node) settleLogs(fn api.FunctionName) {
	var last time.Time
	n.mu.Lock()
	for _, s := range n.fleet {
		if s.rev.name == fn && s.lastUsed.After(last) {
			last = s.lastUsed
		}
	}
	n.mu.Unlock()
	wait := time.NewTimer(time.Until(last.Add(logSettle)))
	defer wait.Stop()
	select {
	case <-wait.C:
	case <-n.life.Done():
	}
}

// serveLogs streams a function's log frames; with follow=1 until the
// reader leaves.
func (n *Node) serveLogs(ctx *fasthttp.RequestCtx, name string) error {
	fn, err := api.ParseFunctionName(name)
	if err != nil {
		return err
	}
	follow := string(ctx.QueryArgs().Peek("follow")) == "1"
	seq := uint64(0)
	if v, err := ctx.QueryArgs().GetUint("after"); err == nil {
		seq = uint64(v)
	}
	if !follow {
		n.settleLogs(fn)
	}
	ctx.SetContentType(api.ContentTypeFrames)
	conn := ctx.Conn()
	ctx.SetBodyStreamWriter(func(w *bufio.Writer) {
		for {
			frames, news := n.logs.after(fn, seq)
			for _, f := range frames {
				b, err := json.Marshal(f)
				if err != nil || api.WriteFrame(w, b) != nil {
					return
				}
				seq = f.Seq
			}
			// An empty frame keeps the connection known to be alive, and ends
			// this loop when the reader has left.
			if len(frames) == 0 && follow && api.WriteFrame(w, nil) != nil {
				return
			}
			_ = conn.SetWriteDeadline(time.Now().Add(30 * time.Second))
			if w.Flush() != nil || !follow {
				return
			}
			idle := time.NewTimer(5 * time.Second)
			select {
			case <-news:
			case <-idle.C:
			case <-n.life.Done():
				idle.Stop()
				return
			}
			idle.Stop()
		}
	})
	return nil
}
