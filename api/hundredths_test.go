package api

import "testing"

func TestAmountsInHundredths(t *testing.T) {
	of := Resources{CPU: 4000, Memory: 1000, Ports: 6, Egress: 1050}
	r := Resources{CPU: 41, Memory: 1000, Ports: 5, Egress: 1049}
	if got, want := r.UpToHundredths(of), (Resources{CPU: 80, Memory: 1000, Ports: 5, Egress: 1050}); got != want {
		t.Errorf("up: %+v, want %+v", got, want)
	}
	if got, want := r.DownToHundredths(of), (Resources{CPU: 40, Memory: 1000, Ports: 5, Egress: 1040}); got != want {
		t.Errorf("down: %+v, want %+v", got, want)
	}
}
