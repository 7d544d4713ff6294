package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/faasd-sec/faasd-sec/api"
)

var update = flag.Bool("update", false, "write the golden frames anew")

// someGlance is a cluster of two nodes, one of which does not answer, with tasks.
func someGlance(tasks int) *glance {
	st := &api.NodeStatus{Node: "node-1", Running: tasks, InFlight: 3, Reserved: api.Resources{CPU: 2000, Memory: 1 << 30},
		Capacity: api.Resources{CPU: 8000, Memory: 4 << 30},
		Machine: api.MachineUsage{CPUs: 2, CPU: 1500, MemoryTotal: 8 << 30, MemoryAvailable: 6 << 30, DiskSize: 100 << 30, DiskFree: 40 << 30,
			Pressure:   map[string]api.Pressure{"cpu": {Some: 12}, "memory": {}, "io": {Some: 3}},
			Interfaces: []api.InterfaceUsage{{Name: "eth0", In: 1_250_000, Out: 900}}},
		History: &api.History{EveryMs: 1000, CPU: []float32{0, 500, 1000, 1500, 2000}, Memory: []float32{2 << 30, 2 << 30, 4 << 30}}}
	for i := range tasks {
		t := api.TaskStatus{ID: fmt.Sprintf("s-%02d", i), Node: "node-1", Function: "hello.openfaas-fn", State: "ready", InFlight: i % 2,
			StartedAt: 1_700_000_000_000, Limits: api.Resources{CPU: 500, Memory: 64 << 20, PIDs: 100},
			Usage: api.TaskUsage{At: 1, CPU: int64(i) * 10, Memory: 20<<20 - int64(i)<<20, PIDs: 4}}
		if i == 1 {
			t.Function, t.Usage.Throttled, t.Usage.OOMKills = "busy.openfaas-fn", 0.42, 2
			t.Usage.StorageUsed, t.Usage.StorageSize = 3<<20, 16<<20
			t.Usage.Network, t.Usage.In, t.Usage.Out = true, 5_000_000, 64_000
			t.History = &api.History{EveryMs: 1000, CPU: []float32{100, 200, 300, 400, 500, 600}, Memory: []float32{1 << 20, 32 << 20, 64 << 20}}
		}
		st.Tasks = append(st.Tasks, t)
	}
	other := api.NodeView{Meta: api.NodeMeta{ID: "node-2\x1b[2J", Roles: []string{api.RoleNode}}, Load: api.NodeLoad{Running: 1}}
	return &glance{Details: []api.NodeDetail{{View: api.NodeView{Meta: api.NodeMeta{ID: "node-1"}}, Status: st}, {View: other, Error: "unavailable"}}}
}

func someFrame(tasks int) *frame {
	return &frame{gateway: "http://127.0.0.1:8080", at: time.UnixMilli(1_700_000_090_000).UTC(), glance: someGlance(tasks), width: 160, height: 16}
}

// visible makes a frame's sequences readable.
func visible(s string) string {
	s = strings.ReplaceAll(s, "\r\n", "\n")
	return strings.ReplaceAll(s, "\x1b", "␛") + "\n"
}

func TestTopDrawsTheseFrames(t *testing.T) {
	scrolled := someFrame(30)
	scrolled.key("s")
	scrolled.key("j")
	scrolled.key("\x1b[B")
	narrow := someFrame(3)
	narrow.width, narrow.height, narrow.problem = 60, 9, "the gateway cannot be reached"
	for name, got := range map[string]string{
		"live": visible(someFrame(3).live()), "scrolled": visible(scrolled.live()), "narrow": visible(narrow.live()),
		"plain": someFrame(3).plain(), "empty": visible((&frame{gateway: "http://x", at: time.Unix(0, 0).UTC(), glance: &glance{}, width: 80, height: 8}).live()),
	} {
		path := filepath.Join("testdata", "top", name+".txt")
		if *update {
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if string(want) != got {
			t.Errorf("%s: go test ./cmd/faasd-sec -update writes it anew, if this is right:\n%s", name, got)
		}
	}
}

func TestAFrameNeverPassesItsScreen(t *testing.T) {
	for _, size := range [][2]int{{1, 1}, {20, 3}, {80, 24}, {300, 100}} {
		f := someFrame(40)
		f.width, f.height, f.scroll = size[0], size[1], 1000
		text := strings.TrimSuffix(strings.TrimPrefix(f.live(), termHome), termBelow)
		rows := strings.Split(text, "\r\n")
		if len(rows) > size[1] {
			t.Errorf("%v: %d lines", size, len(rows))
		}
		for _, r := range rows {
			r = strings.NewReplacer(termBold, "", termPlain, "", termEOL, "").Replace(r)
			if utf8.RuneCountInString(r) > size[0] || strings.Contains(r, "\x1b") {
				t.Errorf("%v: %q", size, r)
			}
		}
	}
}

func TestSparklines(t *testing.T) {
	for _, c := range []struct {
		values []float32
		most   float32
		want   string
	}{
		{nil, 0, "    "}, {[]float32{0, 0}, 0, "  ▁▁"}, {[]float32{1, 2, 3, 4, 8}, 8, "▃▄▅█"}, {[]float32{100, -1}, 10, "  █▁"},
	} {
		if got := spark(c.values, 4, c.most); got != c.want {
			t.Errorf("%v of %v: %q, want %q", c.values, c.most, got, c.want)
		}
	}
}
