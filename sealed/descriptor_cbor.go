package sealed

import (
	"slices"

	"github.com/faasd-sec/faasd-sec/sealed/internal/dcbor"
)

// The payload is one map whose keys are all present and ascending; so are the
// maps in it, but labels, which are text keyed. docs/envelope.md lists them.

const labelRevision = "faasd-sec/v1 revision"

// appendRevisioned appends what the revision digest is taken over.
func (d *Descriptor) appendRevisioned(b []byte) []byte {
	b = dcbor.AppendArray(b, 4)
	b = dcbor.AppendText(b, labelRevision)
	b = dcbor.AppendText(b, d.Name)
	b = dcbor.AppendText(b, d.Namespace)
	return d.Config.appendTo(b)
}

func (d *Descriptor) appendPayload(b []byte) []byte {
	key := func(k uint64) { b = dcbor.AppendUint(b, k) }
	b = dcbor.AppendMap(b, 13)
	key(1)
	b = dcbor.AppendUint(b, 1)
	key(2)
	b = dcbor.AppendText(b, d.Name)
	key(3)
	b = dcbor.AppendText(b, d.Namespace)
	key(4)
	b = dcbor.AppendUint(b, d.Sequence)
	key(5)
	b = dcbor.AppendUint(b, d.Issued)
	key(6)
	b = d.Config.appendTo(b)
	key(7)
	b = dcbor.AppendText(b, d.BundleBlob)
	key(8)
	b = dcbor.AppendBytes(b, d.SigningKey[:])
	key(9)
	b = dcbor.AppendArray(b, len(d.Decryption))
	for i := range d.Decryption {
		k := &d.Decryption[i]
		b = dcbor.AppendMap(b, 3)
		key(1)
		b = dcbor.AppendBytes(b, k.Key[:])
		key(2)
		b = dcbor.AppendUint(b, k.NotBefore)
		key(3)
		b = dcbor.AppendUint(b, k.NotAfter)
	}
	key(10)
	b = dcbor.AppendArray(b, len(d.Suites))
	for _, s := range d.Suites {
		b = dcbor.AppendUint(b, uint64(s))
	}
	key(11)
	b = appendOptional(b, d.LogRecipient[:], d.LogRecipient.IsZero())
	key(12)
	b = dcbor.AppendUint(b, d.MaxQueuedMS)
	key(13)
	return dcbor.AppendText(b, d.ImageRef)
}

func (c *Config) appendTo(b []byte) []byte {
	next := uint64(0)
	key := func() { next++; b = dcbor.AppendUint(b, next) }
	num := func(n uint64) { key(); b = dcbor.AppendUint(b, n) }
	text := func(s string) { key(); b = dcbor.AppendText(b, s) }

	b = dcbor.AppendMap(b, 15)
	text(c.Image)
	key()
	b = appendOptional(b, c.Bundle[:], c.Bundle.IsZero())
	text(string(c.Mode))
	key()
	b = appendTexts(b, c.Argv)
	text(c.Upstream)
	text(c.BundleMount)
	num(c.ReadMS)
	num(c.WriteMS)
	num(c.ExecMS)
	num(c.StartMS)
	num(c.MaxInFlight)
	key()
	b = dcbor.AppendMap(b, 6)
	r := &c.Resources
	for i, n := range [...]uint64{r.CPUMillis, r.MemoryBytes, r.PIDs, r.TmpBytes, r.IOReadBPS, r.IOWriteBPS} {
		b = dcbor.AppendUint(dcbor.AppendUint(b, uint64(i+1)), n)
	}
	num(c.IdleMS)
	key()
	names := make([]string, 0, len(c.Labels))
	for name := range c.Labels {
		names = append(names, name)
	}
	slices.SortFunc(names, func(x, y string) int {
		if dcbor.LessText(x, y) {
			return -1
		}
		return 1 // never equal: they are the keys of a map
	})
	b = dcbor.AppendMap(b, len(names))
	for _, name := range names {
		b = dcbor.AppendText(dcbor.AppendText(b, name), c.Labels[name])
	}
	key()
	b = dcbor.AppendMap(b, 4)
	b = dcbor.AppendArray(dcbor.AppendUint(b, 1), len(c.Policy.Callers))
	for i := range c.Policy.Callers {
		b = dcbor.AppendBytes(b, c.Policy.Callers[i][:])
	}
	b = dcbor.AppendBool(dcbor.AppendUint(b, 2), c.Policy.AnyCaller)
	b = appendTexts(dcbor.AppendUint(b, 3), c.Policy.Attestation)
	return appendOptional(dcbor.AppendUint(b, 4), c.Policy.Broker[:], c.Policy.Broker.IsZero())
}

func appendTexts(b []byte, list []string) []byte {
	b = dcbor.AppendArray(b, len(list))
	for _, s := range list {
		b = dcbor.AppendText(b, s)
	}
	return b
}

// appendOptional appends v, or an empty byte string for none.
func appendOptional(b, v []byte, none bool) []byte {
	if none {
		v = nil
	}
	return dcbor.AppendBytes(b, v)
}

