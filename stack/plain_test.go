package stack_test

import (
	"reflect"
	"strings"
	"testing"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/stack"
)

// As users of OpenFaaS write it.
const openFaaSStack = `
version: 1.0
provider:
  name: openfaas
  gateway: http://${HOST:-127.0.0.1}:8080
functions:
  hello-python:
    lang: python3-http
    handler: ./hello-python
    image: ${REGISTRY:-docker.io/me}/hello-python:0.1
    fprocess: python3 index.py
    environment:
      write_debug: true
      read_timeout: 20s
    environment_file: [env.yml]
    secrets: [api-key]
    constraints: ["node.platform.os == linux"]
    labels:
      com.openfaas.scale.min: 2
      com.openfaas.scale.max: 5
      com.openfaas.scale.zero: false
    annotations:
      topic: payments
      schedule: "*/5 * * * *"
      com.openfaas.retry.attempts: "3"
    limits: {memory: 40Mi, cpu: 100m}
    requests: {memory: 20Mi}
    readonly_root_filesystem: true
    namespace: dev
`

func TestAPlainFunctionIsWhatItsStackFileSays(t *testing.T) {
	f, err := stack.ParsePlain("stack.yml", []byte(openFaaSStack), none)
	if err != nil {
		t.Fatal(err)
	}
	want := &api.Plain{Image: "docker.io/me/hello-python:0.1", EnvProcess: "python3 index.py", Env: map[string]string{"write_debug": "true", "read_timeout": "20s"},
		Secrets: []string{"api-key"}, Constraints: []string{"node.platform.os == linux"},
		Labels:      map[string]string{"com.openfaas.scale.min": "2", "com.openfaas.scale.max": "5", "com.openfaas.scale.zero": "false"},
		Annotations: map[string]string{"topic": "payments", "schedule": "*/5 * * * *", "com.openfaas.retry.attempts": "3"},
		Limits:      &api.PlainAmounts{CPU: "100m", Memory: "40Mi"}, Requests: &api.PlainAmounts{Memory: "20Mi"}, ReadOnlyRoot: true}
	fn := f.Functions[0]
	if !reflect.DeepEqual(fn.Plain, want) || fn.Name != "hello-python.dev" || len(f.Warnings) > 0 || f.Gateway != "http://127.0.0.1:8080" {
		t.Errorf("%+v\n%+v\n%v", fn.Plain, want, f)
	}
}

func TestAFileIsSealedUnlessItIsReadAsPlain(t *testing.T) {
	f, err := stack.Parse("stack.yml", []byte(minimal), none)
	if err != nil || f.Functions[0].Plain != nil {
		t.Fatalf("%+v, %v", f, err)
	}
	f, err = stack.ParsePlain("stack.yml", []byte(minimal+"    readonly_root_filesystem: false\n"), none)
	if err != nil || f.Functions[0].Plain == nil || f.Functions[0].Plain.ReadOnlyRoot {
		t.Fatalf("%+v, %v", f, err)
	}
}

func TestNothingThatIsSealedIsReadAsPlain(t *testing.T) {
	for section, want := range map[string]string{
		"    sealed: {pids: 64}\n":              "functions.hello.sealed",
		"    needs: {initiators: [owner]}\n":    "functions.hello.needs",
		"    limits: {memory: 1Zi}\n":           "functions.hello.limits.memory",
		"    constraints: [\"a b c\"]\n":        "functions.hello.constraints[0]",
		"    environment: {exec_timeout: no}\n": "functions.hello.environment.exec_timeout",
	} {
		_, err := stack.ParsePlain("stack.yml", []byte(minimal+section), none)
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "stack.yml:") {
			t.Errorf("%s%v", section, err)
		}
	}
}
