package api

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestAPlainFunctionSaysWhatItGets(t *testing.T) {
	p := Plain{Image: "alpine", EnvProcess: "cat", Env: map[string]string{"read_timeout": "60s", "write_timeout": "65", "max_inflight": "5"},
		Limits: &PlainAmounts{CPU: "250m", Memory: "64Mi"}, Requests: &PlainAmounts{Memory: "32Mi"},
		Constraints: []string{"zone=a", "node.labels.disk == ssd", "pool != spot", "node.platform.arch == x86_64"}}
	s, err := p.Settle()
	if err != nil {
		t.Fatal(err)
	}
	want := PlainSettings{
		Resources: Resources{CPU: 250, Memory: 64 << 20, PIDs: DefaultPlainPIDs, Tmp: 16 << 20, Storage: 16 << 20},
		Read:      time.Minute, Write: 65 * time.Second, Exec: 65 * time.Second, Start: DefaultStartTimeout, MaxInFlight: 5,
		Require: []Requirement{{"zone", OpEquals, "a"}, {"disk", OpEquals, "ssd"}, {"pool", OpDiffers, "spot"}}, Archs: []string{"amd64"},
	}
	if !reflect.DeepEqual(s, want) {
		t.Errorf("%+v\nwant %+v", s, want)
	}
	if env := p.Environ(); env["fprocess"] != "cat" || env["max_inflight"] != "5" {
		t.Error(env)
	}
	s, err = (&Plain{Image: "alpine", ReadOnlyRoot: true, Env: map[string]string{"exec_timeout": "0s"}}).Settle()
	if err != nil || s.Resources.CPU != DefaultPlainCPU || s.Resources.Memory != DefaultPlainMemory || s.Resources.Storage != 0 || s.Exec != MaxTimeout {
		t.Errorf("%+v, %v", s, err)
	}
}

func TestWhatDoesNotParseInAPlainFunctionNamesItsField(t *testing.T) {
	for field, p := range map[string]Plain{
		"image":                                 {Image: " "},
		"limits.cpu":                            {Image: "a", Limits: &PlainAmounts{CPU: "lots"}},
		"limits.memory":                         {Image: "a", Limits: &PlainAmounts{Memory: "128MB"}},
		"requests.cpu":                          {Image: "a", Limits: &PlainAmounts{CPU: "1"}, Requests: &PlainAmounts{CPU: "2"}},
		"requests.memory":                       {Image: "a", Requests: &PlainAmounts{Memory: "-1"}},
		"environment.exec_timeout":              {Image: "a", Env: map[string]string{"exec_timeout": "soon"}},
		"environment.read_timeout":              {Image: "a", Env: map[string]string{"read_timeout": "25h"}},
		"environment.max_inflight":              {Image: "a", Env: map[string]string{"max_inflight": "-1"}},
		"environment":                           {Image: "a", Env: map[string]string{"A=B": ""}},
		"secret":                                {Image: "a", Secrets: []string{"../x"}},
		"constraints[1]":                        {Image: "a", Constraints: []string{"a=b", "zone"}},
		"annotations." + AnnotationStartTimeout: {Image: "a", Annotations: map[string]string{AnnotationStartTimeout: "x"}},
	} {
		_, err := p.Settle()
		var e *Error
		if !errors.As(err, &e) || e.Field != field || e.Remedy == "" {
			t.Errorf("%s: %v", field, err)
		}
	}
}

func TestEqualSettingsAreAnEqualRevision(t *testing.T) {
	p := Plain{Image: "alpine", Env: map[string]string{"a": "1", "b": "2"}, Secrets: []string{"x", "y"}, Limits: &PlainAmounts{Memory: "64Mi"}}
	rev, err := p.Revision("f.openfaas-fn", "sha256:1")
	if err != nil || len(rev) != 64 || strings.ToLower(rev) != rev {
		t.Fatalf("%q, %v", rev, err)
	}
	b, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	var q Plain
	if err := json.Unmarshal(b, &q); err != nil {
		t.Fatal(err)
	}
	q.Secrets, q.Labels = []string{"y", "x", "x"}, map[string]string{}
	if again, _ := q.Revision("f.openfaas-fn", "sha256:1"); again != rev {
		t.Error("the same settings are another revision")
	}
	for _, other := range []func() (string, error){
		func() (string, error) { return p.Revision("g.openfaas-fn", "sha256:1") },
		func() (string, error) { return p.Revision("f.openfaas-fn", "sha256:2") },
		func() (string, error) {
			r := p
			r.Env = map[string]string{"a": "1"}
			return r.Revision("f.openfaas-fn", "sha256:1")
		},
	} {
		if o, _ := other(); o == rev {
			t.Error("other settings are the same revision")
		}
	}
}