func decodePayload(b []byte) (*Descriptor, error) {
	d := new(Descriptor)
	r := dcbor.NewDecoder(b)
	r.Field("payload").MapOf(13)
	if v := r.Key(1, "version").Uint(); r.Err() == nil && v != 1 {
		r.Fail("%d is unknown, want 1", v)
	}
	d.Name = r.Key(2, "name").Text(maxLabel)
	d.Namespace = r.Key(3, "namespace").Text(maxLabel)
	d.Sequence = r.Key(4, "sequence").Uint()
	d.Issued = r.Key(5, "issued").Uint()
	d.Config.read(r.Key(6, "config"))
	d.BundleBlob = r.Key(7, "bundle blob").Text(digestTextBytes)
	r.Key(8, "signing key").Fixed(d.SigningKey[:])
	n := r.Key(9, "decryption keys").Array(maxDecryption)
	for range n {
		var k DecryptionKey
		r.Field("decryption keys").MapOf(3)
		r.Key(1, "decryption key").Fixed(k.Key[:])
		k.NotBefore = r.Key(2, "decryption key's not_before").Uint()
		k.NotAfter = r.Key(3, "decryption key's not_after").Uint()
		d.Decryption = append(d.Decryption, k)
	}
	n = r.Key(10, "suites").Array(maxSuites)
	for range n {
		s := r.Uint()
		if s > 0xffff {
			r.Fail("%d is no suite", s)
		}
		d.Suites = append(d.Suites, uint16(s))
	}
	readOptional(r.Key(11, "log recipient"), d.LogRecipient[:])
	d.MaxQueuedMS = r.Key(12, "max age queued").Uint()
	d.ImageRef = r.Key(13, "image ref").Text(maxRef)
	if err := r.End(); err != nil {
		return nil, err
	}
	return d, nil
}

func (c *Config) read(r *dcbor.Decoder) {
	r.MapOf(15)
	c.Image = r.Key(1, "image").Text(digestTextBytes)
	readOptional(r.Key(2, "bundle"), c.Bundle[:])
	c.Mode = Mode(r.Key(3, "mode").Text(16))
	c.Argv = readTexts(r.Key(4, "argv"), maxArgs, maxArg)
	c.Upstream = r.Key(5, "upstream").Text(maxUpstream)
	c.BundleMount = r.Key(6, "bundle mount").Text(maxMount)
	c.ReadMS = r.Key(7, "read timeout").Uint()
	c.WriteMS = r.Key(8, "write timeout").Uint()
	c.ExecMS = r.Key(9, "exec timeout").Uint()
	c.StartMS = r.Key(10, "start timeout").Uint()
	c.MaxInFlight = r.Key(11, "max in flight").Uint()
	r.Key(12, "resources").MapOf(6)
	for i, n := range [...]*uint64{
		&c.Resources.CPUMillis, &c.Resources.MemoryBytes, &c.Resources.PIDs,
		&c.Resources.TmpBytes, &c.Resources.IOReadBPS, &c.Resources.IOWriteBPS,
	} {
		*n = r.Key(uint64(i+1), "resources").Uint()
	}
	c.IdleMS = r.Key(13, "idle").Uint()
	n := r.Key(14, "labels").Map(maxLabels)
	last := ""
	for i := range n {
		k := r.Text(maxLabelText)
		if i > 0 && !dcbor.LessText(last, k) {
			r.Fail("names are not ascending, or one is repeated")
		}
		if c.Labels == nil {
			c.Labels = make(map[string]string, n)
		}
		c.Labels[k], last = r.Text(maxLabelText), k
	}
	r.Key(15, "policy").MapOf(4)
	n = r.Key(1, "policy callers").Array(maxCallers)
	for range n {
		var f Fingerprint
		r.Fixed(f[:])
		if r.Err() != nil {
			return
		}
		c.Policy.Callers = append(c.Policy.Callers, f)
	}
	c.Policy.AnyCaller = r.Key(2, "policy any caller").Bool()
	c.Policy.Attestation = readTexts(r.Key(3, "policy attestation"), maxAttestation, maxLabel)
	readOptional(r.Key(4, "policy broker"), c.Policy.Broker[:])
}

func readTexts(r *dcbor.Decoder, items, bytes int) (list []string) {
	for range r.Array(items) {
		list = append(list, r.Text(bytes))
	}
	return list
}

// readOptional reads nothing or exactly len(dst) bytes, which are then not all
// zero: none has one encoding.
func readOptional(r *dcbor.Decoder, dst []byte) {
	v := r.Bytes(len(dst))
	if len(v) != 0 && len(v) != len(dst) {
		r.Fail("has %d bytes, want none or %d", len(v), len(dst))
		return
	}
	copy(dst, v)
	if len(v) != 0 && !slices.ContainsFunc(v, func(c byte) bool { return c != 0 }) {
		r.Fail("is all zero; nothing is written as an empty string")
	}
}
