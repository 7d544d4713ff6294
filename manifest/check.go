package manifest

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed"
)

// Limits of every field.
const (
	MaxCPUMillis     = 1 << 20 // a thousand cores
	MaxBytes         = 1 << 50 // of memory, storage, scratch
	MaxPIDs          = 1 << 22 // the kernel's own
	MaxBPS           = 1 << 50
	MaxPortEntries   = 16
	MaxPorts         = 64 // in all
	MaxConstraints   = 32
	MaxLabel         = 128 // bytes of a label's key and of its value
	MaxArchitectures = 8
	MaxArchitecture  = 16 // bytes
	MaxDeadlineMS    = 1 << 50
	MaxPriority      = 9
	MaxAttempts      = 10
	MaxRetryCodes    = 16
	MaxRetryCode     = 32 // bytes
	MaxInitiators    = 64
	MaxCores         = 64
)

// Validate checks every field and names the first that is wrong, and the remedy.
func (m *Manifest) Validate() error {
	if err := checkHead(m.Suite, m.Revision); err != nil {
		return err
	}
	return m.ValidateAsked()
}

// ValidateAsked is Validate before it is known which revision is asked for.
func (m *Manifest) ValidateAsked() error {
	if err := m.Needs.validate(); err != nil {
		return err
	}
	if m.DeadlineMS > MaxDeadlineMS {
		return over("deadline", m.DeadlineMS, MaxDeadlineMS)
	}
	if m.Priority > MaxPriority {
		return over("priority", uint64(m.Priority), MaxPriority)
	}
	return m.Retry.validate()
}

func checkHead(suite uint16, revision sealed.Digest) error {
	if suite != sealed.SuiteSM {
		return api.Invalid("suite", "ask for suite 1", fmt.Sprintf("%d is unknown", suite))
	}
	if revision.IsZero() {
		return api.Invalid("revision", "give the digest of the function's verified descriptor", "no revision")
	}
	return nil
}

func over(field string, got, most uint64) error {
	return api.Invalid(field, "ask for at most "+strconv.FormatUint(most, 10), strconv.FormatUint(got, 10)+" is out of range")
}

// number is one need that is a plain number.
type number struct {
	field Field
	value uint64
	most  uint64
}

func (n *Needs) numbers() [8]number {
	return [...]number{
		{FieldCPU, n.CPUMillis, MaxCPUMillis}, {FieldMemory, n.MemoryBytes, MaxBytes},
		{FieldStorage, n.StorageBytes, MaxBytes}, {FieldScratch, n.ScratchBytes, MaxBytes}, {FieldPIDs, n.PIDs, MaxPIDs},
		{FieldIngress, n.IngressBPS, MaxBPS}, {FieldEgress, n.EgressBPS, MaxBPS}, {FieldCores, n.Cores, MaxCores},
	}
}

// set gives the number of field f another value.
func (n *Needs) set(f Field, v uint64) {
	if f == FieldCores {
		n.Cores = v
		return
	}
	*[...]*uint64{&n.CPUMillis, &n.MemoryBytes, &n.StorageBytes, &n.ScratchBytes, &n.PIDs, &n.IngressBPS, &n.EgressBPS}[f-FieldCPU] = v
}

func (n *Needs) validate() error {
	for _, x := range n.numbers() {
		if x.value > x.most {
			return over(x.field.String(), x.value, x.most)
		}
	}
	if err := checkPorts(n.Ports); err != nil {
		return err
	}
	if err := checkConstraints(n.Constraints); err != nil {
		return err
	}
	if err := ascending("architectures", n.Architectures, MaxArchitectures, MaxArchitecture, false); err != nil {
		return err
	}
	if n.AntiAffinity > ReplicasApart {
		return over("anti_affinity", uint64(n.AntiAffinity), uint64(ReplicasApart))
	}
	return checkReach("allow", n.Allow)
}

