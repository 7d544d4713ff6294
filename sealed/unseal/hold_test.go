package unseal_test

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"testing"

	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/sealed/unseal"
)

var bodySizes = []int{0, 1, 1024, 65000, 65536, 65537, 200_000, unseal.HoldLimit - 1, unseal.HoldLimit, unseal.HoldLimit + 1, 3<<20 + 5}

func TestBodiesOfEverySizeArriveWhole(t *testing.T) {
	w := newWorld(t)
	g := w.requestGrant(t)
	o := w.opener(t, w.fn.Decrypter(), true)
	for _, n := range bodySizes {
		body := make([]byte, n)
		rand.Read(body)
		for _, flags := range []sealed.Flags{0, sealed.FlagEarlyInput} {
			got, err := readAll(o, must(w.request(t, g, flags, body)), w.wantRequest())
			if err != nil || !bytes.Equal(got, body) {
				t.Fatalf("%d bytes, flags %d: %d came, %v", n, flags, len(got), err)
			}
		}
		// ReadAll, and WriteTo by io.Copy, with records of every kind of length.
		var sealedBody bytes.Buffer
		s, err := g.SealRequest(&sealedBody, sealed.MessageParams{Issued: w.now()}, sealed.RequestHead{Method: "PUT"})
		if err != nil {
			t.Fatal(err)
		}
		for i, rest := 0, body; len(rest) > 0; i++ {
			m := min(len(rest), 1+i*i*37)
			if _, err := s.Write(rest[:m]); err != nil {
				t.Fatal(err)
			}
			if err := s.Flush(); err != nil {
				t.Fatal(err)
			}
			rest = rest[m:]
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		m, err := o.Open(bytes.NewReader(sealedBody.Bytes()), w.wantRequest())
		if err != nil {
			t.Fatal(err)
		}
		r, err := m.Body(memSpools)
		if err != nil {
			t.Fatal(err)
		}
		if h, err := m.RequestHead(); err != nil || h.Method != "PUT" || !m.Complete() {
			t.Fatalf("head %v, %v, complete %t", h, err, m.Complete())
		}
		var got bytes.Buffer
		if _, err := io.Copy(&got, r); err != nil || !bytes.Equal(got.Bytes(), body) {
			t.Fatalf("%d bytes in short records: %d came, %v", n, got.Len(), err)
		}
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := r.Read(make([]byte, 1)); n > 0 && (err == nil || errors.Is(err, io.EOF)) {
			t.Fatalf("the body reads on after Close: %v", err)
		}
	}
}

func TestSpoolHoldsCiphertextAndIsClosed(t *testing.T) {
	w := newWorld(t)
	o := w.opener(t, w.fn.Decrypter(), true)
	body := bytes.Repeat([]byte("plaintext "), 300_000)
	m, err := o.Open(bytes.NewReader(must(w.request(t, w.requestGrant(t), 0, body))), w.wantRequest())
	if err != nil {
		t.Fatal(err)
	}
	spool := &memSpool{}
	if _, err := m.Hold(func() (io.ReadWriteSeeker, error) { return spool, nil }); err != nil {
		t.Fatal(err)
	}
	if len(spool.bytes) < len(body)-unseal.HoldLimit || bytes.Contains(spool.bytes, []byte("plaintext")) {
		t.Fatalf("%d bytes in the spool, or plaintext in it", len(spool.bytes))
	}
	if err := m.Close(); err != nil || !spool.closed {
		t.Fatalf("the spool was left open: %v", err)
	}
}

func TestSpoolThatChangesEndsTheBodyInAnError(t *testing.T) {
	w := newWorld(t)
	o := w.opener(t, w.fn.Decrypter(), true)
	body := bytes.Repeat([]byte("plaintext "), 300_000)
	for name, c := range map[string]struct {
		code   sealed.Code
		change func(*memSpool)
	}{
		"flipped": {sealed.CodeRecord, func(s *memSpool) { s.bytes[len(s.bytes)/2] ^= 1 }},
		"cut":     {sealed.CodeTruncated, func(s *memSpool) { s.bytes = s.bytes[:len(s.bytes)-1] }},
	} {
		m, err := o.Open(bytes.NewReader(must(w.request(t, w.requestGrant(t), 0, body))), w.wantRequest())
		if err != nil {
			t.Fatal(err)
		}
		spool := &memSpool{}
		r, err := m.Hold(func() (io.ReadWriteSeeker, error) { return spool, nil })
		if err != nil {
			t.Fatal(err)
		}
		c.change(spool)
		_, err = io.ReadAll(r)
		if sealed.CodeOf(err) != c.code {
			t.Errorf("%s: %v, want %s", name, err, c.code)
		}
		m.Close()
	}
}

func TestLongBodyWithoutSpoolIsRefused(t *testing.T) {
	w := newWorld(t)
	g := w.requestGrant(t)
	o := w.opener(t, w.fn.Decrypter(), true)
	for n, want := range map[int]error{unseal.HoldLimit: nil, unseal.HoldLimit + 1: unseal.ErrTooLong} {
		m, err := o.Open(bytes.NewReader(must(w.request(t, g, 0, make([]byte, n)))), w.wantRequest())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := m.Hold(nil); !errors.Is(err, want) {
			t.Errorf("%d bytes: %v", n, err)
		}
		m.Close()
		if m, err = o.Open(bytes.NewReader(must(w.request(t, g, 0, make([]byte, n)))), w.wantRequest()); err != nil {
			t.Fatal(err)
		}
		if got, err := m.ReadAll(unseal.HoldLimit); !errors.Is(err, want) || want == nil && len(got) != n {
			t.Errorf("ReadAll of %d bytes: %v", n, err)
		}
		m.Close()
	}
	broken := errors.New("no space")
	m, err := o.Open(bytes.NewReader(must(w.request(t, g, 0, make([]byte, 2<<20)))), w.wantRequest())
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if _, err := m.Hold(func() (io.ReadWriteSeeker, error) { return nil, broken }); !errors.Is(err, broken) {
		t.Fatal(err)
	}
}

func TestBodyIsTakenOnce(t *testing.T) {
	w := newWorld(t)
	o := w.opener(t, w.fn.Decrypter(), true)
	m, err := o.Open(bytes.NewReader(must(w.request(t, w.requestGrant(t), 0, []byte("x")))), w.wantRequest())
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if _, err := m.Body(nil); err != nil {
		t.Fatal(err)
	}
	if _, err := m.ReadAll(10); err == nil {
		t.Fatal("the body came twice")
	}
}

// TestShortRecordsCostNoMoreMemory: a sender that cuts a body into records of an
// awkward size must not make Hold keep much more than HoldLimit.
func TestShortRecordsCostNoMoreMemory(t *testing.T) {
	w := newWorld(t)
	g := w.requestGrant(t)
	var b bytes.Buffer
	s, err := g.SealRequest(&b, sealed.MessageParams{Issued: w.now()}, sealed.RequestHead{Method: "PUT"})
	if err != nil {
		t.Fatal(err)
	}
	for range unseal.HoldLimit / 8193 {
		s.Write(make([]byte, 8193))
		s.Flush()
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	m, err := w.opener(t, w.fn.Decrypter(), false).Open(&b, w.wantRequest())
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if _, err := m.Hold(nil); err != nil {
		t.Fatal(err)
	}
	if held := m.HeldBytes(); held > 3*unseal.HoldLimit {
		t.Fatalf("%d bytes of buffers for a body of %d", held, unseal.HoldLimit)
	}
}

func TestStreamingTakesConstantMemory(t *testing.T) {
	size := int64(256 << 20)
	if testing.Short() {
		size = 32 << 20
	}
	if peak := pipePeak(t, newWorld(t), size); peak > 8<<20 {
		t.Fatalf("%d bytes of heap for %d through seal and open", peak, size)
	}
}
