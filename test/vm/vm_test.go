package vm

import (
	"bufio"
	"bytes"
	"context"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

const module = "github.com/faasd-sec/faasd-sec/"

// kernelDir is where scripts/vm-kernel.sh unpacks the distribution's kernels.
const kernelDir = "/var/cache/faasd-sec/kernels"

// clocks tell the kernel what it would measure otherwise: on a host that is busy it
// measures nonsense, or for ever.
const clocks = "tsc_early_khz=1000000 lpj=4000000"

// job is one program to run; the guest reads it.
type job struct {
	Name    string        `json:"name"`
	Args    []string      `json:"args"`
	Timeout time.Duration `json:"timeout"`
}

func unavailable(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("REQUIRE_ALL") == "1" {
		t.Fatal(why)
	}
	t.Skip(why)
}

// kernel is one that the machine is started with.
type kernel struct {
	suite   string   // of Debian, and its directory
	modules []string // what the tests need beyond what it has built in: disks, and the algorithms that encrypt them
	jobs    []job
}

// kernels are the oldest that is served, which has no sandboxes ahead of their
// functions, and the newest.
func kernels() []kernel {
	sandboxes := func(tests string) job {
		return job{Name: "sandboxes", Args: []string{"/tests/containerd", "-test.v", "-test.timeout=19m", "-test.run=" + tests}, Timeout: 20 * time.Minute}
	}
	shim := []job{
		{Name: "shim", Args: []string{"/tests/shim", "-test.v", "-test.timeout=5m"}, Timeout: 6 * time.Minute},
		{Name: "container", Args: []string{"/tests/container", "-test.v", "-test.timeout=5m"}, Timeout: 6 * time.Minute},
	}
	cluster := job{Name: "cluster", Args: []string{"/tests/e2e", "-test.v", "-test.timeout=6m", "-test.run=" + clusterTests}, Timeout: 7 * time.Minute}
	return []kernel{
		{suite: "bookworm", modules: []string{"overlay", "brd", "loop", "ecb", "xts", "cts", "sha512_generic"}, jobs: append(shim,
			job{Name: "cgroups", Args: []string{"/tests/cgroups", "-test.v", "-test.timeout=5m"}, Timeout: 6 * time.Minute},
			job{Name: "scratch", Args: []string{"/tests/scratch", "-test.v", "-test.timeout=4m"}, Timeout: 5 * time.Minute},
			// There is no program here that makes the interfaces which it watches.
			job{Name: "monitor", Args: []string{"/tests/monitor", "-test.v", "-test.timeout=4m", "-test.skip=^TestTrafficOf"}, Timeout: 5 * time.Minute},
			sandboxes(sandboxTests), cluster)},
		{suite: "trixie-backports", modules: []string{"overlay", "brd", "loop"}, jobs: append(shim, sandboxes(newSandboxTests), cluster)},
	}
}

// sandboxTests are those that a hierarchy, or the age of a kernel, can change the
// outcome of: with our own shim, which is the default, and the first of them with
// runc's too, which goes its own ways on v2.
const sandboxTests = "^(TestContainerdKeepsTheContract|TestNothingEscapesFromASandbox|TestLimitsAreInTheKernelWhenCreateReturns|TestALimitTheKernelRefusesEndsTheStart" +
	"|TestCPU.*)$/^runc$" +
	"|^(TestBoundSandboxesKeepTheContract|TestNothingEscapesFromABoundSandbox|TestNothingEscapesFromASandbox|TestALimitTheKernelRefusesEndsTheStart" +
	"|TestTheWritableLayerHasItsSizeAndNoMore|TestNothingEscapesFromAWritableRoot|TestScratch.*|TestIOLimitsHoldForScratch|TestCPU.*)$/^own$" +
	"|^(TestLimitsAreInTheKernelWhenBindReturns|TestTheWorkshopHoldsNothing|TestBlanksTakeImagesOfManyLayersOnOlderKernels)$"

// newSandboxTests are those of them that say the most.
const newSandboxTests = "^(TestContainerdKeepsTheContract|TestBoundSandboxesKeepTheContract|TestNothingEscapesFromABoundSandbox|TestCPUQuotaHolds)$/^own$" +
	"|^TestLimitsAreInTheKernelWhenBindReturns$"

// clusterTests are a whole cluster's: every daemon of it, a sealed and a plain function.
const clusterTests = "^(TestSealedFunctionAnswersItsCaller|TestPlainFunctionsPassRequestsAsTheyAre)$"

// The tests of cgroups, of scratch, of the monitor, of both shims and of sandboxes
// pass on machines whose one hierarchy is v2, and a whole cluster serves there.
// FAASD_SEC_VM_JOBS names the jobs to run, FAASD_SEC_VM_KERNELS the suites whose
// kernels to use, separated by commas, where not all are wanted.
func TestOnPureCgroupV2(t *testing.T) {
	qemu, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		unavailable(t, "no qemu-system-x86_64: run scripts/setup.sh test")
	}
	for _, k := range kernels() {
		if !wanted("FAASD_SEC_VM_KERNELS", k.suite) {
			continue
		}
		t.Run(k.suite, func(t *testing.T) {
			images, err := filepath.Glob(filepath.Join(kernelDir, k.suite, "boot/vmlinuz-*"))
			if err != nil || len(images) != 1 {
				unavailable(t, "no kernel in "+filepath.Join(kernelDir, k.suite)+": run scripts/setup.sh test")
			}
			jobs := slices.DeleteFunc(k.jobs, func(j job) bool { return !wanted("FAASD_SEC_VM_JOBS", j.Name) })
			dir := t.TempDir()
			initramfs := filepath.Join(dir, "initramfs")
			if err := compose(t.Context(), dir, initramfs, images[0], k.modules, jobs); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 22*time.Minute)
			defer cancel()
			ended := boot(ctx, t, qemu, images[0], initramfs)
			for _, j := range jobs {
				if ended[j.Name] != "exit 0" {
					t.Errorf("%s in the virtual machine: %q, want exit 0", j.Name, ended[j.Name])
				}
			}
		})
	}
}