// checkReach checks a list of what may be opened.
func checkReach(field string, list []Reach) error {
	if len(list) > api.MaxReach {
		return over(field, uint64(len(list)), api.MaxReach)
	}
	for i, r := range list {
		switch {
		case r.Protocol != TCP && r.Protocol != UDP:
			return api.Invalid(field, "use 1 (tcp) or 2 (udp)", fmt.Sprintf("protocol %d is unknown", r.Protocol))
		case r.Bits > 32 || r.Network&^mask(r.Bits) != 0:
			return api.Invalid(field, "give a network's first address, and a prefix of 0 to 32 bits", "one is no network")
		case r.From == 0 || r.To < r.From:
			return api.Invalid(field, "use ports of 1 to 65535, the lower one first", "ports that are none")
		case slices.Contains(list[:i], r):
			return api.Invalid(field, "write each once", "one is repeated")
		}
	}
	return nil
}

func mask(bits uint8) uint32 { return uint32(uint64(0xffffffff) << (32 - bits)) }

// within reports whether o allows all that r does.
func (r Reach) within(o Reach) bool {
	return r.Protocol == o.Protocol && o.Bits <= r.Bits && r.Network&mask(o.Bits) == o.Network && o.From <= r.From && r.To <= o.To
}

func checkPorts(ports []Port) error {
	if len(ports) > MaxPortEntries {
		return over("ports", uint64(len(ports)), MaxPortEntries)
	}
	for i, p := range ports {
		switch {
		case p.Protocol != TCP && p.Protocol != UDP:
			return api.Invalid("ports", "use 1 (tcp) or 2 (udp)", fmt.Sprintf("protocol %d is unknown", p.Protocol))
		case p.Count == 0 || p.Count > MaxPorts:
			return api.Invalid("ports", fmt.Sprintf("ask for 1 to %d", MaxPorts), fmt.Sprintf("a count of %d", p.Count))
		case p.Number != 0 && p.Count != 1:
			return api.Invalid("ports", "ask for a count of 1, or for any number", fmt.Sprintf("%d ports of one number", p.Count))
		case slices.ContainsFunc(ports[:i], func(q Port) bool { return q.Protocol == p.Protocol && q.Number == p.Number }):
			return api.Invalid("ports", "write each protocol and number once", "one is repeated")
		}
	}
	if n := countPorts(ports); n > MaxPorts {
		return over("ports", n, MaxPorts)
	}
	return nil
}

func countPorts(ports []Port) (n uint64) {
	for _, p := range ports {
		n += uint64(p.Count)
	}
	return n
}

func checkConstraints(list []Requirement) error {
	if len(list) > MaxConstraints {
		return over("constraints", uint64(len(list)), MaxConstraints)
	}
	for i, r := range list {
		valued := r.Op == Equals || r.Op == Differs
		switch {
		case r.Key == "" || !printable(r.Key) || !printable(r.Value):
			return api.Invalid("constraints", fmt.Sprintf("use 1 to %d printable ASCII characters", MaxLabel), "a key or value is malformed")
		case r.Op < Equals || r.Op > Absent:
			return api.Invalid("constraints", "use =, !=, exists or !exists", fmt.Sprintf("operator %d is unknown", r.Op))
		case !valued && r.Value != "":
			return api.Invalid("constraints", "leave the value out", "exists and !exists have none")
		case slices.Contains(list[:i], r):
			return api.Invalid("constraints", "write each once", "one is repeated")
		}
	}
	return nil
}

func printable(s string) bool {
	return len(s) <= MaxLabel && !slices.ContainsFunc([]byte(s), func(c byte) bool { return c < 0x20 || c > 0x7e })
}

