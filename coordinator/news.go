package coordinator

import (
	"encoding/json"
	"net"
	"sync"
	"sync/atomic"

	"github.com/valyala/fasthttp"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/relay"
)

// news are loads that came with replies and that nobody has read yet: reading
// one takes longer than passing its reply on, and no caller should wait for it.
type news struct {
	some atomic.Bool

	mu    sync.Mutex
	loads []saying // no more than there are exchanges under way
}

// saying is one of them, and the node that replied.
type saying struct{ node, text string }

func (n *news) put(node, text string) {
	n.mu.Lock()
	n.loads = append(n.loads, saying{node, text})
	n.some.Store(true)
	n.mu.Unlock()
}

// take empties it.
func (n *news) take() []saying {
	if !n.some.Load() {
		return nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	loads := n.loads
	n.loads = nil
	n.some.Store(false)
	return loads
}

// Replied reads what the reply that was just written had brought along. It is the
// ConnState of the server that serves Gateway: without it loads come by gossip
// alone, which is later.
func (c *Coordinator) Replied(_ net.Conn, state fasthttp.ConnState) {
	if state == fasthttp.StateIdle || state == fasthttp.StateClosed {
		c.readNews()
	}
}

func (c *Coordinator) readNews() {
	for _, l := range c.news.take() {
		c.read(l.node, l.text)
	}
}

// loadOf is the load that a node's reply carries along, if it is another than the
// last one. Most replies carry the one before again, which costs a comparison.
func loadOf(p *peer, reply *relay.Reply) (text string, fresh bool) {
	text = reply.Header(api.HeaderLoad)
	if text == "" {
		return "", false
	}
	if last := p.load.Load(); last != nil && text == *last {
		return "", false
	}
	p.load.Store(&text)
	return text, true
}

// observe takes a refusal's load: where to go next depends on it.
func (c *Coordinator) observe(p *peer, reply *relay.Reply) {
	if text, fresh := loadOf(p, reply); fresh {
		c.read(p.id, text)
	}
}

// read takes what a node says of itself. Of others it has nothing to say.
func (c *Coordinator) read(node, text string) {
	var l api.NodeLoad
	switch err := json.Unmarshal([]byte(text), &l); {
	case err != nil:
	case l.Node != node:
		c.dep.Log.Debug("a node's reply tells of another one's load", "node", node, "of", l.Node)
	default:
		c.dep.Mesh.Observe(l)
	}
}
