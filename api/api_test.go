package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
)

func TestFunctionNames(t *testing.T) {
	for in, want := range map[string]FunctionName{
		"hello": "hello.openfaas-fn", "hello.prod": "hello.prod", "a1-b.c-2": "a1-b.c-2",
	} {
		if got, err := ParseFunctionName(in); err != nil || got != want {
			t.Errorf("%q: %q, %v", in, got, err)
		}
	}
	for _, in := range []string{"", ".", "a.", ".b", "a.b.c", "-a", "a-", "A", "a_b", "a/b", "../x", "ä", strings.Repeat("a", 64), "a.b\n"} {
		_, err := ParseFunctionName(in)
		var e *Error
		if !errors.As(err, &e) || e.Code != CodeInvalid || e.Field == "" || e.Remedy == "" {
			t.Errorf("%q: %v", in, err)
		}
	}
	n := FunctionName("hello.openfaas-fn")
	if n.Short() != "hello" || n.Function() != "hello" || n.Namespace() != DefaultNamespace || FunctionName("x.y").Short() != "x.y" {
		t.Error("parts of a name")
	}
}

func TestQuantitiesAreReadOrRefusedNeverGuessed(t *testing.T) {
	for in, want := range map[string]int64{"1": 1000, "0.5": 500, "500m": 500, "2.25": 2250, " 1 ": 1000, "1m": 1, "1.001": 1001, "2.010": 2010, ".5": 500} {
		if got, err := ParseCPU("cpu", in); err != nil || got != want {
			t.Errorf("cpu %q: %d, %v", in, got, err)
		}
	}
	for in, want := range map[string]int64{
		"128Mi": 128 << 20, "40M": 40e6, "1Gi": 1 << 30, "1.5Ki": 1536, "7": 7, "1k": 1000, "2G": 2e9, "1Ti": 1 << 40,
		"4.1G": 41e8, "2.01G": 201e7, "8.2k": 8200, "9007199254740993": 1<<53 + 1,
	} {
		if got, err := ParseBytes("memory", in); err != nil || got != want {
			t.Errorf("bytes %q: %d, %v", in, got, err)
		}
	}
	for _, in := range []string{"", "m", "-1", "+1", "1e3", "0x10", "inf", "NaN", "0", "1.2.3", "0.0001", "one", "1 m", "99999999999", "1." + strings.Repeat("0", 40)} {
		if got, err := ParseCPU("limits.cpu", in); err == nil || !strings.Contains(err.Error(), "limits.cpu") {
			t.Errorf("cpu %q: %d, %v", in, got, err)
		}
	}
	for _, in := range []string{"", "Mi", "-1Mi", "1m", "128MB", "128mi", "1.1", "0", "1e9", "9999999Ti", "1Mi5"} {
		if got, err := ParseBytes("limits.memory", in); err == nil || !strings.Contains(err.Error(), "limits.memory") {
			t.Errorf("bytes %q: %d, %v", in, got, err)
		}
	}
}

func TestErrorsSurviveTheWireWithoutTheirCause(t *testing.T) {
	cause := errors.New("the secret reason")
	e := &Error{Code: CodeNoRoom, Message: "full", Field: "limits.cpu", Remedy: "ask for less", Err: cause}
	wrapped := fmt.Errorf("while placing: %w", e)
	b, err := json.Marshal(ProblemOf(wrapped, "call-1"))
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(b, []byte("secret")) {
		t.Errorf("the cause was sent: %s", b)
	}
	back := ParseProblem(503, b)
	if back.Code != e.Code || back.Field != e.Field || back.Remedy != e.Remedy || back.Message != "full" {
		t.Errorf("%+v", back)
	}
	if !errors.Is(wrapped, &Error{Code: CodeNoRoom}) || errors.Is(wrapped, &Error{Code: CodeBusy}) || !errors.Is(wrapped, cause) {
		t.Error("errors.Is")
	}
	if p := ProblemOf(cause, ""); p.Code != CodeInternal || strings.Contains(p.Detail, "secret") {
		t.Errorf("a foreign error: %+v", p)
	}
	if e := ParseProblem(502, []byte("<html>")); e.Code != CodeUnavailable {
		t.Errorf("no problem document: %v", e)
	}
	if CodeOf(nil) != "" || CodeOf(cause) != CodeInternal {
		t.Error("CodeOf")
	}
	if Code("made up by a peer").Label() != "other" || CodeNoRoom.Label() != "no_room" || Code("signature").Label() != "signature" {
		t.Error("labels")
	}
}

