package client_test

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/client"
	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/sealed/unseal"
)

func TestLogsAreOpenedAndDuplicatesDropped(t *testing.T) {
	c, owner, _ := deployed(t)
	sign, err := unseal.KeyFromScalar(c.Keys.Signing)
	if err != nil {
		t.Fatal(err)
	}
	frame := func(seq uint64, sender *unseal.PrivateKey, text string) []byte {
		now := time.Now()
		g, err := sealed.NewGrant(sealed.GrantParams{Role: sealed.RoleLog, Recipient: c.Descriptor.LogRecipient, Sender: sender, Context: c.Revision,
			Name: string(fn), NotBefore: now.Add(-time.Minute), NotAfter: now.Add(time.Hour)})
		if err != nil {
			t.Fatal(err)
		}
		defer g.Release()
		body, err := sealed.AppendLog(nil, sealed.LogLine{Time: uint64(now.UnixNano()), Stream: sealed.StreamStdout, Text: []byte(text)})
		if err != nil {
			t.Fatal(err)
		}
		msg, err := g.Append(nil, sealed.MessageParams{Issued: now}, body)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := json.Marshal(api.LogFrame{Node: "n1", Sandbox: "s1", Seq: seq, Sealed: msg})
		return b
	}
	forger, err := unseal.NewKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c.Logs = [][]byte{{}, frame(1, sign, "one"), frame(2, sign, "two"), frame(1, sign, "one"), frame(3, forger, "forged"), frame(4, sign, "three")}
	var got []string
	err = owner.Logs(t.Context(), fn, false, func(l client.LogLine, err error) error {
		if err != nil {
			got = append(got, string(api.CodeOf(err)))
			return nil
		}
		got = append(got, l.Text)
		return nil
	})
	if err != nil || strings.Join(got, " ") != "one two sender three" {
		t.Errorf("%q, %v", got, err)
	}
	_, lerr := os.Stat("nowhere")
	if err := owner.Logs(t.Context(), fn, false, func(client.LogLine, error) error { return lerr }); !errors.Is(err, lerr) {
		t.Errorf("error %v", err)
	}
}
