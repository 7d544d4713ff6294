package placement

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/faasd-sec/faasd-sec/api"
)

// The files in testdata hold a cluster, one node per line, and requests, each
// followed by the expected decision after "----" and up to an empty line:
//
//	node ID cpu=FREE/CAPACITY mem=… pids=… warm=KEY:SLOTS,… images=KEY,… …
//	pick rev=KEY cpu=… pending=ID:N,… …
//	----
//	ID warm|pooled|cold
//	refused: COUNTS
//	ID: DETAIL          (with explain=N)
//
// Noise has no weight in them, so that they read like arithmetic.
func TestScenarios(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scenarios: %v", err)
	}
	for _, f := range files {
		t.Run(strings.TrimSuffix(filepath.Base(f), ".txt"), func(t *testing.T) { runScenario(t, f) })
	}
}

func runScenario(t *testing.T, file string) {
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	view := &api.ClusterView{}
	in, line := bufio.NewScanner(f), 0
	next := func() (string, bool) {
		if !in.Scan() {
			return "", false
		}
		line++
		return strings.TrimSpace(in.Text()), true
	}
	for {
		text, ok := next()
		if !ok {
			return
		}
		word, rest, _ := strings.Cut(text, " ")
		switch {
		case text == "" || word[0] == '#':
		case word == "reset":
			view = &api.ClusterView{}
		case word == "node":
			view.Nodes = append(view.Nodes, parseNode(t, line, rest))
			slices.SortFunc(view.Nodes, func(a, b api.NodeView) int { return strings.Compare(a.Meta.ID, b.Meta.ID) })
		case word == "pick":
			at := line
			req := parseRequest(t, line, rest, view)
			if sep, _ := next(); sep != "----" {
				t.Fatalf("%s:%d: want ----", file, line)
			}
			var want []string
			for {
				l, ok := next()
				if !ok || l == "" {
					break
				}
				want = append(want, l)
			}
			weights, err := WeightsOf(policyOf(rest))
			if err != nil {
				t.Fatal(err)
			}
			weights.Noise = 0
			for name, d := range map[string]Decision{
				"Pick": Pick(view, req, weights), "Index.Pick": NewIndex(view, 0).Pick(req, weights),
			} {
				if got := render(d); !slices.Equal(got, want) {
					t.Errorf("%s:%d: %s: %s\ngot:\n  %s\nwant:\n  %s", file, at, name, rest, strings.Join(got, "\n  "), strings.Join(want, "\n  "))
				}
			}
		default:
			t.Fatalf("%s:%d: unknown word %q", file, line, word)
		}
	}
}

// policyOf is the value of policy= among words.
func policyOf(words string) string {
	_, rest, _ := strings.Cut(" "+words, " policy=")
	policy, _, _ := strings.Cut(rest, " ")
	return policy
}

func render(d Decision) (out []string) {
	for _, c := range d.Candidates {
		how := "cold"
		switch {
		case c.Warm:
			how = "warm"
		case c.Pooled:
			how = "pooled"
		}
		out = append(out, c.ID+" "+how)
	}
	if d.Refused.Total() > 0 {
		out = append(out, "refused: "+d.Refused.String())
	}
	for _, r := range d.Refusals {
		out = append(out, r.ID+": "+r.Detail)
	}
	return out
}