func TestResourcesFit(t *testing.T) {
	free := Resources{CPU: 1000, Memory: 100, PIDs: 10}
	for want, r := range map[string]Resources{
		"": {CPU: 1000, Memory: 100, PIDs: 10}, "cpu": {CPU: 1001}, "memory": {Memory: 101}, "pids": {PIDs: 11},
	} {
		if got := r.Lacks(free); got != want {
			t.Errorf("%+v lacks %q, want %q", r, got, want)
		}
	}
	if d := free.Add(free).Sub(free); d != free {
		t.Errorf("%+v", d)
	}
}

func TestFramesAreBounded(t *testing.T) {
	var b bytes.Buffer
	if err := WriteControl(&b, Control{Stop: &Stop{GraceMs: 5}}); err != nil {
		t.Fatal(err)
	}
	whole := append([]byte(nil), b.Bytes()...)
	if c, err := ReadControl(&b); err != nil || c.Stop == nil || c.Stop.GraceMs != 5 {
		t.Errorf("%+v, %v", c, err)
	}
	if _, err := ReadControl(&b); err != io.EOF {
		t.Errorf("between frames: %v", err)
	}
	for n := 1; n < len(whole); n++ {
		if _, err := ReadControl(bytes.NewReader(whole[:n])); err == nil || err == io.EOF {
			t.Errorf("cut at %d: %v", n, err)
		}
	}
	if _, err := ReadFrame(bytes.NewReader([]byte{0xff, 0xff, 0xff, 0xff})); err == nil {
		t.Error("a frame of 4 GiB is announced and awaited")
	}
	if err := WriteFrame(io.Discard, make([]byte, MaxControlFrame+1)); err == nil {
		t.Error("an oversized frame is sent")
	}
}

func TestReferences(t *testing.T) {
	for ref, own := range map[string]bool{
		"hello": false, "team/hello:1": false, "localhost/hello": true, "registry.example.com/x": true, "host:5000/x": true, "a.b": false,
	} {
		if NamesRegistry(ref) != own {
			t.Errorf("%q names a registry: %v", ref, !own)
		}
	}
	for ref, want := range map[string]string{"hello:latest": "hello", "team/hello": "team/hello", "a/b:1@sha256:00": "a/b", "host:5000/x": "host:5000/x"} {
		if got := Repository(ref); got != want {
			t.Errorf("%q: %q, want %q", ref, got, want)
		}
	}
	here := LocalAddr("0123456789abcdef", "/run/x.sock")
	if p, ok := LocalPath(here, "0123456789abcdef"); !ok || p != "/run/x.sock" {
		t.Errorf("%q, %v", p, ok)
	}
	for local, boot := range map[string]string{here: "ffffffff", "": "01234567", ":/x": "", "01234567:x": "01234567"} {
		if p, ok := LocalPath(local, boot); ok {
			t.Errorf("%q is %q on %q", local, p, boot)
		}
	}
	if ImageKey("sha256:0123456789abcdef0123") != "0123456789abcdef" || RevisionKey("short") != "short" {
		t.Error("gossip keys")
	}
}

func TestNewerLoads(t *testing.T) {
	a := NodeLoad{Epoch: 2, Seq: 1}
	for _, old := range []NodeLoad{{}, {Epoch: 1, Seq: 9}, {Epoch: 2}} {
		if !a.Newer(old) || old.Newer(a) {
			t.Errorf("%+v against %+v", a, old)
		}
	}
	if a.Newer(a) {
		t.Error("newer than itself")
	}
}
