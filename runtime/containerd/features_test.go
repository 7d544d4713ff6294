package containerd

import "testing"

func TestFeaturesAreStillThere(t *testing.T) {
	b := need(t)
	if err := b.open(t).Features(); err != nil {
		t.Error(err)
	}
}
