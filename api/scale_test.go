package api_test

import (
	"errors"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
)

func TestScaleIsReadFromLabels(t *testing.T) {
	if s, err := api.ScaleOf(map[string]string{"team": "a"}); s != nil || err != nil {
		t.Errorf("without a label about it: %+v, %v", s, err)
	}
	for _, c := range []struct {
		name   string
		labels map[string]string
		want   func(*api.Scale)
	}{
		{"it may go to zero", map[string]string{"com.openfaas.scale.zero": "true"}, func(s *api.Scale) {}},
		{"a maximum", map[string]string{"com.openfaas.scale.max": "7"}, func(s *api.Scale) {
			s.Max, s.Zero, s.Type, s.Target = 7, false, api.ScaleRPS, 5
		}},
		{"a target", map[string]string{"com.openfaas.scale.target": "7"}, func(s *api.Scale) { s.Zero, s.Type, s.Target = false, api.ScaleRPS, 7 }},
		{"a target of a type", map[string]string{"com.openfaas.scale.target": "7", "com.openfaas.scale.type": "capacity"}, func(s *api.Scale) {
			s.Zero, s.Target = false, 7
		}},
		{"a minimum is kept", map[string]string{"com.openfaas.scale.min": "2"}, func(s *api.Scale) { s.Min, s.Firm, s.Zero = 2, true, false }},
		{"a minimum over the usual maximum", map[string]string{"com.openfaas.scale.min": "30"}, func(s *api.Scale) { s.Min, s.Firm, s.Max, s.Zero = 30, true, 30, false }},
		{"a minimum, and zero", map[string]string{"com.openfaas.scale.min": "2", "com.openfaas.scale.zero": "true"}, func(s *api.Scale) { s.Min, s.Firm = 2, true }},
		{"a minimum of none", map[string]string{"com.openfaas.scale.min": "0"}, func(s *api.Scale) {}},
		{"all", map[string]string{"com.openfaas.scale.min": "1", "com.openfaas.scale.max": "5", "com.openfaas.scale.zero": "true",
			"com.openfaas.scale.zero-duration": "15m", "com.openfaas.scale.type": "rps", "com.openfaas.scale.target": "100",
			"com.openfaas.scale.target-proportion": "0.5", "com.openfaas.scale.down.window": "90s"}, func(s *api.Scale) {
			s.Firm, s.Max, s.Type, s.Target, s.Proportion = true, 5, api.ScaleRPS, 100, 0.5
			s.ZeroAfter, s.DownWindow = (15 * time.Minute).Milliseconds(), (90 * time.Second).Milliseconds()
		}},
		{"a factor", map[string]string{"com.openfaas.scale.factor": "25", "com.openfaas.scale.max": "10"}, func(s *api.Scale) {
			s.Max, s.Zero, s.Type, s.Target = 10, false, api.ScaleRPS, 5
			s.Band = &api.ScaleBand{Low: 0.45, High: 0.9, Add: 3, Remove: 3}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			want := api.DefaultScale()
			c.want(&want)
			got, err := api.ScaleOf(c.labels)
			if err != nil {
				t.Fatal(err)
			}
			band := got.Band
			if want.Band != nil && (band == nil || *band != *want.Band) {
				t.Errorf("band %+v, want %+v", band, want.Band)
			}
			got.Band, want.Band = nil, nil
			if *got != want {
				t.Errorf("%+v, want %+v", *got, want)
			}
			if got.Band = band; got.Check("scale") != nil {
				t.Errorf("what was read is refused: %v", got.Check("scale"))
			}
		})
	}
}

func TestScaleLabelsThatDoNotParseAreNamed(t *testing.T) {
	for _, c := range []struct {
		label, value string
		more         map[string]string
	}{
		{"min", "two", nil}, {"min", "-1", nil}, {"min", "03", nil}, {"max", "0", nil}, {"zero", "yes", nil}, {"zero-duration", "15", nil},
		{"type", "memory", nil}, {"target", "0", nil}, {"target-proportion", "1.5", nil}, {"target-proportion", "NaN", nil}, {"factor", "101", nil},
		{"down.window", "-1s", nil}, {"down-window", "1s", nil}, {"min", "9", map[string]string{"max": "3"}}, {"zero", "false", map[string]string{"min": "0"}},
		{"low", "0.9", map[string]string{"high": "0.8"}}, {"add", "1", map[string]string{"factor": "20"}},
	} {
		labels := map[string]string{api.ScaleLabel + c.label: c.value}
		for k, v := range c.more {
			labels[api.ScaleLabel+k] = v
		}
		_, err := api.ScaleOf(labels)
		var e *api.Error
		if !errors.As(err, &e) || e.Code != api.CodeInvalid || e.Field != api.ScaleLabel+c.label || e.Remedy == "" {
			t.Errorf("%v: %v", labels, err)
		}
	}
}
