package proxy_test

import (
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/client"
	"github.com/faasd-sec/faasd-sec/manifest"
	"github.com/faasd-sec/faasd-sec/proxy"
)

// needing is a world whose routes a file made.
func needing(t *testing.T, routes string) *world {
	t.Helper()
	cfg, err := proxy.Parse("proxy.yml", t.TempDir(), []byte("listen: 127.0.0.1:0\nroutes:\n"+routes))
	if err != nil {
		t.Fatal(err)
	}
	w := start(t, func(c *proxy.Config) { *c = cfg }, "")
	w.tells.Store(true)
	return w
}

// asked is what a request asks for.
func (w *world) asked(header ...string) *client.Needs {
	w.t.Helper()
	res := w.do("POST", "/function/echo", strings.NewReader("x"), header...)
	if body := read(w.t, res); res.StatusCode != 201 {
		w.t.Fatalf("%d %s", res.StatusCode, body)
	}
	for name := range res.Header {
		if strings.Contains(strings.ToLower(name), "need") {
			w.t.Errorf("the function saw %s", name)
		}
	}
	return <-w.needs
}

const everyNeed = `  - functions: [echo]
    needs: {cpu: 250m, pids: 64, require: ["zone=a"]}
    overridable: [cpu, memory, storage, scratch, pids, ingress, egress, cores, port, allow, require, arch, apart, deadline, priority, retry]
`

func TestHeadersAskForWhatATaskNeeds(t *testing.T) {
	w := needing(t, everyNeed)
	if got, want := w.asked(), (&client.Needs{Needs: manifest.Needs{CPUMillis: 250, PIDs: 64,
		Constraints: []manifest.Requirement{{Key: "zone", Op: manifest.Equals, Value: "a"}}}}); !reflect.DeepEqual(got, want) {
		t.Errorf("the route's own: %+v", got)
	}
	began := time.Now()
	got := w.asked("X-Faasd-Sec-Need-Cpu", "2", "x-faasd-sec-need-memory", "256Mi", "X-Faasd-Sec-Need-Storage", "8Mi", "X-Faasd-Sec-Need-Scratch", "1Gi",
		"X-Faasd-Sec-Need-Ingress", "1M", "X-Faasd-Sec-Need-Egress", "2M", "X-Faasd-Sec-Need-Cores", "2",
		"X-Faasd-Sec-Need-Port", "tcp:8080", "X-Faasd-Sec-Need-Port", "udp, tcp*3", "X-Faasd-Sec-Need-Allow", "10.0.0.0/8:443/tcp",
		"X-Faasd-Sec-Need-Require", "gpu,zone!=b", "X-Faasd-Sec-Need-Arch", "arm64, amd64", "X-Faasd-Sec-Need-Apart", "true",
		"X-Faasd-Sec-Need-Deadline", "30s", "X-Faasd-Sec-Need-Priority", "9", "X-Faasd-Sec-Need-Retry", "3:no_room,node_lost")
	if d := got.Deadline.Sub(began); d < 29*time.Second || got.Deadline.After(time.Now().Add(31*time.Second)) {
		t.Errorf("deadline in %v", d)
	}
	got.Deadline = time.Time{}
	if want := (&client.Needs{Needs: manifest.Needs{CPUMillis: 2000, MemoryBytes: 256 << 20, StorageBytes: 8 << 20, ScratchBytes: 1 << 30, PIDs: 64,
		IngressBPS: 1e6, EgressBPS: 2e6, Cores: 2, Ports: []manifest.Port{{Protocol: manifest.TCP, Number: 8080, Count: 1}, {Protocol: manifest.UDP, Count: 1}, {Protocol: manifest.TCP, Count: 3}},
		Allow:         []manifest.Reach{{Protocol: manifest.TCP, Network: 10 << 24, Bits: 8, From: 443, To: 443}},
		Constraints:   []manifest.Requirement{{Key: "gpu", Op: manifest.Exists}, {Key: "zone", Op: manifest.Differs, Value: "b"}},
		Architectures: []string{"arm64", "amd64"}, AntiAffinity: manifest.ReplicasApart},
		Priority: 9, Retry: manifest.Retry{MaxAttempts: 3, Codes: []string{"no_room"}, AfterNodeDeath: true}}); !reflect.DeepEqual(got, want) {
		t.Errorf("%+v\nwant %+v", got, want)
	}
	if n := w.asked("X-Faasd-Sec-Need-Apart", "false"); n.AntiAffinity != manifest.AffinityNone || n.CPUMillis != 250 {
		t.Errorf("%+v", n)
	}
}

