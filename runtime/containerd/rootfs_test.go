package containerd

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/runtime"
	"github.com/faasd-sec/faasd-sec/runtime/runtimetest"
)

// program is the test agent as a layer, at /bin/fn.
func (b *bench) program(t testing.TB) []runtimetest.File {
	t.Helper()
	body, err := os.ReadFile(b.agent)
	if err != nil {
		t.Fatal(err)
	}
	return []runtimetest.File{{Path: "bin/fn", Body: body}}
}

// output runs /bin/fn with arguments as the function.
func output(t testing.TB, a *runtimetest.Agent, args ...string) string {
	t.Helper()
	ans, err := a.Run(false, append([]string{"/bin/fn"}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	return ans.Output
}

func TestFilesBelongToTheirOwnersInside(t *testing.T) {
	b := need(t)
	r := b.open(t)
	img := load(t, r, ocispec.ImageConfig{User: "1000:2000"}, b.program(t), []runtimetest.File{
		{Path: "srv/mine", Body: []byte("x"), UID: 1000, Mode: 0o600},
		{Path: "srv/roots", Body: []byte("x"), Mode: 0o600},
	})
	spec := b.spec(t, r, img)
	spec.Tmpfs = []runtime.Tmpfs{{Path: "/function", Bytes: 1 << 20, Exec: true}}
	s, a := b.start(t, r, spec)
	if i := s.Info(); i.UID != 1000 || i.GID != 2000 {
		t.Errorf("function's ids %d:%d, want the image's 1000:2000", i.UID, i.GID)
	}
	got := output(t, a, "ls", "/srv/mine", "/srv/roots", "/", "/tmp", "/function", "/var/openfaas/secrets", "/run/faasd-sec", "/dev/shm")
	want := `/srv/mine 100600 1000:1000
/srv/roots 100600 0:0
/ 40755 0:0
/tmp 41777 0:0
/function 40700 1000:2000
/var/openfaas/secrets 40700 1000:2000
/run/faasd-sec 40700 0:0
/dev/shm 41777 0:0
`
	if got != want {
		t.Errorf("inside:\n%swant:\n%s", got, want)
	}
	if got := output(t, a, "cat", "/srv/mine"); got != "x" {
		t.Errorf("the function reads its own file: %q", got)
	}
	if got := output(t, a, "cat", "/srv/roots"); !strings.Contains(got, "permission denied") {
		t.Errorf("the function reads root's file: %q", got)
	}
	// On the host all of it belongs to the sandbox's range.
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(r.rootfs(s.ID()), "srv/mine"), &st); err != nil {
		t.Fatal(err)
	}
	if base := s.(*Sandbox).base; st.Uid != base+1000 {
		t.Errorf("owner on the host %d, want %d", st.Uid, base+1000)
	}
}

func TestTheAgentHasWhatItNeedsAndNoMore(t *testing.T) {
	b := need(t)
	r := b.open(t)
	spec := b.spec(t, r, b.basic(t, r))
	spec.AgentEnv = []string{"A=b", "FAASD_SEC_UID=0"}
	_, a := b.start(t, r, spec)
	ans, err := a.Do(runtimetest.Command{Do: "env"})
	if err != nil {
		t.Fatal(err)
	}
	for _, kv := range []string{"A=b", "FAASD_SEC_UID=10001", "FAASD_SEC_GID=10001"} {
		if !slices.Contains(ans.Env, kv) {
			t.Errorf("environment %q lacks %s", ans.Env, kv)
		}
	}
	if slices.Contains(ans.Env, "FAASD_SEC_UID=0") {
		t.Error("the node's own idea of the function's user got through")
	}
	status, err := a.Run(true, "/bin/fn", "cat", "/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	// KILL 5, SETGID 6, SETUID 7, SETPCAP 8
	for _, line := range []string{"CapBnd:\t00000000000001e0", "CapPrm:\t00000000000001e0", "CapInh:\t0000000000000000", "CapAmb:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"} {
		if !strings.Contains(status.Output, line+"\n") {
			t.Errorf("root's status lacks %q:\n%s", line, status.Output)
		}
	}
	fn := output(t, a, "cat", "/proc/self/status")
	for _, line := range []string{"CapPrm:\t0000000000000000", "CapEff:\t0000000000000000"} {
		if !strings.Contains(fn, line+"\n") {
			t.Errorf("the function's status lacks %q:\n%s", line, fn)
		}
	}
	limits := output(t, a, "cat", "/proc/self/limits")
	for _, name := range []string{"Max core file size", "Max open files", "Max locked memory"} {
		if !strings.Contains(limits, name) {
			t.Errorf("no %s in %s", name, limits)
		}
	}
	for line := range strings.Lines(limits) {
		if strings.HasPrefix(line, "Max core file size") && strings.Fields(line)[4] != "0" {
			t.Errorf("core files: %s", line)
		}
	}
	if hosts := output(t, a, "cat", "/etc/hosts"); !strings.Contains(hosts, "127.0.0.1 localhost") {
		t.Errorf("/etc/hosts: %q", hosts)
	}
}

func TestCodeRunsOnlyFromWhereItWasAskedFor(t *testing.T) {
	b := need(t)
	r := b.open(t)
	spec := b.spec(t, r, b.basic(t, r))
	spec.Resources.Tmp = 8 << 20
	spec.Tmpfs = []runtime.Tmpfs{{Path: "/function", Bytes: 8 << 20, Exec: true}, {Path: "/data", Bytes: 8 << 20}}
	_, a := b.start(t, r, spec)
	for dir, want := range map[string]string{"/function": "ok", "/data": "permission denied", "/tmp": "permission denied"} {
		if got := output(t, a, "script", dir+"/x"); !strings.Contains(got, want) {
			t.Errorf("a program in %s: %q, want %q", dir, got, want)
		}
	}
	for path, want := range map[string]string{"/function/big": "no space", "/data/big": "no space", "/tmp/big": "no space", "/big": "read-only"} {
		if got := output(t, a, "write", "9", path); !strings.Contains(got, want) {
			t.Errorf("9 MiB to %s: %q, want %q", path, got, want)
		}
	}
}

func TestImagesOfManyLayers(t *testing.T) {
	b := need(t)
	for _, detached := range []bool{true, false} {
		r := b.open(t)
		if detached && !r.compose.detached {
			t.Log("this kernel composes attached layers only")
		}
		r.compose.detached = r.compose.detached && detached
		for _, n := range []int{1, 2, 100} {
			layers := [][]runtimetest.File{b.program(t)}
			for i := 1; i < n; i++ {
				layers = append(layers, []runtimetest.File{
					{Path: "layer/top", Body: fmt.Appendf(nil, "%d", i), Mode: 0o644},
					{Path: fmt.Sprintf("layer/%d", i), Body: []byte("x"), Mode: 0o644},
				})
			}
			s, a := b.start(t, r, b.spec(t, r, load(t, r, ocispec.ImageConfig{}, layers...)))
			if n > 1 {
				if got := output(t, a, "cat", "/layer/top"); got != fmt.Sprint(n-1) {
					t.Errorf("detached=%v, %d layers: the top one says %q", detached, n, got)
				}
				if got := output(t, a, "cat", "/layer/1"); got != "x" {
					t.Errorf("detached=%v, %d layers: the lowest one says %q", detached, n, got)
				}
			}
			if err := s.Remove(t.Context(), 0); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestMountPointsBehindLinksAreRefused(t *testing.T) {
	b := need(t)
	r := b.open(t)
	img := load(t, r, ocispec.ImageConfig{}, b.program(t), []runtimetest.File{
		{Path: "usr/lib", Dir: true}, {Path: "lib", Link: "usr/lib"}, {Path: "tmp", Link: "/srv"},
	})
	spec := b.spec(t, r, img)
	spec.Tmpfs = []runtime.Tmpfs{{Path: "/lib/model", Bytes: 1 << 20}}
	if _, err := r.Create(t.Context(), spec); !errors.Is(err, &api.Error{Code: api.CodeInvalid}) {
		t.Errorf("a mount point under a link: %v, want invalid", err)
	}
	spec.Tmpfs[0].Path = "/usr/lib/model"
	_, a := b.start(t, r, spec) // and /tmp, itself a link in the image, is ours
	if got := output(t, a, "ls", "/tmp", "/lib", "/usr/lib/model"); !strings.Contains(got, "/tmp 41777") || !strings.Contains(got, "/lib 120777") || !strings.Contains(got, "/usr/lib/model 40700") {
		t.Errorf("inside: %s", got)
	}
}

func TestTheImagesUserIsFound(t *testing.T) {
	dir := t.TempDir()
	for name, body := range map[string]string{
		"passwd": "root:x:0:0::/:\napp:x:1234:1235::/:\nweb:x:33:0::/:\nbad:x:99999999:1::/:\n", "group": "root:x:0:\nstaff:x:50:app\n",
	} {
		if err := os.MkdirAll(filepath.Join(dir, "etc"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "etc", name), []byte(body), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	layers := []string{t.TempDir(), dir}
	for user, want := range map[string][2]int{
		"": {10001, 10001}, "root": {10001, 10001}, "0": {10001, 10001}, "0:50": {10001, 10001},
		"app": {1234, 1235}, "1234": {1234, 1235}, "app:staff": {1234, 50}, "app:0": {1234, 10001},
		"web": {33, 10001}, "777": {777, 777}, "777:888": {777, 888}, "65534": {65534, 65534},
	} {
		uid, gid, err := functionUser(layers, user)
		if err != nil || uid != want[0] || gid != want[1] {
			t.Errorf("USER %q: %d:%d, %v; want %v", user, uid, gid, err, want)
		}
	}
	for _, user := range []string{"nobody", "bad", "app:none", "-1", "70000", "1:70000"} {
		if uid, gid, err := functionUser(layers, user); err == nil {
			t.Errorf("USER %q: %d:%d, want an error", user, uid, gid)
		}
	}
}
