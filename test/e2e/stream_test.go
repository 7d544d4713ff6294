package e2e

import (
	"bufio"
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/client"
)

func TestSealedRepliesComeAsTheFunctionWritesThem(t *testing.T) {
	c := up(t, 1)
	fn := c.deploy(t, "stream")
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	// The header is there before the first event, and each event before the next
	// one is allowed to be sent.
	resp, err := c.client.Invoke(ctx, fn, client.Request{Method: "GET", Path: "/events", Query: "n=3"})
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.Status != 200 || resp.Header.Get("Content-Type") != "text/event-stream" {
		t.Errorf("%d %v", resp.Status, resp.Header)
	}
	br := bufio.NewReader(resp.Body)
	for i := range 3 {
		c.must(t, fn, "/step", "")
		if line, err := br.ReadString('\n'); err != nil || line != fmt.Sprintf("data: %d\n", i) {
			t.Fatalf("event %d: %q, %v", i, line, err)
		}
		if _, err := br.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
	}
}
