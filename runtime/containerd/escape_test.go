package containerd

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/faasd-sec/faasd-sec/runtime/runtimetest"
)

const escapeProbe = "github.com/faasd-sec/faasd-sec/runtime/escapeprobe"

// verdict is escapeprobe's.
type verdict struct {
	Name    string
	Allowed bool
	Detail  string
}

// rootMay are the attempts that are no escape for the sandbox's root, which is
// what the agent starts as: it may see itself and become other users. All else
// is denied to it as well; a function has none of these.
func rootMay() []string {
	return []string{
		"see_agent", "signal_agent",
		"read_agent_fds", // their numbers, not what they are
		"setuid_root", "setgid_root", "set_user_id_program", "enter_run_dir", "reach_agent_socket",
	}
}

func TestNothingEscapesFromASandbox(t *testing.T) {
	b := need(t)
	r := b.open(t)
	if err := runtimetest.Build(t.Context(), escapeProbe, b.probe); err != nil {
		t.Fatal(err)
	}
	probe, err := os.ReadFile(b.probe)
	if err != nil {
		t.Fatal(err)
	}
	img := load(t, r, ocispec.ImageConfig{User: "1000"}, []runtimetest.File{
		{Path: "bin/probe", Body: probe},
		{Path: "bin/suid", Body: probe, Mode: 0o6755},
		{Path: "mem", Dev: true, Mode: 0o666},
	})
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	abstract := fmt.Sprintf("faasd-sec-escape-%d", os.Getpid())
	unix, err := net.Listen("unix", "@"+abstract)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close()

	for _, inet := range []bool{false, true} {
		spec := b.spec(t, r, img)
		spec.AllowInet = inet
		s, a := b.start(t, r, spec)
		for _, root := range []bool{false, true} {
			args := []string{
				"/bin/probe", "-tcp", tcp.Addr().String(), "-abstract", abstract,
				"-pid", fmt.Sprint(os.Getpid()), fmt.Sprintf("-inet=%v", inet),
			}
			ans, err := a.Run(root, args...)
			if err != nil {
				t.Fatal(err)
			}
			var list []verdict
			if err := json.Unmarshal([]byte(ans.Output), &list); err != nil {
				t.Fatalf("the probe printed no verdicts: %v: %s %s", err, ans.Status, ans.Output)
			}
			if len(list) < 100 {
				t.Errorf("the probe made only %d attempts", len(list))
			}
			for _, v := range list {
				may := strings.HasPrefix(v.Name, "control_") || root && slices.Contains(rootMay(), v.Name)
				if v.Allowed != may {
					t.Errorf("inet=%v root=%v %s: allowed=%v, want %v (%s)", inet, root, v.Name, v.Allowed, may, v.Detail)
				}
			}
		}
		if err := s.Remove(t.Context(), 0); err != nil {
			t.Error(err)
		}
	}
}

func TestTheProbeRefusesToRunOutside(t *testing.T) {
	b := need(t)
	if err := runtimetest.Build(t.Context(), escapeProbe, b.probe); err != nil {
		t.Fatal(err)
	}
	// Only without the marker: with it, all that stands between the attempts
	// and this machine would be the check under test.
	out, err := run78(b.probe)
	if err != nil || !strings.Contains(out, "IN_SANDBOX=1 is not set") {
		t.Errorf("the probe outside of a sandbox: %v, %s", err, out)
	}
}

// run78 runs a program that must refuse with exit code 78.
func run78(path string) (string, error) {
	cmd := exec.Command(path)
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil || cmd.ProcessState.ExitCode() != 78 {
		return string(out), fmt.Errorf("it did not refuse: %w", err)
	}
	return string(out), nil
}
