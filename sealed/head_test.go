package sealed_test

import (
	"bytes"
	"reflect"
	"strings"
	"testing"

	"github.com/fxamacker/cbor/v2"

	"github.com/faasd-sec/faasd-sec/sealed"
)

func TestHeadsHaveTheDocumentedForm(t *testing.T) {
	mode, err := cbor.CoreDetEncOptions().EncMode()
	if err != nil {
		t.Fatal(err)
	}
	fields := []sealed.Field{{Name: "b", Value: "1"}, {Name: "a", Value: "\xff\tlatin"}, {Name: "b", Value: ""}}
	array := []any{"b", []byte("1"), "a", []byte("\xff\tlatin"), "b", []byte{}}
	req := sealed.RequestHead{Method: "M-SEARCH", Path: "/a%20b", Query: "x=1&y", Header: fields}
	rep := sealed.ReplyHead{Status: 404, Header: fields}
	for _, c := range []struct {
		encode func([]byte) ([]byte, error)
		want   any
	}{
		{req.AppendTo, map[int]any{1: "M-SEARCH", 2: "/a%20b", 3: "x=1&y", 4: array}},
		{rep.AppendTo, map[int]any{1: 404, 2: array}},
	} {
		b, err := c.encode([]byte("before"))
		if err != nil {
			t.Fatal(err)
		}
		want, err := mode.Marshal(c.want)
		if err != nil || !bytes.Equal(b, append([]byte("before"), withLength(want)...)) {
			t.Fatalf("%x, want %x", b, want)
		}
		head, rest, err := sealed.SplitHead(append(b[6:], "body"...))
		if err != nil || string(rest) != "body" || !bytes.Equal(head, want) {
			t.Fatal(err)
		}
	}
	b, _ := req.AppendTo(nil)
	if got, err := sealed.ParseRequestHead(b[4:]); err != nil || !reflect.DeepEqual(got, req) {
		t.Fatalf("%+v, %v", got, err)
	}
	b, _ = rep.AppendTo(nil)
	if got, err := sealed.ParseReplyHead(b[4:]); err != nil || !reflect.DeepEqual(got, rep) {
		t.Fatalf("%+v, %v", got, err)
	}
}

func TestWrongHeadsAreRefused(t *testing.T) {
	for want, h := range map[string]sealed.RequestHead{
		"method":          {Method: ""},
		"method: want":    {Method: "get"},
		"path":            {Method: "GET", Path: "x"},
		"path: want":      {Method: "GET", Path: "/x?y"},
		"path: want not":  {Method: "GET", Path: "/x y"},
		"query":           {Method: "GET", Query: "a#b"},
		"query: want":     {Method: "GET", Query: "a\r\nb"},
		"header: the nam": {Method: "GET", Header: []sealed.Field{{Name: "Content-Type"}}},
		"header: the na":  {Method: "GET", Header: []sealed.Field{{Name: ""}}},
		"header: the val": {Method: "GET", Header: []sealed.Field{{Name: "a", Value: "b\nc: d"}}},
		"header: 257":     {Method: "GET", Header: make([]sealed.Field, 257)},
		"head: ": {Method: "GET", Header: []sealed.Field{
			{Name: "a", Value: strings.Repeat("x", 32768)}, {Name: "a", Value: strings.Repeat("x", 32768)}}},
	} {
		if _, err := h.AppendTo(nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want an error that names %q, got %v", want, err)
		}
	}
	for _, status := range []int{-1, 0, 100, 199, 1000} {
		if _, err := (sealed.ReplyHead{Status: status}).AppendTo(nil); err == nil {
			t.Errorf("status %d was taken", status)
		}
	}
	if _, err := sealed.ParseReplyHead([]byte("\xa2\x01\x1b\xff\xff\xff\xff\xff\xff\xff\xff\x02\x80")); err == nil {
		t.Error("a status that overflows was taken")
	}
}

func FuzzHeads(f *testing.F) {
	f.Add(requestHead()[4:])
	f.Add(replyHead()[4:])
	f.Fuzz(func(t *testing.T, b []byte) {
		if h, err := sealed.ParseRequestHead(b); err == nil {
			if again, err := h.AppendTo(nil); len(b) <= sealed.MaxHead && (err != nil || !bytes.Equal(again[4:], b)) {
				t.Fatalf("%x encodes as %x, %v", b, again, err)
			}
		}
		if h, err := sealed.ParseReplyHead(b); err == nil {
			if again, err := h.AppendTo(nil); len(b) <= sealed.MaxHead && (err != nil || !bytes.Equal(again[4:], b)) {
				t.Fatalf("%x encodes as %x, %v", b, again, err)
			}
		}
	})
}

func TestLogTravels(t *testing.T) {
	lines := []sealed.LogLine{
		{Time: 1, Stream: sealed.StreamStdout, Text: []byte("hello \xff")},
		{Time: 1 << 63, Stream: sealed.StreamAgent, Invocation: sealed.ID{7}, Text: []byte{}},
	}
	b, err := sealed.AppendLog(nil, lines[0])
	if err != nil {
		t.Fatal(err)
	}
	if b, err = sealed.AppendLog(b, lines[1]); err != nil {
		t.Fatal(err)
	}
	got, err := sealed.ParseLog(b)
	if err != nil || !reflect.DeepEqual(got, lines) {
		t.Fatalf("%+v, %v", got, err)
	}
	for n := range len(b) {
		if got, err := sealed.ParseLog(b[:n]); err == nil && n != 0 && len(got) != 1 {
			t.Errorf("cut to %d bytes: taken", n)
		}
	}
	if _, err := sealed.AppendLog(nil, sealed.LogLine{Stream: 4}); err == nil {
		t.Error("stream 4 was taken")
	}
	if _, err := sealed.AppendLog(nil, sealed.LogLine{Stream: 1, Text: make([]byte, sealed.MaxLogLine+1)}); err == nil {
		t.Error("a line too long was taken")
	}
}

func FuzzParseLog(f *testing.F) {
	b, err := sealed.AppendLog(nil, sealed.LogLine{Stream: 1, Invocation: sealed.ID{1}, Text: []byte("x")})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		lines, err := sealed.ParseLog(b)
		if err != nil {
			return
		}
		if again, err := sealed.AppendLog(nil, lines...); err != nil || !bytes.Equal(again, b) {
			t.Fatalf("%x encodes as %x, %v", b, again, err)
		}
	})
}
