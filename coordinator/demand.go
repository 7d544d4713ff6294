package coordinator

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/manifest"
	"github.com/faasd-sec/faasd-sec/placement"
	"github.com/faasd-sec/faasd-sec/relay"
	"github.com/faasd-sec/faasd-sec/sealed"
)

// demand is a merged manifest as placing wants it. Its texts and buffers are its
// own, so that wipe reaches all of them.
type demand struct {
	request  placement.Request // without seed and pending
	headers  []relay.Header    // what a node is told with the invocation; none for a plain one
	json     []byte            // api.Needs, to which headers refer
	own      [][]byte          // bytes of the request's texts
	task     sealed.ID
	priority int
	deadline int64
	retry    retry
	ownKind  bool // its sandboxes are not those of any invocation, and so no replicas
}

// retry is a manifest's retry policy. It is no number of the task's needs, and
// stays while the task is under way.
type retry struct {
	attempts       int // the first included; 0 and 1: one
	codes          []api.Code
	afterNodeDeath bool
}

// newDemand keeps nothing of m.
func newDemand(r *route, m *manifest.Manifest) (*demand, error) {
	d := &demand{task: m.Task, priority: int(m.Priority), deadline: int64(m.DeadlineMS)}
	d.retry.attempts, d.retry.afterNodeDeath = int(m.Retry.MaxAttempts), m.Retry.AfterNodeDeath
	for _, c := range m.Retry.Codes {
		d.retry.codes = append(d.retry.codes, api.Code(strings.Clone(c)))
	}
	n := &m.Needs
	asked := api.Needs{Apart: n.AntiAffinity == manifest.ReplicasApart, Resources: api.Resources{
		CPU: int64(n.CPUMillis), Memory: int64(n.MemoryBytes), PIDs: int64(n.PIDs), Storage: int64(n.StorageBytes),
		Scratch: int64(n.ScratchBytes), Ingress: int64(n.IngressBPS), Egress: int64(n.EgressBPS),
		Cores: int64(n.Cores)}}
	ports := make([]api.PortNeed, len(n.Ports))
	defer clear(ports)
	for i, p := range n.Ports {
		ports[i] = api.PortNeed{Protocol: api.ProtocolTCP, Number: int(p.Number), Count: int(p.Count)}
		if p.Protocol == manifest.UDP {
			ports[i].Protocol = api.ProtocolUDP
		}
	}
	asked.Ports = ports
	for _, a := range n.Allow {
		b := a.Reach().AppendTo(make([]byte, 0, reachSize))
		d.own = append(d.own, b)
		asked.Allow = append(asked.Allow, unsafe.String(unsafe.SliceData(b), len(b)))
	}
	defer clear(asked.Allow)
	// What is not asked for is the function's own, as the node will see it.
	settled, err := asked.Settle(r.limits)
	if err != nil {
		return nil, err
	}
	defer clear(settled.Ports)
	defer clear(settled.Allow)
	d.ownKind = !settled.Plain(r.limits)
	d.json = appendNeeds(make([]byte, 0, needsSize+portSize*len(n.Ports)+reachSize*len(n.Allow)), d, &settled)
	d.request = r.request
	q := &d.request
	q.Resources, q.Apart = settled.Resources.Add(api.AgentOverhead()), settled.Apart
	q.Needs = needsKey(r.hex, &settled)
	for _, c := range n.Constraints {
		q.Require = append(q.Require, api.Requirement{Key: d.text(c.Key), Op: c.Op.String(), Value: d.text(c.Value)})
	}
	for _, a := range n.Architectures {
		q.Archs = append(q.Archs, d.text(a))
	}
	// The string is the buffer's own bytes: it is wiped with it.
	d.headers = []relay.Header{{Name: api.HeaderNeeds, Value: unsafe.String(unsafe.SliceData(d.json), len(d.json)), Wipe: true}}
	return d, nil
}

