package client

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/sealed/unseal"
)

// Stream says where a line of a log came from.
type Stream uint

// The streams.
const (
	StreamOut      Stream = 1 // the function's standard output
	StreamErr      Stream = 2 // the function's standard error
	StreamPlatform Stream = 3 // the agent itself
)

// String names the stream.
func (s Stream) String() string {
	switch s {
	case StreamOut:
		return "out"
	case StreamErr:
		return "err"
	case StreamPlatform:
		return "platform"
	}
	return fmt.Sprintf("stream %d", uint(s))
}

// LogLine is one line that a function printed. The text is the function's own
// and may hold anything; escape it before it reaches a terminal.
type LogLine struct {
	Time     time.Time     `json:"time"`
	Stream   Stream        `json:"stream"`
	Text     string        `json:"text"`
	Revision sealed.Digest `json:"revision"`
	Node     string        `json:"node"`    // by the gateway's word
	Sandbox  string        `json:"sandbox"` // by the gateway's word
}

// maxLogBody bounds one sealed batch in bytes; agents flush at 32 KiB.
const maxLogBody = 512 << 10

// Logs calls each with the lines of a function that this identity owns, or of a
// plain one, whose lines come in clear and by the gateway's word, until
// there are no more or, with follow, until ctx ends or each returns an error,
// which is returned. A message that does not open is reported to each as its
// error and skipped when each returns nil.
func (c *Client) Logs(ctx context.Context, name api.FunctionName, follow bool, each func(LogLine, error) error) error {
	if err := c.needIdentity(); err != nil {
		return err
	}
	f, err := c.function(ctx, name)
	if errors.Is(err, errPlain) {
		if owner, sealedBefore := c.cfg.Pins.Owner(c.gateway.String(), name); sealedBefore {
			return &api.Error{Code: api.CodeForbidden, Field: "owner",
				Message: fmt.Sprintf("the gateway says that %s is a plain function, and %s is pinned as its owner", name.Short(), owner)}
		}
		err = nil // its lines are what the gateway says they are
	}
	if err != nil {
		return err
	}
	q := url.Values{}
	if follow {
		q.Set("follow", "1")
	}
	res, err := c.send(ctx, call{method: http.MethodGet, path: api.GatewayPathFunctions + "/" + string(name) + "/logs", query: q, signed: true})
	if err != nil {
		return err
	}
	defer res.Body.Close()
	r := bufio.NewReaderSize(res.Body, 64<<10)
	seen := make(map[string]uint64) // node -> last sequence: a coordinator that reconnects to a node starts over
	for {
		b, err := api.ReadFrame(r)
		switch {
		case errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF):
			return nil
		case err != nil:
			return c.unreachable(err)
		case len(b) == 0:
			continue // a sign of life
		}
		if err := c.logFrame(f, b, seen, each); err != nil {
			return err
		}
	}
}

// OpenLogs is Logs of sealed records that somebody wrote down as lines of text, as
// clients of OpenFaaS print them. Lines without one are passed over; what the
// records say of node and sandbox is not known.
func (c *Client) OpenLogs(ctx context.Context, name api.FunctionName, from io.Reader, each func(LogLine, error) error) error {
	if err := c.needIdentity(); err != nil {
		return err
	}
	f, err := c.function(ctx, name)
	if err != nil {
		return err
	}
	text := bufio.NewScanner(from)
	text.Buffer(nil, 2*maxLogBody)
	for text.Scan() {
		record, found, err := api.ParseSealedLine(text.Bytes())
		if !found {
			continue
		}
		var lines []LogLine
		if err == nil {
			lines, err = c.openLog(f, api.LogFrame{Sealed: record})
		}
		if err != nil {
			lines = []LogLine{{}}
		}
		for _, l := range lines {
			if err := each(l, err); err != nil {
				return err
			}
		}
	}
	if err := text.Err(); err != nil {
		return api.Wrap(api.CodeInvalid, err, "the lines could not be read")
	}
	return nil
}

func (c *Client) logFrame(f *function, b []byte, seen map[string]uint64, each func(LogLine, error) error) error {
	var frame api.LogFrame
	if err := json.Unmarshal(b, &frame); err != nil {
		return api.Wrap(api.CodeUnavailable, err, "a log frame is not the JSON expected")
	}
	if last, ok := seen[frame.Node]; ok && frame.Seq <= last {
		return nil
	}
	seen[frame.Node] = frame.Seq
	lines, err := c.openLog(f, frame)
	if err != nil {
		return each(LogLine{Node: frame.Node, Sandbox: frame.Sandbox}, err)
	}
	for _, l := range lines {
		if err := each(l, nil); err != nil {
			return err
		}
	}
	return nil
}

// plainLines are those of a plain function, which nobody has signed.
func plainLines(frame api.LogFrame) []LogLine {
	lines := make([]LogLine, len(frame.Lines))
	for i, l := range frame.Lines {
		lines[i] = LogLine{Time: time.Unix(0, l.Time), Stream: Stream(l.Stream), Text: l.Text, Node: frame.Node, Sandbox: frame.Sandbox}
	}
	return lines
}

// openLog opens one message. Logs of former revisions are shown too, so the
// context is the one it claims; the function's signature covers it.
func (c *Client) openLog(f *function, frame api.LogFrame) ([]LogLine, error) {
	if f == nil {
		return plainLines(frame), nil
	}
	peek, err := sealed.Peek(frame.Sealed)
	if err != nil {
		return nil, logError(err)
	}
	m, err := c.opener.Open(bytes.NewReader(frame.Sealed), unseal.Expect{Role: sealed.RoleLog, Name: string(f.name),
		Context: peek.Grant.Context, Senders: unseal.Only(f.desc.SigningKey)})
	if err != nil {
		return nil, logError(err)
	}
	defer m.Close()
	body, err := m.ReadAll(maxLogBody)
	if err != nil {
		return nil, logError(err)
	}
	records, err := sealed.ParseLog(body)
	if err != nil {
		return nil, api.Wrap(api.CodeInvalid, err, "a log message's body does not decode")
	}
	lines := make([]LogLine, len(records))
	for i, r := range records {
		lines[i] = LogLine{Time: time.Unix(0, int64(min(r.Time, 1<<63-1))), Stream: Stream(r.Stream), Text: strings.ToValidUTF8(string(r.Text), "\uFFFD"),
			Revision: peek.Grant.Context, Node: frame.Node, Sandbox: frame.Sandbox}
	}
	return lines, nil
}

func logError(err error) error {
	code := api.Code(sealed.CodeOf(err))
	if code == "" {
		code = api.CodeInvalid
	}
	return &api.Error{Code: code, Err: err, Message: "a log message does not open",
		Remedy: "it was sealed for another owner's key, or changed on its way"}
}
