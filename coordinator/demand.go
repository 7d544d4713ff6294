package coordinator

import (
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
}

// retry is a manifest's retry policy. It is no number of the task's needs, and
// stays while the task is under way.
type retry struct {
	attempts       int // the first included; 0 and 1: one
	codes          []api.Code
	afterNodeDeath bool
}

// newDemand keeps nothing of m.
func newDemand(r *route, m *manifest.Manifest) *demand {
	d := &demand{task: m.Task, priority: int(m.Priority), deadline: int64(m.DeadlineMS)}
	d.retry.attempts, d.retry.afterNodeDeath = int(m.Retry.MaxAttempts), m.Retry.AfterNodeDeath
	for _, c := range m.Retry.Codes {
		d.retry.codes = append(d.retry.codes, api.Code(strings.Clone(c)))
	}
	d.request = r.request
	n := &m.Needs
	limits := r.limits
	for _, x := range [...]struct {
		to   *int64
		from uint64
	}{{&limits.CPU, n.CPUMillis}, {&limits.Memory, n.MemoryBytes}, {&limits.PIDs, n.PIDs}, {&limits.Storage, n.StorageBytes},
		{&limits.Scratch, n.ScratchBytes}, {&limits.Ingress, n.IngressBPS}, {&limits.Egress, n.EgressBPS}} {
		if x.from != 0 {
			*x.to = int64(x.from)
		}
	}
	limits.Ports = 0
	for _, p := range n.Ports {
		limits.Ports += int64(p.Count)
	}
	q := &d.request
	q.Resources = limits.Add(api.AgentOverhead())
	q.Apart = n.AntiAffinity == manifest.ReplicasApart
	for _, c := range n.Constraints {
		q.Requirements = append(q.Requirements, api.Requirement{Key: d.text(c.Key), Op: c.Op.String(), Value: d.text(c.Value)})
	}
	for _, a := range n.Architectures {
		q.Archs = append(q.Archs, d.text(a))
	}
	d.json = appendNeeds(make([]byte, 0, needsSize+portSize*len(n.Ports)), d, &limits, n.Ports)
	// The string is the buffer's own bytes: it is wiped with it.
	d.headers = []relay.Header{{Name: api.HeaderNeeds, Value: unsafe.String(unsafe.SliceData(d.json), len(d.json)), Wipe: true}}
	return d
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
	clear(d.request.Requirements)
	clear(d.request.Archs)
	*d = demand{}
}

// Bounds of appendNeeds' output, in bytes: ten numbers of 20 digits with their
// names, and a port.
const (
	needsSize = 640
	portSize  = 64
)

// appendNeeds writes api.Needs as JSON. encoding/json would keep it in buffers
// that nobody wipes.
func appendNeeds(b []byte, d *demand, limits *api.Resources, ports []manifest.Port) []byte {
	b = append(b, '{')
	if !d.task.IsZero() {
		b = append(b, `"task":"`...)
		b = hex.AppendEncode(b, d.task[:])
		b = append(b, `",`...)
	}
	b = append(b, `"resources":{`...)
	first := true
	for _, x := range [...]struct {
		name  string
		value int64
	}{{"cpu", limits.CPU}, {"memory", limits.Memory}, {"pids", limits.PIDs}, {"tmp", limits.Tmp}, {"read_bps", limits.ReadBps},
		{"write_bps", limits.WriteBps}, {"storage", limits.Storage}, {"scratch", limits.Scratch}, {"ingress", limits.Ingress},
		{"egress", limits.Egress}, {"ports", limits.Ports}} {
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
	for i, p := range ports {
		if i == 0 {
			b = append(b, `,"ports":[`...)
		} else {
			b = append(b, ',')
		}
		protocol := api.ProtocolTCP
		if p.Protocol == manifest.UDP {
			protocol = api.ProtocolUDP
		}
		b = append(append(append(b, `{"protocol":"`...), protocol...), '"')
		if p.Number != 0 {
			b = strconv.AppendUint(append(b, `,"number":`...), uint64(p.Number), 10)
		}
		b = append(strconv.AppendUint(append(b, `,"count":`...), uint64(p.Count), 10), '}')
	}
	if len(ports) > 0 {
		b = append(b, ']')
	}
	if d.request.Apart {
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

// wipeStack overwrites what a finished call left of its frames below this one. A
// stack that the collector moved meanwhile keeps its former place as it was.
//
//go:noinline
func wipeStack() {
	var b [32 << 10]byte
	overwrite(&b)
}

//go:noinline
func overwrite(b *[32 << 10]byte) { clear(b[:]) }