func TestRoutesWithoutNeedsSealNoManifest(t *testing.T) {
	w := needing(t, "  - functions: [echo]\n")
	if n := w.asked("X-Faasd-Sec-Stated", "1"); n != nil {
		t.Errorf("%+v", n)
	}
}

// What a header asks for and does not get is an error, never dropped.
func TestNeedsThatAreWrongOrNotAllowedAreRefused(t *testing.T) {
	w := needing(t, everyNeed)
	for header, value := range map[string]string{"Cpu": "much", "Memory": "-1", "Pids": "0", "Egress": "fast", "Cores": "65", "Port": "8080", "Allow": "10.0.0.1/8:1/tcp",
		"Require": "=", "Arch": "AMD64", "Apart": "yes", "Deadline": "-1s", "Priority": "10", "Retry": "x", "Ports": "", "Scratch": "9999999Gi", "Speed": "1", "": "1"} {
		header = api.HeaderNeedPrefix + header
		res := w.do("POST", "/function/echo", strings.NewReader("x"), header, value)
		body := read(t, res)
		if e := api.ParseProblem(res.StatusCode, []byte(body)); res.StatusCode != 400 || e.Field != header || e.Remedy == "" {
			t.Errorf("%s: %q: %d %s", header, value, res.StatusCode, body)
		}
	}
	refused(t, w.do("POST", "/function/echo", nil, "X-Faasd-Sec-Need-Cpu", "1", "X-Faasd-Sec-Need-Cpu", "2"), 400, api.CodeInvalid)
	refused(t, w.do("POST", "/function/echo", nil, api.HeaderNeeds, "{}"), 400, api.CodeInvalid)
	refused(t, w.do("POST", "/function/echo", nil, api.HeaderManifest, "AAAA"), 400, api.CodeInvalid)
	res := needing(t, "  - {functions: [echo], overridable: [memory]}\n").do("POST", "/function/echo", strings.NewReader("x"), "X-Faasd-Sec-Need-Cpu", "1")
	refused(t, res, http.StatusForbidden, api.CodeForbidden)
	if strings.Contains(w.log.String(), "much") || w.counted("faasd_sec_proxy_in_flight") != 0 {
		t.Errorf("the log tells what was asked for: %s", w.log.String())
	}
}

func TestNeedsOfAFileAreChecked(t *testing.T) {
	for field, text := range map[string]string{
		"routes[0].needs.cpu":      "needs: {cpu: much}",
		"routes[0].needs.speed":    "needs: {speed: 1}",
		"routes[0].needs.deadline": "needs: {deadline: 0s}",
		"routes[0].needs.ports":    "needs: {port: tcp, ports: [udp]}",
		"routes[0].needs.memory":   "needs: {memory: [1Mi, 2Mi]}",
		"routes[0].needs.priority": "needs: {priority: 10}",
		"routes[0].overridable[1]": "overridable: [cpu, speed]",
		"proxy.yml":                "needs: {cpu: {a: b}}",
	} {
		_, err := proxy.Parse("proxy.yml", "/", []byte("routes:\n  - functions: [echo]\n    "+text+"\n"))
		if e, ok := err.(*api.Error); !ok || e.Field != field || e.Remedy == "" {
			t.Errorf("%s: %v", text, err)
		}
	}
}