func parseNode(t *testing.T, line int, text string) api.NodeView {
	t.Helper()
	words := strings.Fields(text)
	n := api.NodeView{Meta: api.NodeMeta{ID: words[0], Roles: []string{api.RoleNode}, Arch: "amd64", Tier: "node-key"}}
	n.Load = api.NodeLoad{Node: n.Meta.ID, Epoch: 1, Seq: 1}
	for _, w := range words[1:] {
		key, value, _ := strings.Cut(w, "=")
		free, capacity, _ := strings.Cut(value, "/")
		switch key {
		case "cpu":
			n.Load.Free.CPU, n.Meta.Capacity.CPU = cpu(t, free), cpu(t, capacity)
		case "mem":
			n.Load.Free.Memory, n.Meta.Capacity.Memory = size(t, free), size(t, capacity)
		case "pids":
			n.Load.Free.PIDs, n.Meta.Capacity.PIDs = int64(number(t, free)), int64(number(t, capacity))
		case "scratch":
			n.Load.Free.Scratch, n.Meta.Capacity.Scratch = size(t, free), size(t, capacity)
		case "in":
			n.Load.Free.Ingress, n.Meta.Capacity.Ingress = int64(number(t, free)), int64(number(t, capacity))
		case "out":
			n.Load.Free.Egress, n.Meta.Capacity.Egress = int64(number(t, free)), int64(number(t, capacity))
		case "ports":
			n.Load.Free.Ports, n.Meta.Capacity.Ports = int64(number(t, free)), int64(number(t, capacity))
		case "cores":
			n.Load.Free.Cores, n.Meta.Capacity.Cores = int64(number(t, free)), int64(number(t, capacity))
		case "hosts":
			n.Load.Hosts = strings.Split(value, ",")
		case "warm":
			n.Load.Warm = pairs(t, value)
		case "pooled":
			n.Load.Pooled = number(t, value)
		case "images":
			n.Load.Images = strings.Split(value, ",")
		case "inflight":
			n.Load.InFlight = number(t, value)
		case "labels":
			n.Meta.Labels = labels(value)
		case "arch":
			n.Meta.Arch = value
		case "tier":
			n.Meta.Tier = value
		case "roles":
			n.Meta.Roles = strings.Split(value, ",")
		case "draining":
			n.Load.Draining = true
		case "noload":
			n.Load = api.NodeLoad{}
		default:
			t.Fatalf("line %d: unknown field %q", line, key)
		}
	}
	return n
}

func parseRequest(t *testing.T, line int, text string, view *api.ClusterView) Request {
	t.Helper()
	var r Request
	for _, w := range strings.Fields(text) {
		key, value, _ := strings.Cut(w, "=")
		switch key {
		case "rev":
			r.Revision = value
		case "image":
			r.Image = value
		case "cpu":
			r.Resources.CPU = cpu(t, value)
		case "mem":
			r.Resources.Memory = size(t, value)
		case "pids":
			r.Resources.PIDs = int64(number(t, value))
		case "scratch":
			r.Resources.Scratch = size(t, value)
		case "in":
			r.Resources.Ingress = int64(number(t, value))
		case "out":
			r.Resources.Egress = int64(number(t, value))
		case "ports":
			r.Resources.Ports = int64(number(t, value))
		case "cores":
			r.Resources.Cores = int64(number(t, value))
		case "needs":
			r.Needs = value
		case "apart":
			r.Apart = true
		case "hosting":
			p := pairs(t, value)
			r.Hosting = func(i int) bool { return p[view.Nodes[i].Meta.ID] > 0 }
		case "require":
			for _, c := range strings.Split(value, ",") {
				f := append(strings.Split(c, ":"), "")
				r.Require = append(r.Require, api.Requirement{Key: f[0], Op: f[1], Value: f[2]})
			}
		case "archs":
			r.Archs = strings.Split(value, ",")
		case "policy":
			// below
		case "arch":
			r.Arch = value
		case "tiers":
			r.Tiers = strings.Split(value, ",")
		case "labels":
			r.Labels = labels(value)
		case "exclude":
			r.Exclude = strings.Split(value, ",")
		case "limit":
			r.Limit = number(t, value)
		case "explain":
			r.Explain = number(t, value)
		case "pending":
			p := pairs(t, value)
			r.Pending = func(i int) int { return p[view.Nodes[i].Meta.ID] }
		default:
			t.Fatalf("line %d: unknown field %q", line, key)
		}
	}
	return r
}

func cpu(t *testing.T, s string) int64 {
	t.Helper()
	if s == "0" {
		return 0
	}
	v, err := api.ParseCPU("cpu", s)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func size(t *testing.T, s string) int64 {
	t.Helper()
	if s == "0" {
		return 0
	}
	v, err := api.ParseBytes("mem", s)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func number(t *testing.T, s string) int {
	t.Helper()
	v, err := strconv.Atoi(s)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func pairs(t *testing.T, s string) map[string]int {
	t.Helper()
	m := map[string]int{}
	for _, kv := range strings.Split(s, ",") {
		k, v, ok := strings.Cut(kv, ":")
		if !ok {
			t.Fatal(fmt.Errorf("%q is not KEY:NUMBER", kv))
		}
		m[k] = number(t, v)
	}
	return m
}

func labels(s string) map[string]string {
	m := map[string]string{}
	for _, kv := range strings.Split(s, ",") {
		k, v, _ := strings.Cut(kv, ":")
		m[k] = v
	}
	return m
}
