package gossip

import (
	"cmp"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"

	"github.com/faasd-sec/faasd-sec/api"
)

const (
	// maxLoad is the most bytes an encoded load takes, so that it always fits
	// into one packet beside a probe.
	maxLoad = 1024
	// maxState is the most bytes of all loads together; memberlist refuses 20 MiB.
	maxState = 16 << 20
	// maxHintKey is the length of a RevisionKey or ImageKey.
	maxHintKey = 16
	// maxSlots and maxCount bound numbers on the wire, far above any real one.
	maxSlots = 1 << 20
	maxCount = 1 << 31
)

// wireLoad is a NodeLoad on the wire. Warm and Images are packed lists, see
// appendKey: 10 and 9 bytes an entry, where text took 20.
type wireLoad struct {
	_        struct{} `cbor:",toarray"`
	Version  uint8
	Node     string
	Epoch    uint64
	Seq      uint64
	Free     []int64 // packResources
	Warm     []byte
	Images   []byte
	Running  uint32
	Pooled   uint32
	InFlight uint32
	Draining bool
}

// normalize checks a load of this member's own making and brings it into the
// form others will see: what is overdrawn counts as nothing free.
func normalize(l api.NodeLoad) (api.NodeLoad, error) {
	f := &l.Free
	*f = api.Resources{CPU: max(0, f.CPU), Memory: max(0, f.Memory), PIDs: max(0, f.PIDs), Tmp: max(0, f.Tmp),
		ReadBps: max(0, f.ReadBps), WriteBps: max(0, f.WriteBps), Scratch: max(0, f.Scratch),
		Ingress: max(0, f.Ingress), Egress: max(0, f.Egress), Ports: max(0, f.Ports), Cores: max(0, f.Cores)}
	return l, checkLoad(l)
}

// checkLoad refuses what cannot be told to others.
func checkLoad(l api.NodeLoad) error {
	for _, v := range packResources(l.Free) {
		if v < 0 {
			return api.Invalid("load.free", "write 0 or more", "a negative amount")
		}
	}
	for k, n := range l.Warm {
		if len(k) == 0 || len(k) > maxHintKey {
			return api.Invalid("load.warm", "use api.RevisionKey", fmt.Sprintf("a key of %d bytes", len(k)))
		}
		if n < 0 || n > maxSlots {
			return api.Invalid("load.warm", "count free slots", fmt.Sprintf("%d slots", n))
		}
	}
	for _, k := range l.Hosts {
		if len(k) == 0 || len(k) >= maxHintKey {
			return api.Invalid("load.hosts", "use api.HostKey", fmt.Sprintf("a key of %d bytes", len(k)))
		}
	}
	for _, k := range l.Images {
		if len(k) == 0 || len(k) > maxHintKey || k[0] == hostMark {
			return api.Invalid("load.images", "use api.ImageKey", fmt.Sprintf("a key of %d bytes", len(k)))
		}
	}
	for _, v := range []int{l.Running, l.Pooled, l.InFlight} {
		if v < 0 || v > maxCount {
			return api.Invalid("load", "count sandboxes and invocations",
				fmt.Sprintf("%d sandboxes, %d without a function, %d invocations", l.Running, l.Pooled, l.InFlight))
		}
	}
	return nil
}

// encodeLoad writes l into at most maxLoad bytes. What does not fit is left out
// and reported: images first, oldest first, then warm revisions with the fewest
// slots. Both are hints, and a missing one costs a worse choice only.
func (c codec) encodeLoad(l api.NodeLoad) (b []byte, trimmed bool, err error) {
	w := wireLoad{
		Version: wireVersion, Node: l.Node, Epoch: l.Epoch, Seq: l.Seq, Free: packResources(l.Free),
		Warm: []byte{}, Images: []byte{}, Running: uint32(l.Running), Pooled: uint32(l.Pooled), InFlight: uint32(l.InFlight), Draining: l.Draining,
	}
	fixed, err := c.enc.Marshal(w)
	if err != nil {
		return nil, false, fmt.Errorf("gossip: encode load: %w", err)
	}
	room := maxLoad - len(fixed) - 2*2 // the two lists' lengths may grow by two bytes each
	type slot struct {
		key string
		n   int
	}
	slots := make([]slot, 0, len(l.Warm))
	for k, n := range l.Warm {
		if n > 0 {
			slots = append(slots, slot{k, n})
		}
	}
	slices.SortFunc(slots, func(a, b slot) int { return cmp.Or(b.n-a.n, cmp.Compare(a.key, b.key)) })
	for _, s := range slots {
		entry := binary.AppendUvarint(appendKey(nil, s.key), uint64(s.n))
		if room -= len(entry); room < 0 {
			trimmed = true
			break
		}
		w.Warm = append(w.Warm, entry...)
	}
	for _, k := range l.Hosts {
		entry := appendKey(nil, string(hostMark)+k)
		if room -= len(entry); room < 0 {
			trimmed = true
			break
		}
		w.Images = append(w.Images, entry...)
	}
	for _, k := range l.Images {
		entry := appendKey(nil, k)
		if room -= len(entry); room < 0 {
			trimmed = true
			break
		}
		w.Images = append(w.Images, entry...)
	}
	b, err = c.enc.Marshal(w)
	if err != nil {
		return nil, false, fmt.Errorf("gossip: encode load: %w", err)
	}
	return b, trimmed, nil
}