// wanted says whether a list in the environment has name, or there is none.
func wanted(variable, name string) bool {
	only := os.Getenv(variable)
	return only == "" || slices.Contains(strings.Split(only, ","), name)
}

// boot runs the machine to its end and gives how each job ended.
func boot(ctx context.Context, t *testing.T, qemu, image, initramfs string) map[string]string {
	// Emulated always: it takes seconds, and nested virtualisation may hang.
	cmd := exec.CommandContext(ctx, qemu, "-M", "microvm,x-option-roms=off,rtc=on,pit=off", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "3072",
		"-nodefaults", "-no-user-config", "-nographic", "-no-reboot", "-serial", "stdio", "-kernel", image, "-initrd", initramfs,
		"-append", "console=ttyS0 reboot=t panic=-1 quiet rdinit=/init cgroup_no_v1=all secretmem.enable=1 "+clocks)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := map[string]string{}
	var console []string
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := strings.TrimRight(lines.Text(), "\r")
		console = append(console, line)
		if rest, ok := strings.CutPrefix(line, "VM-END "); ok {
			name, status, _ := strings.Cut(rest, " ")
			ended[name] = status
		}
		if strings.HasPrefix(strings.TrimLeft(line, " "), "--- ") {
			t.Log(line)
		}
	}
	err = errors.Join(lines.Err(), cmd.Wait(), ctx.Err())
	if err != nil {
		t.Errorf("virtual machine: %v\n%s", err, stderr.Bytes())
	}
	if t.Failed() || !succeeded(ended) {
		t.Logf("the end of its console:\n%s", strings.Join(console[max(0, len(console)-150):], "\n"))
	}
	return ended
}

func succeeded(ended map[string]string) bool {
	for _, status := range ended {
		if status != "exit 0" {
			return false
		}
	}
	return len(ended) > 0
}

// compose builds what is to be tested and puts it, with containerd and what that
// needs, into an initramfs.
func compose(ctx context.Context, dir, path, image string, modules []string, jobs []job) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	w := bufio.NewWriterSize(f, 1<<20)
	a := newArchive(w)
	for _, p := range []struct{ name, pkg, verb string }{
		{"init", "test/vm/guest", "build"},
		{"tests/cgroups", "cgroups", "test"},
		{"tests/containerd", "runtime/containerd", "test"},
		{"tests/shim", "shim", "test"},
		{"tests/container", "shim/container", "test"},
		{"tests/scratch", "scratch", "test"},
		{"tests/monitor", "monitor", "test"},
		{"tests/e2e", "test/e2e", "test"},
		{"built/coordinator", "cmd/coordinator", "build"},
		{"built/keybroker", "cmd/keybroker", "build"},
		{"built/manifest-opener", "cmd/manifest-opener", "build"},
		{"built/node", "cmd/node", "build"},
		{"built/agent", "cmd/agent", "build"},
		{"built/faasd-sec", "cmd/faasd-sec", "build"},
		{"built/function", "test/function", "build"},
		{"built/testagent", "runtime/runtimetest/testagent", "build"},
		{"built/escapeprobe", "runtime/escapeprobe", "build"},
		{"built/inside", "shim/shimtest/inside", "build"},
		{"built/containerd-shim-faasdsec-v1", "cmd/containerd-shim-faasdsec-v1", "build"},
		{"built/containerd-shim-faasdsec-server", "cmd/containerd-shim-faasdsec-server", "build"},
	} {
		to := filepath.Join(dir, filepath.Base(p.name))
		args := []string{"build"}
		if p.verb == "test" {
			args = []string{"test", "-c"}
		}
		cmd := exec.CommandContext(ctx, "go", append(args, "-trimpath", "-ldflags=-s -w", "-o", to, module+p.pkg)...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if p.pkg == "cmd/manifest-opener" { // as the Makefile builds it
			cmd.Env = append(cmd.Env, "GOEXPERIMENT=runtimesecret")
		}
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("build %s: %w\n%s", p.pkg, err, out)
		}
		if err := a.file(p.name, to); err != nil {
			return err
		}
		if err := os.Remove(to); err != nil {
			return err
		}
	}
	if err := a.link("usr/local/bin/go", "/init"); err != nil {
		return err
	}
	if err := programs(a, "containerd", "containerd-shim-runc-v2", "runc", "mke2fs"); err != nil {
		return err
	}
	if err := kernelModules(a, image, modules); err != nil {
		return err
	}
	b, err := json.Marshal(jobs)
	if err != nil {
		return err
	}
	for name, content := range map[string]string{"tests.json": string(b), "etc/passwd": "root:x:0:0:root:/root:/bin/sh\n",
		"etc/group": "root:x:0:\n", "root/.keep": ""} {
		if err := a.text(name, content); err != nil {
			return err
		}
	}
	return errors.Join(a.close(), w.Flush(), f.Close())
}

