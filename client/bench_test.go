package client_test

import (
	"bytes"
	"io"
	"testing"

	"github.com/faasd-sec/faasd-sec/client"
)

// BenchmarkInvoke1KiB is a warm invocation through net/http on both sides, with
// this test's unpooled agent behind it: an upper bound of the client's share.
func BenchmarkInvoke1KiB(b *testing.B) {
	_, owner, _ := deployed(b)
	body := make([]byte, 1024)
	for b.Loop() {
		res, err := owner.Invoke(b.Context(), fn, client.Request{Body: bytes.NewReader(body)})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, res.Body); err != nil {
			b.Fatal(err)
		}
		res.Body.Close()
	}
}