// decodeLoad reads what encodeLoad wrote.
func (c codec) decodeLoad(b []byte) (api.NodeLoad, error) {
	var l api.NodeLoad
	if len(b) > maxLoad {
		return l, fmt.Errorf("%w: load of %d bytes", errMalformed, len(b))
	}
	var w wireLoad
	if err := c.dec.Unmarshal(b, &w); err != nil {
		return l, fmt.Errorf("%w: load: %w", errMalformed, err)
	}
	if w.Version != wireVersion || w.Node == "" || len(w.Node) > maxID {
		return l, fmt.Errorf("%w: load of version %d from a name of %d bytes", errMalformed, w.Version, len(w.Node))
	}
	free, err := unpackResources(w.Free)
	if err != nil {
		return l, err
	}
	l = api.NodeLoad{
		Node: w.Node, Epoch: w.Epoch, Seq: w.Seq, Free: free,
		Running: int(w.Running), Pooled: int(w.Pooled), InFlight: int(w.InFlight), Draining: w.Draining,
	}
	for rest := w.Warm; len(rest) > 0; {
		key, after, err := cutKey(rest)
		if err != nil {
			return api.NodeLoad{}, err
		}
		n, size := binary.Uvarint(after)
		if size <= 0 || n == 0 || n > maxSlots {
			return api.NodeLoad{}, fmt.Errorf("%w: warm slots", errMalformed)
		}
		if l.Warm == nil {
			l.Warm = make(map[string]int, len(w.Warm)/10+1)
		}
		if _, twice := l.Warm[key]; twice {
			return api.NodeLoad{}, fmt.Errorf("%w: a revision twice", errMalformed)
		}
		l.Warm[key], rest = int(n), after[size:]
	}
	for rest := w.Images; len(rest) > 0; {
		key, after, err := cutKey(rest)
		if err != nil {
			return api.NodeLoad{}, err
		}
		rest = after
		switch {
		case key[0] != hostMark:
			l.Images = append(l.Images, key)
		case len(l.Images) > 0 || len(key) == 1:
			return api.NodeLoad{}, fmt.Errorf("%w: order of hints", errMalformed)
		default:
			l.Hosts = append(l.Hosts, key[1:])
		}
	}
	if err := checkLoad(l); err != nil {
		return api.NodeLoad{}, fmt.Errorf("%w: %w", errMalformed, err)
	}
	return l, nil
}

// hostMark begins an entry of Images that is a revision of Hosts: earlier releases
// take it for an image that nobody asks for.
const hostMark = '+'

// appendKey writes a key of 16 lower-case hex digits as a zero and 8 bytes, any
// other as its length, 1..16, and its bytes.
func appendKey(b []byte, key string) []byte {
	if raw, ok := packed(key); ok {
		return append(append(b, 0), raw...)
	}
	return append(append(b, byte(len(key))), key...)
}

func packed(key string) ([]byte, bool) {
	if len(key) != maxHintKey {
		return nil, false
	}
	raw, err := hex.DecodeString(key)
	return raw, err == nil && hex.EncodeToString(raw) == key
}

// cutKey reads one key off b and refuses the long form of what has a short one.
func cutKey(b []byte) (key string, rest []byte, err error) {
	n := int(b[0])
	switch {
	case n == 0 && len(b) >= 9:
		return hex.EncodeToString(b[1:9]), b[9:], nil
	case n >= 1 && n <= maxHintKey && len(b) > n:
		key = string(b[1 : 1+n])
		if _, short := packed(key); !short {
			return key, b[1+n:], nil
		}
	}
	return "", nil, fmt.Errorf("%w: key", errMalformed)
}

// appendState adds one encoded load to a list of loads: length in two bytes, then
// the load.
func appendState(b, load []byte) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(len(load)))
	return append(b, load...)
}

// eachState calls f with every load of a list and stops at the first thing that
// is not one.
func eachState(b []byte, f func(load []byte)) error {
	if len(b) > maxState {
		return fmt.Errorf("%w: state of %d bytes", errMalformed, len(b))
	}
	if len(b) == 0 || b[0] != wireVersion {
		return fmt.Errorf("%w: state of an unknown version", errMalformed)
	}
	for b = b[1:]; len(b) > 0; {
		if len(b) < 2 {
			return fmt.Errorf("%w: state ends early", errMalformed)
		}
		n := int(binary.BigEndian.Uint16(b))
		if b = b[2:]; n > len(b) || n > maxLoad {
			return fmt.Errorf("%w: load of %d bytes in the state", errMalformed, n)
		}
		f(b[:n])
		b = b[n:]
	}
	return nil
}
