// Package slab pools the buffers that records are sealed and opened in, and
// wipes them: each holds plaintext at some time.
package slab

import "sync"

// Sizes in bytes.
const (
	Front = 1024    // room for a grant and a message header
	Size  = 9 << 13 // of a buffer: Front, a record with header and tag, and some read-ahead; whole pages
)

// Buffer is one pooled buffer.
type Buffer [Size]byte

var pool = sync.Pool{New: func() any { return new(Buffer) }}

// Get returns a buffer of zeros.
func Get() *Buffer { return pool.Get().(*Buffer) }

// Put wipes the first used bytes, which are all that the holder wrote to, and
// gives b back. Nil is nothing.
func Put(b *Buffer, used int) {
	if b == nil {
		return
	}
	clear(b[:used])
	pool.Put(b)
}
