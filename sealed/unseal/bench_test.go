package unseal_test

import (
	"bytes"
	"crypto/cipher"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
	"sync/atomic"
	"testing"

	"github.com/emmansun/gmsm/sm4"

	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/sealed/unseal"
)

var benchSizes = []int{1 << 10, 64 << 10, 1 << 20}

func sizeName(n int) string {
	if n < 1<<20 {
		return fmt.Sprintf("%dKiB", n>>10)
	}
	return fmt.Sprintf("%dMiB", n>>20)
}

var benchHead = sealed.RequestHead{Method: "POST", Path: "/", Header: []sealed.Field{{Name: "content-type", Value: "application/octet-stream"}}}

// BenchmarkFloor is raw SM4-GCM in records of the same size: what seal and open
// are to be compared with.
func BenchmarkFloor(b *testing.B) {
	block, err := sm4.NewCipher(make([]byte, 16))
	if err != nil {
		b.Fatal(err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		b.Fatal(err)
	}
	nonce := make([]byte, 12)
	for _, n := range benchSizes {
		text := make([]byte, min(n, sealed.MaxRecord), sealed.MaxRecord+16)
		ct := aead.Seal(nil, nonce, text, nil)
		out := make([]byte, 0, len(text))
		b.Run("seal/"+sizeName(n), func(b *testing.B) {
			b.SetBytes(int64(n))
			for b.Loop() {
				for range n / len(text) {
					aead.Seal(text[:0], nonce, text, nil)
				}
			}
		})
		b.Run("open/"+sizeName(n), func(b *testing.B) {
			b.SetBytes(int64(n))
			for b.Loop() {
				for range n / len(text) {
					if _, err := aead.Open(out, nonce, ct, nil); err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
}

func BenchmarkSeal(b *testing.B) {
	w := newWorld(b)
	g := w.requestGrant(b)
	for _, n := range benchSizes {
		body := make([]byte, n)
		b.Run("append/"+sizeName(n), func(b *testing.B) {
			b.SetBytes(int64(n))
			b.ReportAllocs()
			var out []byte
			for b.Loop() {
				var err error
				if out, _, _, err = g.AppendRequest(out[:0], sealed.MessageParams{Issued: w.now()}, benchHead, body); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run("stream/"+sizeName(n), func(b *testing.B) {
			b.SetBytes(int64(n))
			b.ReportAllocs()
			for b.Loop() {
				s, err := g.SealRequest(io.Discard, sealed.MessageParams{Issued: w.now()}, benchHead)
				if err != nil {
					b.Fatal(err)
				}
				s.Write(body)
				if err := s.Close(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("cold/1KiB", func(b *testing.B) {
		body := make([]byte, 1024)
		for b.Loop() {
			g := w.requestGrant(b)
			if _, _, _, err := g.AppendRequest(nil, sealed.MessageParams{Issued: w.now()}, benchHead, body); err != nil {
				b.Fatal(err)
			}
			g.Release()
		}
	})
}

func BenchmarkOpen(b *testing.B) {
	w := newWorld(b)
	g := w.requestGrant(b)
	for _, n := range benchSizes {
		body := make([]byte, n)
		for _, cached := range []bool{true, false} {
			name := map[bool]string{true: "warm/", false: "cold/"}[cached]
			b.Run(name+sizeName(n), func(b *testing.B) {
				b.SetBytes(int64(n))
				b.ReportAllocs()
				o := w.opener(b, w.fn.Decrypter(), cached)
				// Seal in batches outside the clock: every message opens once.
				var batch [][]byte
				var r bytes.Reader
				for b.Loop() {
					if len(batch) == 0 {
						b.StopTimer()
						for range max(1, min(256, (4<<20)/n)) {
							m, _, _, err := g.AppendRequest(nil, sealed.MessageParams{Issued: w.now()}, benchHead, body)
							if err != nil {
								b.Fatal(err)
							}
							batch = append(batch, m)
						}
						b.StartTimer()
					}
					r.Reset(batch[len(batch)-1])
					batch = batch[:len(batch)-1]
					m, err := o.Open(&r, w.wantRequest())
					if err != nil {
						b.Fatal(err)
					}
					body, err := m.Body(memSpools)
					if err != nil {
						b.Fatal(err)
					}
					if _, err := io.Copy(io.Discard, body); err != nil {
						b.Fatal(err)
					}
					m.Close()
				}
			})
		}
	}
}

func BenchmarkReply(b *testing.B) {
	w := newWorld(b)
	g := w.replyGrant(b)
	link, id := sealed.Link{1}, sealed.ID{2}
	head := sealed.ReplyHead{Status: 200, Header: benchHead.Header}
	for _, n := range benchSizes {
		body := make([]byte, n)
		b.Run("seal/"+sizeName(n), func(b *testing.B) {
			b.SetBytes(int64(n))
			var out []byte
			for b.Loop() {
				var err error
				if out, err = g.AppendReply(out[:0], sealed.MessageParams{ID: id, Link: link, Issued: w.now()}, head, body); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run("open/"+sizeName(n), func(b *testing.B) {
			b.SetBytes(int64(n))
			o := w.opener(b, w.caller.Decrypter(), true)
			msg, err := g.AppendReply(nil, sealed.MessageParams{ID: id, Link: link, Issued: w.now()}, head, body)
			if err != nil {
				b.Fatal(err)
			}
			var r bytes.Reader
			for b.Loop() {
				r.Reset(msg)
				p, err := o.ExpectReply(unseal.ExpectReply{ID: id, Link: link, Name: w.name, Context: w.revision, Sender: w.fn.SigningKey()})
				if err != nil {
					b.Fatal(err)
				}
				m, err := p.Open(&r)
				if err != nil {
					b.Fatal(err)
				}
				body, err := m.Stream()
				if err != nil {
					b.Fatal(err)
				}
				if _, err := io.Copy(io.Discard, body); err != nil {
					b.Fatal(err)
				}
				m.Close()
			}
		})
	}
}

// BenchmarkPeakHeap puts 256 MiB through Seal and Open at once and reports the
// most heap that was ever in use beyond what was before.
func BenchmarkPeakHeap(b *testing.B) {
	const size = 256 << 20
	w := newWorld(b)
	b.SetBytes(size)
	peak := uint64(0)
	for b.Loop() {
		peak = max(peak, pipePeak(b, w, size))
	}
	b.ReportMetric(float64(peak)/(1<<20), "MiB-peak")
}

// pipePeak seals size bytes into a pipe, opens them at the other end, and
// returns the peak of the heap in use over its start.
func pipePeak(tb testing.TB, w *world, size int64) uint64 {
	defer debug.SetGCPercent(debug.SetGCPercent(20))
	runtime.GC()
	var before runtime.MemStats
	runtime.ReadMemStats(&before)
	g := w.requestGrant(tb)
	defer g.Release()
	pr, pw := io.Pipe()
	sealing := make(chan error, 1)
	go func() {
		s, err := g.SealRequest(pw, sealed.MessageParams{Issued: w.now(), Flags: sealed.FlagEarlyInput}, benchHead)
		if err == nil {
			if _, err = io.Copy(s, io.LimitReader(zeros{}, size)); err == nil {
				err = s.Close()
			}
			s.Abort()
		}
		pw.CloseWithError(err)
		sealing <- err
	}()
	m, err := w.opener(tb, w.fn.Decrypter(), true).Open(pr, w.wantRequest())
	if err != nil {
		tb.Fatal(err)
	}
	defer m.Close()
	body, err := m.Stream()
	if err != nil {
		tb.Fatal(err)
	}
	var peak, seen atomic.Uint64
	_, err = io.Copy(watcher{&seen, func() {
		var now runtime.MemStats
		runtime.ReadMemStats(&now)
		peak.Store(max(peak.Load(), now.HeapInuse))
	}}, body)
	if err != nil {
		tb.Fatal(err)
	}
	if err := <-sealing; err != nil {
		tb.Fatal(err)
	}
	if got := int64(seen.Load()); got != size {
		tb.Fatalf("%d bytes arrived, want %d", got, size)
	}
	return peak.Load() - min(peak.Load(), before.HeapInuse)
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// watcher counts what is written and looks every 4 MiB.
type watcher struct {
	seen *atomic.Uint64
	look func()
}

func (w watcher) Write(p []byte) (int, error) {
	old := w.seen.Load()
	if now := w.seen.Add(uint64(len(p))); now>>22 != old>>22 {
		w.look()
	}
	return len(p), nil
}
