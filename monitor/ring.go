package monitor

// Point is what is remembered of one interval. Rates are means, levels are the
// most that was seen.
type Point struct {
	At        int64 // unix milliseconds
	CPU       float32
	Throttled float32
	Memory    float32
	PIDs      float32
	Read      float32
	Write     float32
	In        float32
	Out       float32
}

// ring keeps the last points; its memory is made once.
type ring struct {
	buf  []Point
	next int
	full bool
}

func newRing(n int) ring { return ring{buf: make([]Point, n)} }

func (r *ring) put(p Point) {
	if len(r.buf) == 0 {
		return
	}
	r.buf[r.next] = p
	if r.next++; r.next == len(r.buf) {
		r.next, r.full = 0, true
	}
}

// last copies up to n points, oldest first.
func (r *ring) last(n int) []Point {
	have := r.next
	if r.full {
		have = len(r.buf)
	}
	n = min(n, have)
	out := make([]Point, 0, n)
	for i := r.next - n; i < r.next; i++ {
		out = append(out, r.buf[(i+len(r.buf))%len(r.buf)])
	}
	return out
}

// series is a fine ring of the last minutes and a coarse one of the last hour.
type series struct {
	fine, coarse ring
	sum          Point // of the coarse interval under way
	count        int
	fold         int // fine points to a coarse one
}

func newSeries(fine, coarse, fold int) *series {
	return &series{fine: newRing(fine), coarse: newRing(coarse), fold: fold}
}

func (s *series) put(p Point) {
	s.fine.put(p)
	sum := &s.sum
	sum.At = p.At
	sum.CPU += p.CPU
	sum.Throttled += p.Throttled
	sum.Read += p.Read
	sum.Write += p.Write
	sum.In += p.In
	sum.Out += p.Out
	sum.Memory, sum.PIDs = max(sum.Memory, p.Memory), max(sum.PIDs, p.PIDs)
	if s.count++; s.count < s.fold {
		return
	}
	n := float32(s.count)
	sum.CPU, sum.Throttled, sum.Read, sum.Write, sum.In, sum.Out = sum.CPU/n, sum.Throttled/n, sum.Read/n, sum.Write/n, sum.In/n, sum.Out/n
	s.coarse.put(*sum)
	s.sum, s.count = Point{}, 0
}
