package api

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/emmansun/gmsm/sm3"
)

// Plain is a function that was deployed without a descriptor: an image and its
// settings, in clear, as clients of OpenFaaS write them. It runs in the same
// sandboxes under the same limits as a sealed function; what it is, and what goes
// in and out of it, everybody on its way can read.
//
// The fields hold what was deployed, verbatim. Settle makes of them what counts.
type Plain struct {
	Image        string            `json:"image"`                 // as written; what runs is named by digest beside it
	EnvProcess   string            `json:"env_process,omitempty"` // the environment variable fprocess, for the image's watchdog
	Env          map[string]string `json:"env,omitempty"`         // wins over the image's
	Secrets      []string          `json:"secrets,omitempty"`     // names, of the function's namespace
	Labels       map[string]string `json:"labels,omitempty"`      // of the function, not of nodes
	Annotations  map[string]string `json:"annotations,omitempty"` // likewise
	Constraints  []string          `json:"constraints,omitempty"` // on labels of nodes: "zone=a", "node.labels.disk != hdd"
	ReadOnlyRoot bool              `json:"read_only_root"`        // false, as for OpenFaaS, gives a writable root of limited size in memory
	Limits       *PlainAmounts     `json:"limits,omitempty"`      // what is missing has a default: nothing runs without a limit
	Requests     *PlainAmounts     `json:"requests,omitempty"`    // must parse and lie within the limits, which are what is reserved
}

// PlainAmounts are quantities as written, "" for one that is not.
type PlainAmounts struct {
	CPU    string `json:"cpu,omitempty"`    // "250m", "0.5"
	Memory string `json:"memory,omitempty"` // "128Mi", "40M"
}

// Revision is the digest of the function under its name with the image that its
// reference meant, in hex: equal settings are an equal revision, wherever and
// whenever they are deployed.
func (p *Plain) Revision(name FunctionName, imageDigest string) (string, error) {
	same := *p
	same.Secrets, same.Constraints = sorted(p.Secrets), sorted(p.Constraints)
	// encoding/json writes fields in their order and keys of maps sorted.
	b, err := json.Marshal(struct {
		Name   FunctionName `json:"name"`
		Digest string       `json:"digest"`
		Plain  Plain        `json:"plain"`
	}{name, imageDigest, same})
	if err != nil {
		return "", fmt.Errorf("encode plain function: %w", err)
	}
	sum := sm3.Sum(append([]byte("faasd-sec/v1 plain\x00"), b...))
	return hex.EncodeToString(sum[:]), nil
}

// sorted is a sorted copy without repeats.
func sorted(s []string) []string {
	s = slices.Clone(s)
	slices.Sort(s)
	return slices.Compact(s)
}

// Environ is what the image's watchdog, or the function itself, is started with
// beside the image's own environment.
func (p *Plain) Environ() map[string]string {
	env := make(map[string]string, len(p.Env)+1)
	for k, v := range p.Env {
		env[k] = v
	}
	if p.EnvProcess != "" {
		env["fprocess"] = p.EnvProcess
	}
	return env
}
