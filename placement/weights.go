package placement

import (
	"fmt"
	"math"

	"github.com/faasd-sec/faasd-sec/api"
)

// Weights say how much each part of a score counts. A part is between 0 and 1,
// so a weight is the most that part can add. What each part measures is said in
// Parts.
type Weights struct {
	Warm   float64
	Image  float64
	Pooled float64
	Fit    float64
	Room   float64
	Load   float64
	Spread float64
	Noise  float64
}

// Names of policies: how new sandboxes are laid out over the nodes.
const (
	PolicyPack   = "pack"   // fill nodes one after the other, so that large needs find an empty one
	PolicySpread = "spread" // keep nodes equally full, so that each has room to spare and a dead one takes little along
)

// WeightsOf are the weights of a policy by name; "" is PolicyPack.
func WeightsOf(policy string) (Weights, error) {
	switch policy {
	case "", PolicyPack:
		return DefaultWeights(), nil
	case PolicySpread:
		return SpreadWeights(), nil
	}
	return Weights{}, api.Invalid("policy", "use pack or spread", fmt.Sprintf("%q is no policy of placement", policy))
}

// SpreadWeights put the emptier node first. A warm slot still beats everything
// else together: 8+1+0.5+4 = 13.5 against 1+0.5+4+2+3+0.25 = 10.75.
func SpreadWeights() Weights {
	return Weights{Warm: 8, Image: 1, Pooled: 0.5, Room: 4, Load: 2, Spread: 3, Noise: 0.25}
}

// DefaultWeights make a warm slot beat everything else together, since it saves
// the whole cold start: the node with one gets at least Warm+Image+Pooled+Fit = 12.5,
// one without at most Image+Pooled+Fit+Load+Spread+Noise = 9.75. Among nodes
// without one, what this coordinator has just sent there (Spread) and what runs
// there (Load) outweigh the image, whose pull costs seconds once but a pile-up
// costs each time. A sandbox that waits for a function (Pooled) saves some 80 ms
// of the start: less than a pull, and more than packing tightly (Fit), which only
// decides between otherwise equal nodes.
func DefaultWeights() Weights {
	return Weights{Warm: 8, Image: 2, Pooled: 1.5, Fit: 1, Load: 2, Spread: 3, Noise: 0.25}
}

// Validate reports a weight that is negative, infinite or not a number, as an
// *api.Error of CodeInvalid. Pick's order means nothing with such a weight.
func (w Weights) Validate() error {
	for _, f := range []struct {
		name  string
		value float64
	}{{"warm", w.Warm}, {"image", w.Image}, {"pooled", w.Pooled}, {"fit", w.Fit}, {"room", w.Room}, {"load", w.Load}, {"spread", w.Spread}, {"noise", w.Noise}} {
		if !(f.value >= 0) || math.IsInf(f.value, 0) {
			return api.Invalid("weights."+f.name, "write a number of 0 or more", fmt.Sprintf("%v is not a weight", f.value))
		}
	}
	return nil
}

// Parts are the parts of a score before they are weighted, each in 0..1.
type Parts struct {
	Warm   float64 // 1 if a slot for the revision is free in a running sandbox, pending ones taken off
	Image  float64 // 1 if the image is on the node's disk, or not needed for a warm slot
	Pooled float64 // 1 if a sandbox waits there for a function, pending ones taken off, or for a warm slot
	Fit    float64 // how full a new sandbox makes the node, mean of CPU, memory and what else it needs beside pids; 1 for a warm slot
	Room   float64 // how empty it leaves the node, by the same account; 1 for a warm slot
	Load   float64 // cores / (cores + invocations in flight, as the node reported)
	Spread float64 // cores / (cores + pending invocations)
	Noise  float64 // drawn from the request's seed and the node's ID
}

func (w Weights) score(p Parts) float64 {
	return w.Warm*p.Warm + w.Image*p.Image + w.Pooled*p.Pooled + w.Fit*p.Fit + w.Room*p.Room + w.Load*p.Load + w.Spread*p.Spread + w.Noise*p.Noise
}

// ceiling is the most that a node without a warm slot can score.
func (w Weights) coldCeiling() float64 {
	return w.Image + w.Pooled + max(w.Fit, w.Room) + w.Load + w.Spread + w.Noise
}
