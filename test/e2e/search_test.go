package e2e

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// A needle is one form in which a secret could lie somewhere.
type needle struct {
	secret string // which one, for people
	form   string
	bytes  []byte
}

// forms are the ways a text could have been written down without being sealed.
func forms(secret, text string) []needle {
	raw := []byte(text)
	out := []needle{
		{secret, "raw", raw},
		{secret, "hex", []byte(hex.EncodeToString(raw))},
		{secret, "HEX", []byte(strings.ToUpper(hex.EncodeToString(raw)))},
	}
	var escaped, wide []byte
	for _, c := range raw {
		escaped = fmt.Appendf(escaped, "%%%02X", c)
		wide = append(wide, c, 0)
	}
	out = append(out, needle{secret, "URL-escaped", escaped}, needle{secret, "url-escaped", bytes.ToLower(escaped)},
		needle{secret, "UTF-16", wide[:len(wide)-1]})
	return append(out, base64Forms(secret, raw)...)
}

// keyForms are the ways a private scalar could lie in memory or in a file; the
// library's big numbers keep it least significant byte first.
func keyForms(secret string, scalar []byte) []needle {
	swapped := slices.Clone(scalar)
	slices.Reverse(swapped)
	return append([]needle{
		{secret, "raw", scalar}, {secret, "limbs", swapped},
		{secret, "hex", []byte(hex.EncodeToString(scalar))}, {secret, "HEX", []byte(strings.ToUpper(hex.EncodeToString(scalar)))},
	}, base64Forms(secret, scalar)...)
}

// base64Forms encodes raw as it looks inside a longer text, after 0, 1 and 2
// other bytes, without the digits that depend on its neighbours.
func base64Forms(secret string, raw []byte) []needle {
	var out []needle
	for before := range 3 {
		padded := append(make([]byte, before), raw...)
		whole := len(padded) * 8 / 6 // digits that are all ours at the end
		for _, enc := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
			digits := enc.EncodeToString(padded)[:whole]
			if before > 0 {
				digits = digits[before+1:]
			}
			n := needle{secret, fmt.Sprintf("base64+%d", before), []byte(digits)}
			if !slices.ContainsFunc(out, func(o needle) bool { return bytes.Equal(o.bytes, n.bytes) }) {
				out = append(out, n)
			}
		}
	}
	return out
}

// A finder looks for many needles in one pass: every needle has at least
// shortest bytes, so one of the four-byte grams that it looks at in each stride
// lies inside any occurrence.
type finder struct {
	needles []needle
	filter  [1 << 14]uint64
	at      map[uint32][]spot
	longest int
	stride  int
}

type spot struct{ needle, offset int }

// shortest is that of texts and keys; numbers are shorter, and take longer to find.
const shortest = 32

func newFinder(needles []needle) (*finder, error) { return newFinderOf(needles, shortest) }

func newFinderOf(needles []needle, shortest int) (*finder, error) {
	f := &finder{needles: needles, at: map[uint32][]spot{}, stride: shortest - 4 + 1}
	for i, n := range needles {
		if len(n.bytes) < shortest {
			return nil, fmt.Errorf("needle %s as %s has only %d bytes", n.secret, n.form, len(n.bytes))
		}
		f.longest = max(f.longest, len(n.bytes))
		for off := range f.stride {
			g := binary.LittleEndian.Uint32(n.bytes[off:])
			f.at[g] = append(f.at[g], spot{i, off})
			f.filter[gramBit(g)>>6] |= 1 << (gramBit(g) & 63)
		}
	}
	return f, nil
}

func gramBit(g uint32) uint32 { return g * 2654435761 >> 12 }

// search calls found for every occurrence in b.
func (f *finder) search(b []byte, found func(n needle, offset int)) {
	for i := 0; i+4 <= len(b); i += f.stride {
		g := binary.LittleEndian.Uint32(b[i:])
		if bit := gramBit(g); f.filter[bit>>6]&(1<<(bit&63)) == 0 {
			continue
		}
		for _, s := range f.at[g] {
			n := f.needles[s.needle]
			if from := i - s.offset; from >= 0 && from+len(n.bytes) <= len(b) && bytes.Equal(b[from:from+len(n.bytes)], n.bytes) {
				found(n, from)
			}
		}
	}
}

// stream searches all of r, also across the pieces it is read in.
func (f *finder) stream(r io.Reader, found func(n needle, offset int64)) (int64, error) {
	buf := make([]byte, 1<<20)
	var base int64 // of buf[0]
	kept := 0
	for {
		k, err := io.ReadFull(r, buf[kept:])
		have := kept + k
		f.search(buf[:have], func(n needle, off int) {
			if off+len(n.bytes) > kept { // else it was found in the piece before
				found(n, base+int64(off))
			}
		})
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return base + int64(have), nil
		}
		if err != nil {
			return base + int64(have), err
		}
		keep := min(f.longest-1, have)
		copy(buf, buf[have-keep:have])
		base += int64(have - keep)
		kept = keep
	}
}

// file searches one file, and what it holds if it is compressed.
func (f *finder) file(path string, found func(n needle, where string)) (int64, error) {
	// A FIFO or device that took the file's place must not stop the search.
	h, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return 0, err
	}
	defer h.Close()
	size, err := f.stream(h, func(n needle, off int64) { found(n, fmt.Sprintf("%s at byte %d", path, off)) })
	if err != nil {
		return size, err
	}
	var magic [2]byte
	if _, err := h.ReadAt(magic[:], 0); err != nil || magic != [2]byte{0x1f, 0x8b} {
		return size, nil
	}
	if _, err := h.Seek(0, io.SeekStart); err != nil {
		return size, err
	}
	z, err := gzip.NewReader(h)
	if err != nil {
		return size, nil // only looked like one
	}
	inside, err := f.stream(z, func(n needle, off int64) { found(n, fmt.Sprintf("%s, unpacked, at byte %d", path, off)) })
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, gzip.ErrChecksum) || errors.Is(err, gzip.ErrHeader) {
		err = nil
	}
	return size + inside, err
}

// tree searches the names and contents of everything below root that changed
// since, but for what skip names. What vanishes meanwhile was not left behind.
func (f *finder) tree(root string, since time.Time, skip func(path string) bool, found func(n needle, where string)) (files int, size int64, err error) {
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH):
			return nil
		case err != nil:
			return err
		case skip != nil && skip(path):
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		f.search([]byte(path), func(n needle, _ int) { found(n, "the name of "+path) })
		if d.Type()&fs.ModeSymlink != 0 {
			if target, err := os.Readlink(path); err == nil {
				f.search([]byte(target), func(n needle, _ int) { found(n, "the target of "+path) })
			}
		}
		if !d.Type().IsRegular() {
			return nil
		}
		info, err := d.Info()
		if err != nil || info.ModTime().Before(since) {
			return nil
		}
		k, err := f.file(path, found)
		files, size = files+1, size+k
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	return files, size, err
}
