package main

import (
	"reflect"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/client"
	"github.com/faasd-sec/faasd-sec/manifest"
)

func TestNeedsFlags(t *testing.T) {
	now := time.Now()
	parse := func(args ...string) (*client.Needs, error) {
		t.Helper()
		var n needsFlags
		cmd := &cobra.Command{}
		n.add(cmd)
		if err := cmd.Flags().Parse(args); err != nil {
			t.Fatal(err)
		}
		return n.parse(cmd.Flags(), now)
	}
	if n, err := parse(); n != nil || err != nil {
		t.Errorf("without flags: %+v, %v", n, err)
	}
	got, err := parse("--cpu", "500m", "--memory", "64Mi", "--storage", "8Mi", "--scratch", "1Gi", "--pids", "32", "--ingress", "1M", "--egress", "2M", "--cores", "2",
		"--port", "tcp:8080", "--port", "udp", "--require", "zone=a", "--arch", "amd64", "--apart", "--deadline", "30s", "--priority", "9", "--retry", "2:no_room")
	want := &client.Needs{Needs: manifest.Needs{CPUMillis: 500, MemoryBytes: 64 << 20, StorageBytes: 8 << 20, ScratchBytes: 1 << 30, PIDs: 32, IngressBPS: 1e6, EgressBPS: 2e6, Cores: 2,
		Ports:         []manifest.Port{{Protocol: manifest.TCP, Number: 8080, Count: 1}, {Protocol: manifest.UDP, Count: 1}},
		Constraints:   []manifest.Requirement{{Key: "zone", Op: manifest.Equals, Value: "a"}},
		Architectures: []string{"amd64"}, AntiAffinity: manifest.ReplicasApart},
		Deadline: now.Add(30 * time.Second), Priority: 9, Retry: manifest.Retry{MaxAttempts: 2, Codes: []string{"no_room"}}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v, want %+v", got, err, want)
	}
	for _, args := range [][]string{{"--cpu", "much"}, {"--egress", "-1"}, {"--cores", "0"}, {"--port", "8080"}, {"--require", "="}, {"--priority", "0"}, {"--retry", "x"}, {"--deadline", "0s"}} {
		_, err := parse(args...)
		e, ok := err.(*api.Error)
		if !ok || e.Field != args[0] || e.Remedy == "" {
			t.Errorf("%v: %v", args, err)
		}
	}
}
