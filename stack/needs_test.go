package stack

import (
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/manifest"
)

func parseNeeds(t *testing.T, needs string) (*File, error) {
	t.Helper()
	text := "functions:\n  f:\n    image: f:latest\n    needs:\n" + needs
	return Parse("function.yml", []byte(text), func(string) (string, bool) { return "", false })
}

func TestNeedsOfAFunction(t *testing.T) {
	listed := strings.Repeat("ab", 32)
	f, err := parseNeeds(t, `      default: {cpu: 250m, cores: 1, memory: 64Mi, scratch: 1Gi, egress: 10M, pids: 40, ports: [tcp, "udp:53", "tcp*3"],
        require: ["zone=a", "disk!=slow", gpu, "!spot"], arch: [arm64, amd64], apart: true, priority: 2, retry: "3:start_failed,node_lost"}
      max: {cpu: 2, cores: 4, memory: 1Gi, ports: 8, priority: 9, attempts: 5}
      overridable: [priority, cores, cpu, memory, port, require, cpu]
      initiators: [`+listed+`]
`)
	if err != nil {
		t.Fatal(err)
	}
	want := &Needs{Listed: []string{listed}, Bounds: manifest.Bounds{
		Default: manifest.Needs{CPUMillis: 250, Cores: 1, MemoryBytes: 64 << 20, ScratchBytes: 1 << 30, EgressBPS: 10e6, PIDs: 40,
			Ports: []manifest.Port{{Protocol: manifest.TCP, Count: 1}, {Protocol: manifest.UDP, Number: 53, Count: 1}, {Protocol: manifest.TCP, Count: 3}},
			Constraints: []manifest.Requirement{{Key: "zone", Op: manifest.Equals, Value: "a"}, {Key: "disk", Op: manifest.Differs, Value: "slow"},
				{Key: "gpu", Op: manifest.Exists}, {Key: "spot", Op: manifest.Absent}},
			Architectures: []string{"amd64", "arm64"}, AntiAffinity: manifest.ReplicasApart},
		Priority: 2, Retry: manifest.Retry{MaxAttempts: 3, Codes: []string{"start_failed"}, AfterNodeDeath: true},
		Max:         manifest.Max{CPUMillis: 2000, Cores: 4, MemoryBytes: 1 << 30, Ports: 8, Priority: 9, Attempts: 5},
		Overridable: []manifest.Field{manifest.FieldCPU, manifest.FieldMemory, manifest.FieldPorts, manifest.FieldConstraints, manifest.FieldPriority, manifest.FieldCores}}}
	if got := f.Functions[0].Needs; !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
}

func TestNeedsThatAreWrongNameFieldAndRemedy(t *testing.T) {
	for needs, field := range map[string]string{
		"      default: {cpu: fast}\n":              "functions.f.needs.default.cpu",
		"      default: {egress: 10Q}\n":            "functions.f.needs.default.egress",
		"      default: {ports: [sctp]}\n":          "functions.f.needs.default.ports[0]",
		"      default: {ports: [\"tcp:99999\"]}\n": "functions.f.needs.default.ports[0]",
		"      default: {require: [\"=a\"]}\n":      "functions.f.needs.default.require[0]",
		"      default: {retry: often}\n":           "functions.f.needs.default.retry",
		"      default: {priority: 10}\n":           "functions.f.needs.default.priority",
		"      default: {gpus: 1}\n":                "functions.f.needs.default.gpus",
		"      max: {attempts: 11}\n":               "functions.f.needs.max.attempts",
		"      overridable: [gpu]\n":                "functions.f.needs.overridable[0]",
		"      initiators: [me]\n":                  "functions.f.needs.initiators[0]",
	} {
		_, err := parseNeeds(t, needs)
		var e *api.Error
		if !errors.As(err, &e) || e.Field != field || e.Remedy == "" {
			t.Errorf("%s: %v, want field %s", strings.TrimSpace(needs), err, field)
		}
	}
}
