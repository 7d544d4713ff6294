// Package boundary holds no code: its test is the project's trust boundary,
// written as imports that must not exist, each with the reason.
package boundary

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"sort"
	"strings"
	"testing"
)

const module = "github.com/faasd-sec/faasd-sec/"

// never lists what a package or binary must not link, directly or through others.
var never = []struct{ from, what, why string }{
	{"cmd/coordinator", "sealed/unseal", "the coordinator routes sealed messages; code that can open them must not be there to be misused"},
	{"cmd/coordinator", "agent", "the agent opens messages"},
	{"cmd/coordinator", "keybroker", "function keys never pass through the coordinator in clear"},
	{"cmd/coordinator", "runtime/containerd", "the coordinator runs nothing"},
	{"cmd/coordinator", "manifest/opener", "the coordinator learns parsed manifests and must not hold the key that opens them"},
	{"cmd/manifest-opener", "coordinator", "the opener is small, and does not depend on what asks it"},
	{"cmd/manifest-opener", "keybroker", "keys of manifests and keys of functions are apart"},
	{"cmd/manifest-opener", "store", "the opener keeps its own keys and nothing else"},
	{"cmd/manifest-opener", "daemon", "no HTTP server and no metrics library beside the key"},
	{"manifest/ask", "sealed/unseal", "asking is for coordinators, opening is not"},
	{"cmd/node", "sealed/unseal", "a node carries sealed messages; only the agent inside the task opens them"},
	{"cmd/node", "agent", "the agent is another binary, measured and mounted, not linked"},
	{"cmd/node", "keybroker", "a node relays the release and must not be able to make one"},
	{"cmd/node", "coordinator", "a node trusts what owners signed, not a coordinator's code"},
	{"cmd/agent", "runtime/containerd", "the agent is the measured part: small, and without a way to the host"},
	{"cmd/agent", "store", "the agent knows no cluster"},
	{"cmd/agent", "gossip", "the agent knows no cluster"},
	{"cmd/agent", "coordinator", "the agent knows no cluster"},
	{"cmd/agent", "node", "the agent knows no node's code"},
	{"cmd/agent", "pki", "the agent has no cluster identity"},
	{"cmd/keybroker", "runtime/containerd", "the broker runs where the owner trusts, and runs nothing"},
	{"cmd/keybroker", "coordinator", "the broker does not depend on the operator's code"},
	{"cmd/keybroker", "node", "the broker does not depend on the operator's code"},
	{"sealed", "sealed/unseal", "sealing and peeking are for everybody, opening is not"},
	{"anomaly", "sealed/unseal", "daemons of the operator sign their anomaly log; nothing that opens messages may come with it"},
	{"scratch", "sealed", "disks know nothing of messages"},
	{"cmd/agent", "scratch", "the agent makes no disks; nor has it a key of one"},
	{"placement", "gossip", "placement is a pure function of a snapshot"},
	{"placement", "sealed", "placement sees nothing of a message"},
	{"cmd/coordinator", "network", "the coordinator changes no interface and no rule of the machine it is on"},
	{"cmd/agent", "network", "the agent has the network it is given, and no way to another"},
	{"client", "manifest/opener", "callers seal manifests, and open none"},
	{"client", "manifest/ask", "callers learn the manifest keys from the gateway, and hold their signatures against a pin"},
	{"cmd/agent", "tracing", "the agent talks to its node alone, and tells nobody of what it opens"},
	{"client", "coordinator", "callers know the gateway by its HTTP interface alone"},
	{"client", "node", "callers know the gateway by its HTTP interface alone"},
	{"client", "keybroker", "callers know the broker by its HTTP interface alone"},
}