// needsKey is api.NeedsKey, and leaves the needs nowhere.
func needsKey(revision string, settled *api.Needs) string {
	b := append(make([]byte, 0, len(revision)+needsSize+portSize*len(settled.Ports)+reachSize*len(settled.Allow)), revision...)
	b = append(appendNeeds(b, &demand{}, settled), '\n')
	sum := sha256.Sum256(b)
	clear(b)
	return hex.EncodeToString(sum[:8])
}

// text copies s into memory that wipe reaches.
func (d *demand) text(s string) string {
	if s == "" {
		return ""
	}
	b := []byte(s)
	d.own = append(d.own, b)
	return unsafe.String(unsafe.SliceData(b), len(b))
}

// wipe ends the use of d.
func (d *demand) wipe() {
	for _, b := range d.own {
		clear(b)
	}
	clear(d.json[:cap(d.json)])
	clear(d.request.Require)
	clear(d.request.Archs)
	*d = demand{}
}

// Bounds of appendNeeds' output, in bytes: twelve numbers of 20 digits with their
// names, a port, and one of what may be opened.
const (
	needsSize = 640
	portSize  = 64
	reachSize = 48
)

// appendNeeds writes api.Needs as encoding/json does, which would keep them in
// buffers that nobody wipes. Task, priority and deadline are d's.
func appendNeeds(b []byte, d *demand, n *api.Needs) []byte {
	b = append(b, '{')
	if !d.task.IsZero() {
		b = append(b, `"task":"`...)
		b = hex.AppendEncode(b, d.task[:])
		b = append(b, `",`...)
	}
	b = append(b, `"resources":{`...)
	r, first := &n.Resources, true
	for _, x := range [...]struct {
		name  string
		value int64
	}{{"cpu", r.CPU}, {"memory", r.Memory}, {"pids", r.PIDs}, {"tmp", r.Tmp}, {"read_bps", r.ReadBps},
		{"write_bps", r.WriteBps}, {"storage", r.Storage}, {"scratch", r.Scratch}, {"ingress", r.Ingress},
		{"egress", r.Egress}, {"ports", r.Ports}, {"cores", r.Cores}} {
		if x.value == 0 {
			continue
		}
		if !first {
			b = append(b, ',')
		}
		first = false
		b = append(append(append(b, '"'), x.name...), `":`...)
		b = strconv.AppendInt(b, x.value, 10)
	}
	b = append(b, '}')
	for i, p := range n.Ports {
		if i == 0 {
			b = append(b, `,"ports":[`...)
		} else {
			b = append(b, ',')
		}
		b = append(append(append(b, `{"protocol":"`...), p.Protocol...), '"')
		if p.Number != 0 {
			b = strconv.AppendInt(append(b, `,"number":`...), int64(p.Number), 10)
		}
		b = append(strconv.AppendInt(append(b, `,"count":`...), int64(p.Count), 10), '}')
	}
	if len(n.Ports) > 0 {
		b = append(b, ']')
	}
	for i, s := range n.Allow {
		if i == 0 {
			b = append(b, `,"allow":["`...)
		} else {
			b = append(b, `,"`...)
		}
		b = append(append(b, s...), '"')
	}
	if len(n.Allow) > 0 {
		b = append(b, ']')
	}
	if n.Apart {
		b = append(b, `,"apart":true`...)
	}
	if d.priority != 0 {
		b = strconv.AppendInt(append(b, `,"priority":`...), int64(d.priority), 10)
	}
	if d.deadline != 0 {
		b = strconv.AppendInt(append(b, `,"deadline":`...), d.deadline, 10)
	}
	return append(b, '}')
}

// again reports whether a task that failed with code may be tried once more.
// unreached says that no byte of it came to an agent.
func (p *retry) again(attempts int, code api.Code, unreached bool) bool {
	switch {
	case attempts >= p.attempts:
		return false
	case code == api.CodeNodeLost:
		return p.afterNodeDeath
	}
	return unreached && slices.Contains(p.codes, code)
}