// programs adds programs of this machine with the libraries that they load.
func programs(a *archive, names ...string) error {
	var have []string
	for _, name := range names {
		path, err := exec.LookPath(name)
		if err != nil {
			return err
		}
		if err := a.file("usr/bin/"+name, path); err != nil {
			return err
		}
		if err := libraries(a, path, &have); err != nil {
			return err
		}
	}
	return nil
}

// libraries adds what the program or library at path is linked with.
func libraries(a *archive, path string, have *[]string) error {
	f, err := elf.Open(path)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	defer f.Close()
	needed, err := f.ImportedLibraries()
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			interp := make([]byte, p.Filesz)
			if _, err := p.ReadAt(interp, 0); err != nil {
				return err
			}
			needed = append(needed, string(bytes.TrimRight(interp, "\x00")))
		}
	}
	for _, lib := range needed {
		if slices.Contains(*have, lib) {
			continue
		}
		*have = append(*have, lib)
		from := lib
		if !filepath.IsAbs(lib) {
			dirs := []string{"/lib/x86_64-linux-gnu/", "/usr/lib/x86_64-linux-gnu/", "/lib64/", "/usr/lib/"}
			i := slices.IndexFunc(dirs, func(d string) bool { _, err := os.Stat(d + lib); return err == nil })
			if i < 0 {
				return fmt.Errorf("%s needs %s, which is nowhere", path, lib)
			}
			from = dirs[i] + lib
		}
		if err := errors.Join(a.file(strings.TrimPrefix(from, "/"), from), libraries(a, from, have)); err != nil {
			return err
		}
	}
	return nil
}

// kernelModules adds modules with those they depend on, and the order in which
// to load them.
func kernelModules(a *archive, image string, modules []string) error {
	release := strings.TrimPrefix(filepath.Base(image), "vmlinuz-")
	root := filepath.Join(filepath.Dir(filepath.Dir(image)), "lib/modules", release, "kernel")
	found := map[string]string{}
	err := filepath.WalkDir(root, func(path string, _ os.DirEntry, err error) error {
		if name, ok := strings.CutSuffix(filepath.Base(path), ".ko"); ok {
			found[strings.ReplaceAll(name, "-", "_")] = path
		}
		return err
	})
	if err != nil {
		return err
	}
	var order []string
	var add func(name string) error
	add = func(name string) error {
		if slices.Contains(order, name) {
			return nil
		}
		path, ok := found[name]
		if !ok {
			return fmt.Errorf("the kernel %s has no module %s", release, name)
		}
		deps, err := dependencies(path)
		if err != nil {
			return err
		}
		for _, d := range deps {
			if err := add(d); err != nil {
				return err
			}
		}
		order = append(order, name)
		return a.file("modules/"+name, path)
	}
	for _, m := range modules {
		if err := add(m); err != nil {
			return err
		}
	}
	return a.text("modules/order", strings.Join(order, "\n")+"\n")
}

// dependencies reads from a module's own section which others it needs.
func dependencies(path string) ([]string, error) {
	f, err := elf.Open(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	defer f.Close()
	s := f.Section(".modinfo")
	if s == nil {
		return nil, fmt.Errorf("%s: no .modinfo", path)
	}
	b, err := s.Data()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	for kv := range bytes.SplitSeq(b, []byte{0}) {
		if list, ok := strings.CutPrefix(string(kv), "depends="); ok && list != "" {
			return strings.Split(strings.ReplaceAll(list, "-", "_"), ","), nil
		}
	}
	return nil, nil
}
