package stack

import (
	"strings"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
)

func parseScaled(section string) (*File, error) {
	return Parse("function.yml", []byte("functions:\n  f:\n    image: f:latest\n"+section), func(string) (string, bool) { return "", false })
}

func TestScaleIsReadFromItsSectionAndFromLabels(t *testing.T) {
	want := api.DefaultScale()
	want.Firm = true
	want.Min, want.Max, want.Zero, want.Type, want.DownWindow = 2, 6, false, api.ScaleRPS, (30 * time.Second).Milliseconds()
	for _, section := range []string{
		"    scale: {min: 2, max: 6, type: rps, down.window: 30s}\n",
		"    labels: {com.openfaas.scale.min: \"2\", com.openfaas.scale.max: \"6\", com.openfaas.scale.type: rps, com.openfaas.scale.down.window: 30s}\n",
		"    scale: {min: 2, max: 6, type: rps, down.window: 30s}\n    labels: {com.openfaas.scale.max: \"9\"}\n",
	} {
		f, err := parseScaled(section)
		if err != nil {
			t.Errorf("%s%v", section, err)
			continue
		}
		if got := f.Functions[0].Scale; got == nil || *got != want || len(f.Warnings) > 0 {
			t.Errorf("%s%+v, warnings %v", section, got, f.Warnings)
		}
	}
	if f, err := parseScaled(""); err != nil || f.Functions[0].Scale != nil {
		t.Errorf("without one: %+v, %v", f, err)
	}
}

func TestScaleThatIsWrongIsNamed(t *testing.T) {
	for section, want := range map[string]string{
		"    scale: {min: two}\n":                                   "functions.f.scale.min",
		"    scale: {min: 7, max: 6}\n":                             "functions.f.scale.min",
		"    scale: {minimum: 1}\n":                                 "functions.f.scale.minimum",
		"    labels: {com.openfaas.scale.zero-duration: forever}\n": "functions.f.labels.com.openfaas.scale.zero-duration",
	} {
		_, err := parseScaled(section)
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "function.yml:4") {
			t.Errorf("%s%v", section, err)
		}
	}
}
