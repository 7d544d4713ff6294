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

	"github.com/faasd-sec/faasd-sec/runtime"
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
		"mounts_of_first_process", "processes_of_others",
	}
}

// plainMay are the attempts that are no escape in a sandbox that was created with
// its function: the agent's binary, which is public, and the directory of its
// sockets, which is closed, have their names in the function's root.
func plainMay() []string {
	return []string{"find_agent_binary", "find_run_dir", "mounts_tell_of_the_agent"}
}

// boundMay are those in one that waited for its function: its first process is
// the launcher, which belongs to the function's user. Ending it ends the function.
func boundMay() []string { return []string{"signal_agent"} }

func TestNothingEscapesFromASandbox(t *testing.T) { eachShim(t, nothingEscapesFromASandbox) }

func nothingEscapesFromASandbox(t *testing.T, b *bench) {
	r := b.open(t)
	p := b.prey(t, r)
	for _, inet := range []bool{false, true} {
		spec := b.spec(t, r, p.image)
		spec.AllowInet = inet
		s, a := b.start(t, r, spec)
		for _, root := range []bool{false, true} {
			ans, err := a.Run(root, p.args(inet)...)
			if err != nil {
				t.Fatal(err)
			}
			may := plainMay()
			if root {
				may = append(may, rootMay()...)
			}
			judge(t, fmt.Sprintf("inet=%v root=%v", inet, root), ans, may)
		}
		if err := s.Remove(t.Context(), 0); err != nil {
			t.Error(err)
		}
	}
}

func TestNothingEscapesFromABoundSandbox(t *testing.T) { eachBind(t, nothingEscapesFromABoundSandbox) }

func nothingEscapesFromABoundSandbox(t *testing.T, b *bench) {
	r := b.open(t)
	p := b.prey(t, r)
	for _, inet := range []bool{false, true} {
		spec := b.spec(t, r, p.image)
		spec.AllowInet = inet
		s, a := b.bind(t, r, spec)
		if err := a.Launch(p.args(inet)...); err != nil {
			t.Fatal(err)
		}
		ans, err := a.Wait()
		if err != nil {
			t.Fatal(err)
		}
		judge(t, fmt.Sprintf("bound inet=%v", inet), ans, boundMay())
		if err := s.Remove(t.Context(), 0); err != nil {
			t.Error(err)
		}
	}
}

// prey is what the probe is set on.
type prey struct {
	image    runtime.Image
	tcp      net.Listener
	abstract string
}

// prey prepares the image with the probe, and things outside of every sandbox.
func (b *bench) prey(t *testing.T, r *Runtime) *prey {
	t.Helper()
	if err := runtimetest.Build(t.Context(), escapeProbe, b.probe); err != nil {
		t.Fatal(err)
	}
	probe, err := os.ReadFile(b.probe)
	if err != nil {
		t.Fatal(err)
	}
	p := &prey{abstract: fmt.Sprintf("faasd-sec-escape-%d-%d", os.Getpid(), b.serial.Add(1))}
	p.image = load(t, r, ocispec.ImageConfig{User: "1000"}, []runtimetest.File{
		{Path: "bin/probe", Body: probe},
		{Path: "bin/suid", Body: probe, Mode: 0o6755},
		{Path: "mem", Dev: true, Mode: 0o666},
		{Path: "data", Dir: true, Mode: 0o777, UID: 1000},
	})
	if p.tcp, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.tcp.Close() })
	unix, err := net.Listen("unix", "@"+p.abstract)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close() })
	return p
}

func (p *prey) args(inet bool) []string {
	return []string{"/bin/probe", "-tcp", p.tcp.Addr().String(), "-abstract", p.abstract,
		"-pid", fmt.Sprint(os.Getpid()), fmt.Sprintf("-inet=%v", inet)}
}

// judge holds the probe's verdicts against what may be.
func judge(t *testing.T, where string, ans runtimetest.Answer, may []string) {
	t.Helper()
	var list []verdict
	if err := json.Unmarshal([]byte(ans.Output), &list); err != nil {
		t.Fatalf("%s: the probe printed no verdicts: %v: %s %s", where, err, ans.Status, ans.Output)
	}
	if len(list) < 110 {
		t.Errorf("%s: the probe made only %d attempts", where, len(list))
	}
	for _, v := range list {
		want := strings.HasPrefix(v.Name, "control_") || slices.Contains(may, v.Name)
		if v.Allowed != want {
			t.Errorf("%s %s: allowed=%v, want %v (%s)", where, v.Name, v.Allowed, want, v.Detail)
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
