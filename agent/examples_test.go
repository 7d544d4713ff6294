package agent

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/faasd-sec/faasd-sec/sealed"
)

const examples = "../examples/functions"

// goExample builds an example for every user to execute.
func goExample(t *testing.T, name string) string {
	t.Helper()
	needRoot(t)
	bin := filepath.Join(filepath.Dir(testBinary), "example-"+name)
	cmd := exec.Command("go", "build", "-o", bin, ".")
	cmd.Dir = filepath.Join(examples, name)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return bin
}

func TestExampleHello(t *testing.T) {
	bin := goExample(t, "hello")
	w := newWorld(t, func(w *world) { w.desc.Config.Argv = []string{bin} }).start()
	if _, body := w.get("/", ""); body != "Hello, world!\n" {
		t.Errorf("%q", body)
	}
	if _, body := w.get("/", "Ada"); body != "Hello, Ada!\n" {
		t.Errorf("%q", body)
	}
}

func TestExampleStream(t *testing.T) {
	bin := goExample(t, "stream")
	w := newWorld(t, func(w *world) { w.desc.Config.Argv = []string{bin} }).start()
	a, body := w.invoke(call{head: sealed.RequestHead{Method: "POST", Path: "/"}, flags: sealed.FlagEarlyInput,
		body: strings.NewReader(strings.Repeat("abc-", 1<<20))})
	if a.head.Status != 200 || body != strings.Repeat("ABC-", 1<<20) {
		t.Errorf("status %d, %d bytes", a.head.Status, len(body))
	}
	if _, body := w.get("/sha256", "abc"); body != "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad  3 bytes\n" {
		t.Errorf("%q", body)
	}
}

func TestExampleWordcount(t *testing.T) {
	script := filepath.Join(filepath.Dir(testBinary), "wordcount.sh")
	needRoot(t)
	b := must[[]byte](t)(os.ReadFile(filepath.Join(examples, "wordcount", "wordcount.sh")))
	if err := os.WriteFile(script, b, 0o755); err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, func(w *world) {
		w.desc.Config.Mode, w.desc.Config.Argv = sealed.ModeSerializing, []string{script}
	}).start()
	if _, body := w.get("/", "one two\ntwo three\n"); body != "{\"lines\":2,\"words\":4,\"bytes\":18}\n" {
		t.Errorf("%q", body)
	}
	top := func(q string) (answer, string) {
		return w.invoke(call{head: sealed.RequestHead{Method: "POST", Query: q}, body: strings.NewReader("One two, TWO three\n")})
	}
	if _, body := top("top=2"); body != "2 two\n1 one\n" {
		t.Errorf("%q", body)
	}
	if a, _ := top("top=x"); a.head.Status < 500 {
		t.Errorf("status %d", a.head.Status)
	}
}

func TestExampleRiskScore(t *testing.T) {
	const python = "/usr/bin/python3"
	if _, err := os.Stat(python); err != nil {
		if os.Getenv("REQUIRE_ALL") == "1" {
			t.Fatal("needs Python; run scripts/setup.sh: ", err)
		}
		t.Skip("no Python for every user on this machine: ", err)
	}
	var entries []entry
	for _, name := range []string{"score.py", "weights.json"} {
		b := must[[]byte](t)(os.ReadFile(filepath.Join(examples, "risk-score", "model", name)))
		entries = append(entries, entry{name: "code/" + name, body: string(b)})
	}
	entries = append(entries, entry{name: "env", body: envOf(t, map[string]string{"DECLINE_ABOVE": "0.45"})})
	w := bundled(t, entries, func(w *world) {
		w.desc.Config.Argv = []string{python, "-B", w.desc.Config.BundleMount + "/score.py"}
	}).start()
	a, body := w.get("/", `{"debt_to_income":0.5,"late_payments":2,"years_employed":1,"account_age_years":2,"credit_used":0.9}`)
	if a.head.Status != 200 || body != "{\"risk\": 0.9548, \"decline\": true, \"raised_by\": [\"credit_used\", \"debt_to_income\"]}\n" {
		t.Errorf("%d %q", a.head.Status, body)
	}
	if a, body := w.get("/", `{"debt_to_income":"x"}`); a.head.Status != 400 || !strings.Contains(body, "debt_to_income") {
		t.Errorf("%d %q", a.head.Status, body)
	}
}