// may lists the packages of this module that each package may import itself.
// A package that is not listed, such as a command, may import any.
var may = map[string]string{
	"api":                 "",
	"cgroups":             "api",
	"sealed":              "api",
	"sealed/unseal":       "api sealed",
	"anomaly":             "api sealed",
	"anomaly/anomalytest": "anomaly",
	"anomaly/own":         "anomaly api",
	"store/storetest":     "",
	"attest":              "api sealed",
	"monitor":             "anomaly api cgroups sealed",
	"reqauth":             "api sealed",
	"placement":           "api",
	"scaling":             "api",
	"tracing":             "api",
	"gossip":              "api",
	"nbio":                "",
	"samehost":            "nbio",
	"relay":               "api nbio upstream",
	"gate":                "api relay sealed",
	"pki":                 "api",
	"manifest":            "api sealed",
	"manifest/ask":        "api manifest sealed",
	"manifest/opener":     "api manifest manifest/ask sealed sealed/unseal",
	"daemon/harden":       "",
	"store":               "api",
	"registry":            "api nbio",
	"backup":              "anomaly/own api enrol store",
	"replica":             "api gate registry",
	"queue":               "api",
	"blob":                "api",
	"schedule":            "api",
	"network":             "api",
	"image":               "api sealed",
	"daemon":              "api nbio",
	"stack":               "api manifest sealed image",
	"scratch":             "",
	"runtime":             "api",
	"runtime/containerd":  "api cgroups runtime runtime/containerd/daemon",
	"node":                "anomaly api attest cgroups gate gossip monitor node/keepalive relay runtime sealed tracing",
	"node/keepalive":      "",
	"coordinator":         "anomaly api gate gossip manifest manifest/ask nbio placement queue relay reqauth scaling schedule sealed store tracing",
	"keybroker":           "api attest reqauth sealed sealed/unseal",
	"proxy":               "api client gate manifest relay tracing",
	"templates":           "api",
	"sbom":                "api",
	"client":              "api attest image manifest reqauth schedule sealed sealed/unseal stack upstream",
	"upstream":            "nbio sealed",
	"enrol":               "api gossip pki store",
	"shim":                "cgroups",

	"coordinator/openfaas": "api",
}

// agentMay is what the agent's packages import of ours, below agent itself.
const agentMay = "api nbio sealed sealed/unseal upstream"

type pkg struct {
	ImportPath string
	Imports    []string
	Deps       []string
}

func list(t *testing.T) map[string]pkg {
	t.Helper()
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports,Deps", module+"...").Output()
	if err != nil {
		var e *exec.ExitError
		if errors.As(err, &e) {
			t.Fatalf("go list: %v\n%s", err, e.Stderr)
		}
		t.Fatal(err)
	}
	all := map[string]pkg{}
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all[strings.TrimPrefix(p.ImportPath, module)] = p
	}
}

func TestForbiddenPackagesAreNotLinked(t *testing.T) {
	all := list(t)
	for _, n := range never {
		p, ok := all[n.from]
		if !ok {
			t.Errorf("%s does not exist; mend the table", n.from)
			continue
		}
		if _, ok := all[n.what]; !ok {
			t.Errorf("%s does not exist; mend the table", n.what)
		}
		for _, d := range p.Deps {
			if d == module+n.what {
				t.Errorf("%s links %s: %s", n.from, n.what, n.why)
			}
		}
	}
}

func TestPackagesImportOnlyWhatTheArchitectureAllows(t *testing.T) {
	all := list(t)
	names := make([]string, 0, len(may))
	for name := range may {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		p, ok := all[name]
		if !ok {
			t.Errorf("%s does not exist; mend the table", name)
			continue
		}
		check(t, name, p, may[name])
	}
	for name, p := range all {
		if name == "agent" || strings.HasPrefix(name, "agent/") {
			check(t, name, p, agentMay)
		}
	}
}

func check(t *testing.T, name string, p pkg, allowed string) {
	t.Helper()
	ok := map[string]bool{}
	for _, a := range strings.Fields(allowed) {
		ok[a] = true
	}
	for _, i := range p.Imports {
		ours, is := strings.CutPrefix(i, module)
		// internal packages belong to the tree above them; the compiler sees to that.
		if is && !ok[ours] && !strings.Contains(ours, "/internal/") && !strings.HasPrefix(ours, name+"/") && !(strings.HasPrefix(name, "agent") && strings.HasPrefix(ours, "agent")) {
			t.Errorf("%s imports %s, which docs/architecture.md does not allow", name, ours)
		}
	}
}

// TestOpeningCodeIsOnlyInFourBinaries also holds commands to it that the
// table above does not know yet.
func TestOpeningCodeIsOnlyInFourBinaries(t *testing.T) {
	all := list(t)
	may := map[string]bool{"cmd/faasd-sec": true, "cmd/keybroker": true, "cmd/agent": true, "cmd/manifest-opener": true}
	for name, p := range all {
		if !strings.HasPrefix(name, "cmd/") || may[name] {
			continue
		}
		for _, d := range p.Deps {
			if d == module+"sealed/unseal" {
				t.Errorf("%s links sealed/unseal", name)
			}
		}
	}
}
