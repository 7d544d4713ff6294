package coordinator

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"io"
	"mime"
	"strings"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/faasd-sec/faasd-sec/api"
)

// CloudEvents 1.0, HTTP protocol binding and JSON event format.
const (
	contentTypeEvent = "application/cloudevents+json"
	eventResult      = "io.faasd-sec.call.result"
	eventFailed      = "io.faasd-sec.call.failed"
)

// event is an event's attributes, in the form of its JSON.
type event struct {
	SpecVersion string          `json:"specversion"`
	ID          string          `json:"id"`
	Source      string          `json:"source"`
	Type        string          `json:"type"`
	Subject     string          `json:"subject,omitempty"`
	Time        string          `json:"time,omitempty"`
	DataType    string          `json:"datacontenttype,omitempty"`
	DataSchema  string          `json:"dataschema,omitempty"`
	Data        json.RawMessage `json:"data,omitempty"`
	Data64      *string         `json:"data_base64,omitempty"`
}

func eventOf(id string, function api.FunctionName, kind string, at int64) event {
	return event{SpecVersion: "1.0", ID: id, Source: api.GatewayPathInvoke + string(function), Type: kind,
		Time: time.UnixMilli(at).UTC().Format(time.RFC3339Nano)}
}

// asEvent turns a payload into an event where the caller asked for that.
func (p *payload) asEvent(mode string, e event) *payload {
	switch mode {
	case "binary":
		p.header["ce-specversion"], p.header["ce-id"], p.header["ce-source"] = e.SpecVersion, e.ID, e.Source
		p.header["ce-type"], p.header["ce-time"] = e.Type, e.Time
	case "structured":
		e.DataType = p.header[fasthttp.HeaderContentType]
		none := ""
		e.Data64 = &none
		b, err := json.Marshal(e)
		if err != nil { // strings always encode
			return p
		}
		// The data goes between the last two quotes, encoded as it flows.
		first, last := b[:len(b)-2], b[len(b)-2:]
		open, size := p.open, p.size
		p.header[fasthttp.HeaderContentType] = contentTypeEvent
		p.digest = ""
		p.size = int64(len(b)) + (size+2)/3*4
		p.open = func() (io.ReadCloser, error) {
			data, err := open()
			if err != nil {
				return nil, err
			}
			r, w := io.Pipe()
			go func() { // ends with the data, or with the reader
				enc := base64.NewEncoder(base64.StdEncoding, w)
				_, err := io.Copy(enc, data)
				if err == nil {
					err = enc.Close()
				}
				_ = data.Close()
				_ = w.CloseWithError(err)
			}()
			return &joined{io.MultiReader(bytes.NewReader(first), r, bytes.NewReader(last)), r}, nil
		}
	}
	return p
}

// joined reads one thing and closes another.
type joined struct {
	io.Reader
	io.Closer
}

// isEvent reports whether a content type is that of a structured event.
func isEvent(contentType string) bool {
	t, _, err := mime.ParseMediaType(contentType)
	return err == nil && t == contentTypeEvent
}

// maxEvent bounds a structured event that comes in, in bytes: it is read whole.
const maxEvent = 8 << 20

// unwrapEvent turns a request that is a structured event into one with the event's
// data, its attributes in headers: what functions are given is a binary event.
func unwrapEvent(ctx *fasthttp.RequestCtx) error {
	if !isEvent(string(ctx.Request.Header.ContentType())) {
		return nil
	}
	b, err := readLimited(ctx, maxEvent)
	if err != nil {
		ctx.SetConnectionClose()
		return err
	}
	data, contentType, header, err := parseEvent(b)
	if err != nil {
		return err
	}
	ctx.Request.SetBody(data)
	ctx.Request.Header.SetContentLength(len(data))
	ctx.Request.Header.SetContentType(contentType)
	for name, value := range header {
		ctx.Request.Header.Set(name, value)
	}
	return nil
}

// parseEvent reads a structured event: its data, and its attributes as the
// headers of a binary one.
func parseEvent(b []byte) (data []byte, contentType string, header map[string]string, err error) {
	var all map[string]json.RawMessage
	if err := json.Unmarshal(b, &all); err != nil {
		return nil, "", nil, api.Invalid("body", "send a CloudEvent of version 1.0 as JSON", "it does not parse")
	}
	header = map[string]string{}
	for name, raw := range all {
		switch name {
		case "data", "data_base64", "datacontenttype":
			continue
		}
		if name == "" || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789") != "" {
			return nil, "", nil, api.Invalid("body."+name, "name attributes with a-z and 0-9", "it is no attribute of a CloudEvent")
		}
		var text string
		if json.Unmarshal(raw, &text) != nil {
			text = string(raw) // numbers and booleans
		}
		if strings.ContainsAny(text, "\r\n\x00") || len(text) > 4096 {
			return nil, "", nil, api.Invalid("body."+name, "use up to 4,096 characters in one line", "it cannot be an attribute")
		}
		header["ce-"+name] = text
	}
	if header["ce-specversion"] != "1.0" {
		return nil, "", nil, api.Invalid("body.specversion", `use "1.0"`, "it is another version, or none")
	}
	for _, name := range []string{"id", "source", "type"} {
		if header["ce-"+name] == "" {
			return nil, "", nil, api.Invalid("body."+name, "a CloudEvent has id, source and type", "it is missing")
		}
	}
	contentType = api.ContentTypeJSON
	if raw, ok := all["datacontenttype"]; ok && json.Unmarshal(raw, &contentType) != nil {
		return nil, "", nil, api.Invalid("body.datacontenttype", "write a media type", "it is no text")
	}
	if raw, ok := all["data_base64"]; ok {
		var text string
		if json.Unmarshal(raw, &text) == nil {
			data, err = base64.StdEncoding.DecodeString(text)
		}
		if err != nil || text == "" && len(raw) > 2 {
			return nil, "", nil, api.Invalid("body.data_base64", "encode it in base64", "it does not decode")
		}
		return data, contentType, header, nil
	}
	data = all["data"]
	var text string
	if !strings.Contains(contentType, "json") && json.Unmarshal(data, &text) == nil {
		data = []byte(text)
	}
	return data, contentType, header, nil
}
