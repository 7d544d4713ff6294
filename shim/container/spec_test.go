package container

import (
	"encoding/json"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/faasd-sec/faasd-sec/shim/shimtest"
)

// Whatever is not served must be refused, by its name.
func TestWhatIsNotServedIsRefusedByName(t *testing.T) {
	f := &shimtest.Fixture{Root: "/r", Shared: "/s"}
	if s, err := parse(t, f.Spec("x")); err != nil {
		t.Fatal(err)
	} else if _, err := NewPlan(s); err != nil {
		t.Fatal(err)
	}
	for want, spoil := range map[string]func(*specs.Spec){
		"domainname":                               func(s *specs.Spec) { s.Domainname = "x" },
		"hooks.poststop":                           func(s *specs.Spec) { s.Hooks = &specs.Hooks{Poststop: []specs.Hook{{Path: "/x"}}} },
		"hostname":                                 func(s *specs.Spec) { s.Hostname = "" },
		"root.path":                                func(s *specs.Spec) { s.Root.Path = "rootfs" },
		"process.terminal":                         func(s *specs.Spec) { s.Process.Terminal = true },
		"process.consoleSize":                      func(s *specs.Spec) { s.Process.ConsoleSize = &specs.Box{Height: 1} },
		"process.user":                             func(s *specs.Spec) { s.Process.User.UID = 5 },
		"process.user.additionalGids":              func(s *specs.Spec) { s.Process.User.AdditionalGids = []uint32{5} },
		"process.user.umask":                       func(s *specs.Spec) { s.Process.User.Umask = ptr(uint32(0)) },
		"process.args":                             func(s *specs.Spec) { s.Process.Args = []string{"init"} },
		"process.cwd":                              func(s *specs.Spec) { s.Process.Cwd = "" },
		"process.noNewPrivileges":                  func(s *specs.Spec) { s.Process.NoNewPrivileges = false },
		"process.apparmorProfile":                  func(s *specs.Spec) { s.Process.ApparmorProfile = "x" },
		"process.selinuxLabel":                     func(s *specs.Spec) { s.Process.SelinuxLabel = "x" },
		"process.capabilities: \"CAP_X\"":          func(s *specs.Spec) { s.Process.Capabilities.Effective = []string{"CAP_X"} },
		"process.rlimits[0]":                       func(s *specs.Spec) { s.Process.Rlimits[0].Type = "RLIMIT_X" },
		"process.scheduler":                        func(s *specs.Spec) { s.Process.Scheduler = &specs.Scheduler{Nice: 1} },
		"process.ioPriority":                       func(s *specs.Spec) { s.Process.IOPriority = &specs.LinuxIOPriority{Priority: 1} },
		"mounts[0] (/proc): options: \"newopt\"":   func(s *specs.Spec) { s.Mounts[0].Options = append(s.Mounts[0].Options, "newopt") },
		"mounts[3] (/tmp): options: \"huge=on\"":   func(s *specs.Spec) { s.Mounts[3].Options = append(s.Mounts[3].Options, "huge=on") },
		"mounts[4] (/shared): options: \"mode=7\"": func(s *specs.Spec) { s.Mounts[4].Options = append(s.Mounts[4].Options, "mode=7") },
		"type \"sysfs\"":                           func(s *specs.Spec) { s.Mounts = append(s.Mounts, specs.Mount{Destination: "/sys", Type: "sysfs"}) },
		"destination":                              func(s *specs.Spec) { s.Mounts[3].Destination = "/tmp/../etc" },
		"/proc is missing":                         func(s *specs.Spec) { s.Mounts = s.Mounts[1:] },
		"linux.namespaces":                         func(s *specs.Spec) { s.Linux.Namespaces = s.Linux.Namespaces[1:] },
		"namespaces: this":                         func(s *specs.Spec) { s.Linux.Namespaces[2].Path = "/var/run/netns/x" },
		"\"time\"": func(s *specs.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: "time"})
		},
		"linux.uidMappings":                  func(s *specs.Spec) { s.Linux.UIDMappings[0].HostID = 0 },
		"linux.devices":                      func(s *specs.Spec) { s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/x"}} },
		"linux.cgroupsPath":                  func(s *specs.Spec) { s.Linux.CgroupsPath = "" },
		"linux.rootfsPropagation":            func(s *specs.Spec) { s.Linux.RootfsPropagation = "shared" },
		"linux.seccomp":                      func(s *specs.Spec) { s.Linux.Seccomp = nil },
		"linux.seccomp: flags":               func(s *specs.Spec) { s.Linux.Seccomp.Flags = []specs.LinuxSeccompFlag{"SECCOMP_FILTER_FLAG_LOG"} },
		"linux.mountLabel":                   func(s *specs.Spec) { s.Linux.MountLabel = "x" },
		"linux.intelRdt":                     func(s *specs.Spec) { s.Linux.IntelRdt = &specs.LinuxIntelRdt{ClosID: "x"} },
		"linux.personality":                  func(s *specs.Spec) { s.Linux.Personality = &specs.LinuxPersonality{Domain: "LINUX32"} },
		"linux.timeOffsets":                  func(s *specs.Spec) { s.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"boottime": {Secs: 1}} },
		"linux.sysctl":                       func(s *specs.Spec) { s.Linux.Sysctl = map[string]string{"kernel.core_pattern": "x"} },
		"maskedPaths":                        func(s *specs.Spec) { s.Linux.MaskedPaths = []string{"proc/x"} },
		"linux.resources.devices":            func(s *specs.Spec) { s.Linux.Resources.Devices[0].Allow = true },
		"linux.resources.blockIO":            func(s *specs.Spec) { s.Linux.Resources.BlockIO = &specs.LinuxBlockIO{Weight: ptr(uint16(5))} },
		"linux.resources.hugepageLimits":     func(s *specs.Spec) { s.Linux.Resources.HugepageLimits = []specs.LinuxHugepageLimit{{Pagesize: "2MB"}} },
		"linux.resources.unified":            func(s *specs.Spec) { s.Linux.Resources.Unified = map[string]string{"memory.high": "1"} },
		"linux.resources.cpu.cpus":           func(s *specs.Spec) { s.Linux.Resources.CPU.Cpus = "0" },
		"linux.resources.cpu: this":          func(s *specs.Spec) { s.Linux.Resources.CPU.Period = nil },
		"linux.resources.memory.reservation": func(s *specs.Spec) { s.Linux.Resources.Memory.Reservation = ptr(int64(1)) },
		"linux.resources.memory: this":       func(s *specs.Spec) { s.Linux.Resources.Memory.Swap = ptr(int64(1 << 30)) },
		"linux.resources.pids":               func(s *specs.Spec) { s.Linux.Resources.Pids.Limit = ptr(int64(-1)) },
		"windows":                            func(s *specs.Spec) { s.Windows = &specs.Windows{IgnoreFlushesDuringBoot: true} },
		"vm.kernel.path":                     func(s *specs.Spec) { s.VM = &specs.VM{Kernel: specs.VMKernel{Path: "/k"}} },
	} {
		s := f.Spec("x")
		spoil(s)
		s, err := parse(t, s)
		if err == nil {
			var pl *Plan
			if pl, err = NewPlan(s); err == nil {
				err = dryProgram(t, pl)
			}
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q in it", err, want)
		}
	}
}

// A field that this version of the format does not have is one to refuse, too.
func TestUnknownFieldsAreRefused(t *testing.T) {
	f := &shimtest.Fixture{Root: "/r", Shared: "/s"}
	b, err := json.Marshal(f.Spec("x"))
	if err != nil {
		t.Fatal(err)
	}
	for _, spoiled := range []string{
		strings.Replace(string(b), `"linux":{`, `"linux":{"novelty":true,`, 1),
		strings.Replace(string(b), `"process":{`, `"process":{"novelty":true,`, 1),
		strings.Replace(string(b), `{`, `{"novelty":true,`, 1),
	} {
		if _, err := Parse([]byte(spoiled)); err == nil || !strings.Contains(err.Error(), "novelty") {
			t.Errorf("got %v", err)
		}
	}
}