// ascending checks a list of words of a-z, 0-9, and _ where score says so.
func ascending(field string, list []string, items, size int, score bool) error {
	if len(list) > items {
		return over(field, uint64(len(list)), uint64(items))
	}
	for i, s := range list {
		bad := slices.ContainsFunc([]byte(s), func(c byte) bool {
			return (c < 'a' || c > 'z') && (c < '0' || c > '9') && (c != '_' || !score)
		})
		if s == "" || len(s) > size || bad {
			return api.Invalid(field, fmt.Sprintf("use 1 to %d lower-case letters and digits", size), "a word is malformed")
		}
		if i > 0 && list[i-1] >= s {
			return api.Invalid(field, "sort the list, and write each once", "not ascending")
		}
	}
	return nil
}

func (r *Retry) validate() error {
	if r.MaxAttempts > MaxAttempts {
		return over("retry", uint64(r.MaxAttempts), MaxAttempts)
	}
	if r.MaxAttempts == 0 && (len(r.Codes) > 0 || r.AfterNodeDeath) {
		return api.Invalid("retry", "say how many attempts", "conditions without attempts")
	}
	return ascending("retry", r.Codes, MaxRetryCodes, MaxRetryCode, true)
}

// Validate checks every field and names the first that is wrong, and the remedy.
func (b *Bounds) Validate() error {
	if err := checkHead(b.Suite, b.Revision); err != nil {
		return err
	}
	if err := b.Default.validate(); err != nil {
		return err
	}
	if err := b.Retry.validate(); err != nil {
		return err
	}
	if err := b.validateMax(); err != nil {
		return err
	}
	for i, f := range b.Overridable {
		if f == 0 || f >= fieldEnd {
			return api.Invalid("overridable", fmt.Sprintf("use 1 to %d", fieldEnd-1), fmt.Sprintf("field %d is unknown", f))
		}
		if i > 0 && b.Overridable[i-1] >= f {
			return api.Invalid("overridable", "sort the list, and write each once", "not ascending")
		}
	}
	if len(b.Initiators) > MaxInitiators {
		return over("initiators", uint64(len(b.Initiators)), MaxInitiators)
	}
	if b.AnyInitiator && len(b.Initiators) > 0 {
		return api.Invalid("initiators", "list some, or admit all", "listed, but any is admitted")
	}
	for i := range b.Initiators {
		if i > 0 && bytes.Compare(b.Initiators[i-1][:], b.Initiators[i][:]) >= 0 {
			return api.Invalid("initiators", "sort the list, and write each once", "not ascending")
		}
	}
	return nil
}

// validateMax holds maxima against the format's limits and the defaults.
func (b *Bounds) validateMax() error {
	most := b.Max.numbers()
	for i, d := range b.Default.numbers() {
		if err := checkMax(d.field, d.value, most[i], d.most); err != nil {
			return err
		}
	}
	if err := checkMax(FieldPorts, countPorts(b.Default.Ports), b.Max.Ports, MaxPorts); err != nil {
		return err
	}
	if err := checkMax(FieldPriority, uint64(b.Priority), uint64(b.Max.Priority), MaxPriority); err != nil {
		return err
	}
	if err := checkReach("max allow", b.Max.Allow); err != nil {
		return err
	}
	return checkMax(FieldRetry, uint64(b.Retry.MaxAttempts), uint64(b.Max.Attempts), MaxAttempts)
}

func checkMax(f Field, def, most, limit uint64) error {
	if most > limit || def > limit {
		return over("max "+f.String(), max(most, def), limit)
	}
	if most != 0 && most < def {
		return api.Invalid("max "+f.String(), "raise it, or leave it out", "below the default")
	}
	return nil
}

func (m *Max) numbers() [8]uint64 {
	return [...]uint64{m.CPUMillis, m.MemoryBytes, m.StorageBytes, m.ScratchBytes, m.PIDs, m.IngressBPS, m.EgressBPS, m.Cores}
}

// AllowSender reports whether this initiator may send manifests besides the
// owner.
func (b *Bounds) AllowSender(f sealed.Fingerprint) bool {
	return b.AnyInitiator || slices.Contains(b.Initiators, f)
}
