// Package packaging has the Debian package, units, alerting rules and dashboard;
// its tests hold them against what the daemons really have.
package packaging

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// need ends the test where a command is missing: in CI as a failure.
func need(t *testing.T, command string) string {
	t.Helper()
	path, err := exec.LookPath(command)
	switch {
	case err == nil:
	case os.Getenv("REQUIRE_ALL") == "1":
		t.Fatalf("%s is missing: scripts/setup.sh test installs it", command)
	default:
		t.Skipf("%s is missing", command)
	}
	return path
}

func output(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir = ".."
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// registered are the names of all metrics that the tree's source has.
func registered(t *testing.T) map[string]bool {
	t.Helper()
	names := map[string]bool{}
	quoted := regexp.MustCompile(`"(faasd_sec_[a-z_]+)"`)
	joined := regexp.MustCompile(`"(faasd_sec_node_(?:reserved|capacity)_)"`)
	err := filepath.WalkDir("..", func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, m := range quoted.FindAllSubmatch(b, -1) {
			names[string(m[1])] = true
		}
		for _, m := range joined.FindAllSubmatch(b, -1) {
			for _, resource := range []string{"cpu_millicores", "memory_bytes"} {
				names[string(m[1])+resource] = true
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func checkMetrics(t *testing.T, text string) {
	t.Helper()
	known := registered(t)
	for _, name := range regexp.MustCompile(`faasd_sec_[a-z_]+`).FindAllString(text, -1) {
		base := name
		for _, suffix := range []string{"_bucket", "_sum", "_count"} {
			if b := strings.TrimSuffix(name, suffix); known[b] {
				base = b
			}
		}
		if !known[base] {
			t.Errorf("%s is no metric of any daemon", name)
		}
	}
}

func TestAlertsAskForMetricsThatExist(t *testing.T) {
	b, err := os.ReadFile("prometheus/alerts.yml")
	if err != nil {
		t.Fatal(err)
	}
	checkMetrics(t, string(b))
	need(t, "promtool")
	output(t, "promtool", "check", "rules", "packaging/prometheus/alerts.yml")
	output(t, "promtool", "test", "rules", "packaging/testdata/schedules.yml", "packaging/testdata/waits.yml")
}

func TestDashboardAsksForMetricsThatExist(t *testing.T) {
	b, err := os.ReadFile("grafana/faasd-sec.json")
	if err != nil {
		t.Fatal(err)
	}
	var d struct {
		Panels []struct{ Targets []struct{ Expr string } }
	}
	if err := json.Unmarshal(b, &d); err != nil {
		t.Fatal(err)
	}
	exprs := 0
	for _, p := range d.Panels {
		for _, target := range p.Targets {
			checkMetrics(t, target.Expr)
			exprs++
		}
	}
	if exprs == 0 {
		t.Fatal("no panel asks for anything")
	}
}

// The package is built, unpacked, and every program in it runs; the units in it
// pass systemd's own check against it and give no flag that a daemon has not.
func TestPackage(t *testing.T) {
	need(t, "dpkg-deb")
	output(t, "make", "deb", "VERSION=1.2.3")
	root := t.TempDir()
	output(t, "dpkg-deb", "-x", "packaging/out/faasd-sec_1.2.3_amd64.deb", root)
	output(t, "dpkg-deb", "-e", "packaging/out/faasd-sec_1.2.3_amd64.deb", filepath.Join(root, "DEBIAN"))
	lib := filepath.Join(root, "usr/lib/faasd-sec")
	if got := output(t, filepath.Join(lib, "faasd-sec"), "version"); !strings.Contains(got, "1.2.3") {
		t.Errorf("version: %s", got)
	}
	for daemon, unit := range map[string]string{"coordinator": "coordinator", "keybroker": "keybroker", "manifest-opener": "manifest-opener", "node": "node"} {
		text, err := os.ReadFile(filepath.Join(root, "usr/lib/systemd/system/faasd-sec-"+unit+".service"))
		if err != nil {
			t.Fatal(err)
		}
		env, err := os.ReadFile(filepath.Join(root, "etc/faasd-sec/"+unit+".env"))
		if err != nil {
			t.Fatal(err)
		}
		page, err := exec.CommandContext(t.Context(), filepath.Join(lib, daemon), "-h").CombinedOutput()
		if err != nil && len(page) == 0 {
			t.Fatalf("%s -h: %v", daemon, err)
		}
		start := regexp.MustCompile(`(?m)^ExecStart=.*$`).FindString(string(text))
		if !strings.Contains(start, "/usr/lib/faasd-sec/"+daemon+" ") {
			t.Errorf("unit %s starts something else: %s", unit, start)
		}
		_, flags, _ := strings.Cut(start, "/usr/lib/faasd-sec/"+daemon)
		for _, line := range strings.Split(string(env), "\n") {
			if !strings.HasPrefix(line, "#") {
				flags += " " + line
			}
		}
		for _, f := range regexp.MustCompile(`[ "]--?([a-z][a-z-]+)`).FindAllStringSubmatch(flags, -1) {
			if f[1] != "u" && !strings.Contains(string(page), "  -"+f[1]) {
				t.Errorf("unit %s gives -%s, which %s does not know", unit, f[1], daemon)
			}
		}
		if _, err := os.Stat(filepath.Join(root, "usr/share/man/man8/faasd-sec-"+unit+".8.gz")); err != nil {
			t.Error(err)
		}
	}
	need(t, "systemd-analyze")
	units, err := filepath.Glob(filepath.Join(root, "usr/lib/systemd/system/*.service"))
	if err != nil || len(units) != 4 {
		t.Fatalf("%d units: %v", len(units), err)
	}
	for _, u := range units {
		// The paths in them are those of an installed package.
		b, err := os.ReadFile(u)
		if err != nil {
			t.Fatal(err)
		}
		here := filepath.Join(t.TempDir(), filepath.Base(u))
		b = []byte(strings.ReplaceAll(string(b), "/usr/lib/faasd-sec/", lib+"/"))
		if err := os.WriteFile(here, b, 0o644); err != nil {
			t.Fatal(err)
		}
		out, err := exec.CommandContext(t.Context(), "systemd-analyze", "verify", "--man=no", "--recursive-errors=no", here).CombinedOutput()
		if err != nil {
			t.Errorf("%s: %v\n%s", filepath.Base(u), err, out)
		}
	}
	for _, script := range []string{"postinst", "prerm", "postrm"} {
		output(t, "sh", "-n", filepath.Join(root, "DEBIAN", script))
	}
	output(t, "sh", "-n", "packaging/install.sh")
}
