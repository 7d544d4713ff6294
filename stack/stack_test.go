package stack_test

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/stack"
)

func none(string) (string, bool) { return "", false }

func parse(t *testing.T, text string) (*stack.File, error) {
	t.Helper()
	return stack.Parse("function.yml", []byte(text), none)
}

const minimal = "functions:\n  hello:\n    image: hello:latest\n"

func TestDefaultsAreTheDocumentedOnes(t *testing.T) {
	f, err := parse(t, minimal)
	if err != nil {
		t.Fatal(err)
	}
	want := stack.Function{Name: "hello.openfaas-fn", Image: "hello:latest", Dir: ".", Line: 3,
		Resources: api.Resources{CPU: 500, Memory: 128 << 20, PIDs: 128, Tmp: 64 << 20},
		Mode:      "http", Upstream: "http://127.0.0.1:8080", BundlePath: "/function", Callers: stack.Callers{Owner: true},
		Read: 10 * time.Second, Write: 10 * time.Second, Exec: 30 * time.Second, Start: 30 * time.Second,
		MaxInFlight: 64, Attestation: []string{"node-key"}}
	if got := f.Functions[0]; !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestEveryFieldIsRead(t *testing.T) {
	env := map[string]string{"TAG": "v2", "EMPTY": ""}
	f, err := stack.Parse("dir/function.yml", []byte(`
version: 1.0
provider: {name: openfaas, gateway: "http://${HOST:-127.0.0.1}:8080"}
functions:
  risk:
    namespace: team-a
    lang: dockerfile
    handler: .
    image: team/risk:${TAG}
    fprocess: python3 "/function/main file.py" --x='a b'
    environment: {A: 1, B: true, C: "", D: "$HOME $${X} a$b", E: "${EMPTY:-full}", F: "${EMPTY}"}
    environment_file: [env.yml]
    secrets: [model-key]
    constraints: ["zone=a", "disk = ssd"]
    labels: {team: risk}
    limits: &l {cpu: "0.25", memory: 64Mi}
    requests: *l
    readonly_root_filesystem: true
    sealed:
      mode: streaming
      upstream: unix
      bundle: ./model
      bundle_path: /opt/model
      callers: [owner, 00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff]
      pids: 32
      tmp: 16Mi
      read_bps: 10M
      write_bps: 1Mi
      timeouts: {read: 1s, write: 2s, exec: 1m30s, start: 500ms}
      max_inflight: 8
      idle: 1h
      max_queued: 1h
      attestation: [node-key, tpm]
    build:
      from: debian:python3-minimal,dash
      copy: [{src: main.py, dst: /function/main.py, mode: 0755}, {src: lib, dst: /lib2}]
      go: ./cmd
      entrypoint: [python3, /x]
      cmd: a b
      env: {PATH: /usr/bin}
      workdir: /
      user: 10001
      labels: {a: b}
`), func(k string) (string, bool) { v, ok := env[k]; return v, ok })
	if err != nil {
		t.Fatal(err)
	}
	want := stack.Function{Name: "risk.team-a", Image: "team/risk:v2", Dir: "dir", Line: 6, Lang: "dockerfile", Handler: ".",
		Process:     []string{"python3", "/function/main file.py", "--x=a b"},
		Environment: map[string]string{"A": "1", "B": "true", "C": "", "D": "$HOME ${X} a$b", "E": "full", "F": ""},
		EnvFiles:    []string{"env.yml"}, Secrets: []string{"model-key"},
		Labels: map[string]string{"team": "risk"}, Constraints: map[string]string{"zone": "a", "disk": "ssd"},
		Resources: api.Resources{CPU: 250, Memory: 64 << 20, PIDs: 32, Tmp: 16 << 20, ReadBps: 10e6, WriteBps: 1 << 20},
		Mode:      "streaming", Upstream: "unix", Bundle: "model", BundlePath: "/opt/model",
		Callers: stack.Callers{Owner: true, Listed: []string{"00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"}},
		Read:    time.Second, Write: 2 * time.Second, Exec: 90 * time.Second, Start: 500 * time.Millisecond, Idle: time.Hour, MaxQueued: time.Hour,
		MaxInFlight: 8, Attestation: []string{"node-key", "tpm"},
		Build: &stack.Build{From: "debian:python3-minimal,dash", Go: "cmd", Entrypoint: []string{"python3", "/x"}, Cmd: []string{"a", "b"},
			Copy: []stack.Copy{{Src: "main.py", Dst: "/function/main.py", Mode: 0o755}, {Src: "lib", Dst: "/lib2"}},
			Env:  map[string]string{"PATH": "/usr/bin"}, WorkDir: "/", User: "10001", Labels: map[string]string{"a": "b"}}}
	if got := f.Functions[0]; !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if f.Gateway != "http://127.0.0.1:8080" || len(f.Warnings) != 1 {
		t.Errorf("gateway %q, warnings %q", f.Gateway, f.Warnings)
	}
}

// Every error names the place, the field and what to write.
func TestErrorsNamePlaceFieldAndRemedy(t *testing.T) {
	in := func(section string) string { return minimal + section }
	cases := map[string]struct{ text, at, field, says, remedy string }{
		"empty":             {"", "", "function.yml", "empty", "at least one"},
		"syntax":            {"functions:\n  hello: [\n", ":", "yaml", "", "indent"},
		"tab":               {"functions:\n\thello:\n", ":2:", "yaml", "", "spaces"},
		"unknown top":       {"function:\n", ":1:1", "function", "unknown field", `"functions"`},
		"unknown":           {in("    imagee: x\n"), ":4:5", "functions.hello.imagee", "unknown field", `"image"`},
		"unknown, far off":  {in("    zzzzzz: x\n"), ":4:5", "functions.hello.zzzzzz", "unknown field", "known here"},
		"unknown in sealed": {in("    sealed: {max_in_flight: 3}\n"), ":4:14", "functions.hello.sealed.max_in_flight", "unknown field", `"max_inflight"`},
		"twice":             {in("    image: b\n"), ":4:5", "functions.hello.image", "line 3", "remove"},
		"cpu":               {in("    limits: {cpu: 1.5GHz}\n"), ":4:19", "functions.hello.limits.cpu", "not a CPU quantity", "millicores"},
		"cpu negative":      {in("    limits: {cpu: -1}\n"), ":4:19", "functions.hello.limits.cpu", "not a CPU quantity", "millicores"},
		"memory":            {in("    limits:\n      memory: 128mb\n"), ":5:15", "functions.hello.limits.memory", "not a byte quantity", "Mi"},
		"memory too small":  {in("    limits: {memory: 1Mi}\n"), ":4:22", "functions.hello.limits.memory", "too few", "16Mi"},
		"tmp over memory":   {in("    sealed: {tmp: 1Gi}\n"), ":3:5", "functions.hello.sealed.tmp", "do not fit", "limits.memory"},
		"mode":              {in("    sealed: {mode: htp}\n"), ":4:20", "functions.hello.sealed.mode", "not known", `"http"`},
		"upstream":          {in("    sealed: {upstream: \"http://10.0.0.1:80\"}\n"), ":4:24", "functions.hello.sealed.upstream", "listen", "unix"},
		"duration":          {in("    sealed: {timeouts: {exec: 30}}\n"), ":4:31", "functions.hello.sealed.timeouts.exec", "not a duration", `"30s"`},
		"duration range":    {in("    sealed: {idle: 48h}\n"), ":4:20", "functions.hello.sealed.idle", "out of range", "24h"},
		"pids":              {in("    sealed: {pids: 3}\n"), ":4:20", "functions.hello.sealed.pids", "is not one", "16"},
		"callers any+":      {in("    sealed: {callers: [any, owner]}\n"), ":4:24", "functions.hello.sealed.callers[0]", "among others", "alone"},
		"caller":            {in("    sealed: {callers: [bob]}\n"), ":4:24", "functions.hello.sealed.callers[0]", "not a caller", "fingerprint"},
		"no attestation":    {in("    sealed: {attestation: []}\n"), ":4:27", "functions.hello.sealed.attestation", "no machine", "node-key"},
		"bundle absolute":   {in("    sealed: {bundle: /etc}\n"), ":4:22", "functions.hello.sealed.bundle", "not a relative", "relative"},
		"bundle path":       {in("    sealed: {bundle_path: a/../b}\n"), ":4:27", "functions.hello.sealed.bundle_path", "absolute", "/function"},
		"secret":            {in("    secrets: [../x]\n"), ":4:15", "functions.hello.secrets[0]", "not a secret", "a-z"},
		"secret twice":      {in("    secrets: [a, a]\n"), ":4:18", "functions.hello.secrets[1]", "twice", "remove"},
		"list":              {in("    secrets: a\n"), ":4:14", "functions.hello.secrets", "want a list", "["},
		"env name":          {in("    environment: {\"a-b\": c}\n"), ":4:18", "functions.hello.environment.a-b", "not a variable", "letters"},
		"env value":         {in("    environment: {A: [1]}\n"), ":4:22", "functions.hello.environment.A", "a list", "one value"},
		"variable":          {in("    lang: ${NOPE}\n"), ":4:11", "functions.hello.lang", "NOPE is not set", ":-"},
		"brace":             {in("    lang: \"${NOPE\"\n"), ":4:11", "functions.hello.lang", "brace", "$$"},
		"quote":             {in("    fprocess: 'a \"b'\n"), ":4:15", "functions.hello.fprocess", "not closed", "quote"},
		"root writable":     {in("    readonly_root_filesystem: false\n"), ":4:31", "functions.hello.readonly_root_filesystem", "read-only", "/tmp"},
		"constraint twice":  {in("    constraints: [\"zone=a\", \"zone=b\"]\n"), ":4:29", "functions.hello.constraints[1]", "asked for already", "leave one"},
		"constraint":        {in("    constraints: [\"a != b\"]\n"), ":4:19", "functions.hello.constraints[0]", "constraint", "zone=a"},
		"name":              {"functions:\n  Hello:\n    image: a\n", ":3:5", "functions.Hello", "'H'", "a-z"},
		"no image":          {"functions:\n  hello: {lang: go}\n", ":2:10", "functions.hello.image", "no image", "hello:latest"},
		"image":             {"functions:\n  hello: {image: \"Bad Image\"}\n", ":2:18", "functions.hello.image", "reference", "lower case"},
		"scalar function":   {"functions:\n  hello: x\n", ":2:10", "functions.hello", "want a mapping", "mapping"},
		"no functions":      {"version: 1.0\n", ":1:1", "functions", "no function", "functions:"},
		"provider":          {"provider: {name: k8s}\n" + minimal, ":1:18", "provider.name", "not known", "openfaas"},
		"version":           {"version: 2\n" + minimal, ":1:10", "version", "not known", "1.0"},
		"build from":        {in("    build: {go: .}\n"), ":4:12", "functions.hello.build.from", "no base", "scratch"},
		"build mode":        {in("    build: {from: scratch, copy: [{src: a, dst: /a, mode: 9}]}\n"), ":4:59", "functions.hello.build.copy[0].mode", "not a mode", "octal"},
		"build copy":        {in("    build: {from: scratch, copy: [{src: a}]}\n"), ":4:35", "functions.hello.build.copy[0]", "missing", "dst"},
		"schedule":          {in("    annotations: {topic: cron-function, schedule: \"*/5 * * * *\"}\n"), ":4:18", "functions.hello.annotations.schedule", "but a caller", "faasd-sec schedule put hello --cron '*/5 * * * *'"},
		"requests too":      {in("    requests: {cpu: x}\n"), ":4:21", "functions.hello.requests.cpu", "not a CPU quantity", "millicores"},
	}
	for name, k := range cases {
		t.Run(name, func(t *testing.T) {
			_, err := parse(t, k.text)
			var e *api.Error
			if !errors.As(err, &e) || e.Code != api.CodeInvalid {
				t.Fatalf("error %v", err)
			}
			if !strings.Contains(e.Message, "function.yml"+k.at) && k.at != "" {
				t.Errorf("message %q does not begin at function.yml%s", e.Message, k.at)
			}
			if e.Field != k.field {
				t.Errorf("field %q, want %q", e.Field, k.field)
			}
			if !strings.Contains(e.Message, k.says) {
				t.Errorf("message %q does not say %q", e.Message, k.says)
			}
			if !strings.Contains(e.Remedy, k.remedy) {
				t.Errorf("remedy %q does not say %q", e.Remedy, k.remedy)
			}
		})
	}
}

// A value from the environment stays one value.
func TestAVariableCannotChangeTheStructure(t *testing.T) {
	f, err := stack.Parse("f", []byte(minimal+"    lang: ${X}\n"), func(string) (string, bool) { return "a\n    sealed: {callers: any}", true })
	if err != nil {
		t.Fatal(err)
	}
	if f.Functions[0].Callers.Any {
		t.Error("the variable opened the function to any caller")
	}
}

func TestFind(t *testing.T) {
	f, err := parse(t, "functions:\n  a: {image: a}\n  b: {image: b, namespace: x}\n")
	if err != nil {
		t.Fatal(err)
	}
	if fn, err := f.Find("b.x"); err != nil || fn.Image != "b" {
		t.Errorf("%+v, %v", fn, err)
	}
	if _, err := f.Find(""); api.CodeOf(err) != api.CodeInvalid {
		t.Errorf("error %v", err)
	}
	if _, err := f.Find("c"); api.CodeOf(err) != api.CodeNotFound {
		t.Errorf("error %v", err)
	}
}

func TestLoad(t *testing.T) {
	path := filepath.Join(t.TempDir(), "function.yml")
	if _, err := stack.Load(path, none); api.CodeOf(err) != api.CodeNotFound {
		t.Errorf("error %v", err)
	}
	if err := os.WriteFile(path, []byte(minimal), 0o600); err != nil {
		t.Fatal(err)
	}
	if f, err := stack.Load(path, none); err != nil || f.Functions[0].Dir != filepath.Dir(path) {
		t.Errorf("%+v, %v", f, err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(minimal)
	f.Add("a: &a [*a]\n")
	f.Add("functions: {a: {image: x, fprocess: \"a 'b c' \\\\\"}}")
	f.Fuzz(func(t *testing.T, s string) { stack.Parse("f", []byte(s), none) })
}
