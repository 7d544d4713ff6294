package cgroups

import (
	"os"
	"path/filepath"
	"testing"
)

// tree writes files below a new directory and returns it.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func at(t *testing.T, root, proc string) FS {
	t.Helper()
	f, err := OpenAt(root, proc)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func content(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// unified is a v2 machine with one group, /fn, whose files are as the kernel
// makes them for a group without limits.
func unified(t *testing.T) (FS, Group) {
	t.Helper()
	root := tree(t, map[string]string{
		"cgroup.controllers":        "cpuset cpu io memory hugetlb pids rdma misc\n",
		"cgroup.subtree_control":    "cpu io memory pids\n",
		"fn/cgroup.procs":           "",
		"fn/cgroup.events":          "populated 1\nfrozen 0\n",
		"fn/cpu.max":                "max 100000\n",
		"fn/cpu.weight":             "100\n",
		"fn/cpu.stat":               "usage_usec 2500000\nuser_usec 2000000\nsystem_usec 500000\nnr_periods 10\nnr_throttled 3\nthrottled_usec 70000\n",
		"fn/memory.max":             "max\n",
		"fn/memory.swap.max":        "max\n",
		"fn/memory.current":         "4096000\n",
		"fn/memory.peak":            "8192000\n",
		"fn/memory.events":          "low 0\nhigh 0\nmax 12\noom 2\noom_kill 1\noom_group_kill 0\n",
		"fn/pids.max":               "max\n",
		"fn/pids.current":           "5\n",
		"fn/pids.events":            "max 4\n",
		"fn/io.max":                 "",
		"fn/memory.pressure":        "some avg10=1.25 avg60=0.50 avg300=0.00 total=1234\nfull avg10=0.75 avg60=0.00 avg300=0.00 total=567\n",
		"fn/cgroup.freeze":          "0\n",
		"fn/cgroup.subtree_control": "",
	})
	f := at(t, root, tree(t, map[string]string{"swaps": "Filename Type Size Used Priority\n"}))
	return f, f.Group("/fn")
}

// legacy is a v1 machine with one group, /fn, and its controllers mounted in
// pairs as distributions do.
func legacy(t *testing.T) (FS, Group) {
	t.Helper()
	files := map[string]string{
		"cpu,cpuacct/fn/cpu.shares":             "1024\n",
		"cpu,cpuacct/fn/cpu.cfs_period_us":      "100000\n",
		"cpu,cpuacct/fn/cpu.cfs_quota_us":       "-1\n",
		"cpu,cpuacct/fn/cpu.stat":               "nr_periods 10\nnr_throttled 3\nthrottled_time 70000000\n",
		"cpu,cpuacct/fn/cpuacct.usage":          "2500000000\n",
		"memory/fn/memory.limit_in_bytes":       "9223372036854771712\n",
		"memory/fn/memory.memsw.limit_in_bytes": "9223372036854771712\n",
		"memory/fn/memory.swappiness":           "60\n",
		"memory/fn/memory.usage_in_bytes":       "4096000\n",
		"memory/fn/memory.max_usage_in_bytes":   "8192000\n",
		"memory/fn/memory.oom_control":          "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n",
		"pids/fn/pids.max":                      "max\n",
		"pids/fn/pids.current":                  "5\n",
		"pids/fn/pids.events":                   "max 4\n",
		"blkio/fn/" + v1Read:                    "",
		"blkio/fn/" + v1Write:                   "",
		"freezer/fn/freezer.state":              "THAWED\n",
	}
	for _, c := range []string{"cpu,cpuacct", "memory", "pids", "blkio", "freezer", "systemd"} {
		files[c+"/cgroup.procs"] = ""
		files[c+"/fn/cgroup.procs"] = ""
	}
	f := at(t, tree(t, files), tree(t, map[string]string{
		"swaps":     "Filename Type Size Used Priority\n",
		"42/cgroup": "5:memory:/fn\n3:pids:/fn/deeper\n2:cpu,cpuacct:/\n1:name=systemd:/x\n",
	}))
	return f, f.Group("/fn")
}
