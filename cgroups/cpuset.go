package cgroups

import (
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/faasd-sec/faasd-sec/api"
)

// CPUs are cores of a machine by number, ascending, each once.
type CPUs []int

// maxCPU bounds a core's number, above any kernel's.
const maxCPU = 1 << 13

// ParseCPUs reads a list as the kernel writes it, "2-3,5"; "" is none.
func ParseCPUs(field, s string) (CPUs, error) {
	var out CPUs
	for part := range strings.SplitSeq(strings.TrimSpace(s), ",") {
		if part == "" && s == "" {
			return nil, nil
		}
		low, high, ranged := strings.Cut(part, "-")
		if !ranged {
			high = low
		}
		a, aerr := strconv.ParseUint(low, 10, 16)
		b, berr := strconv.ParseUint(high, 10, 16)
		if aerr != nil || berr != nil || b < a || b > maxCPU {
			return nil, api.Invalid(field, `write numbers of cores, as in "2-3,5"`, fmt.Sprintf("%q is no list of cores", s))
		}
		for n := a; n <= b; n++ {
			out = append(out, int(n))
		}
	}
	slices.Sort(out)
	if n := len(out); len(slices.Compact(out)) != n {
		return nil, api.Invalid(field, "name each core once", fmt.Sprintf("%q repeats one", s))
	}
	return out, nil
}

// String is the list in the kernel's form.
func (c CPUs) String() string {
	var b strings.Builder
	for i := 0; i < len(c); {
		j := i
		for j+1 < len(c) && c[j+1] == c[j]+1 {
			j++
		}
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(strconv.Itoa(c[i]))
		if j > i {
			b.WriteString("-" + strconv.Itoa(c[j]))
		}
		i = j + 1
	}
	return b.String()
}

// Has reports whether all of o are in c.
func (c CPUs) Has(o CPUs) bool {
	return !slices.ContainsFunc(o, func(n int) bool { return !slices.Contains(c, n) })
}

// The kernel's files of what a group really has, and so of what it may give.
func (f FS) effectiveCPUs() string {
	if f.mode == V2 {
		return "cpuset.cpus.effective"
	}
	return "cpuset.effective_cpus"
}

// Pinnable are the cores that groups can be pinned to: an error where this machine
// has no cpuset controller.
func (f FS) Pinnable() (CPUs, error) {
	root := f.Group("/")
	if f.dir(CPUSet, "/") == "" {
		return nil, fmt.Errorf("%w: controller %q is not mounted below %s", ErrNoCgroups, CPUSet, f.root)
	}
	s, err := root.read(CPUSet, f.effectiveCPUs())
	if err != nil {
		return nil, fmt.Errorf("read the machine's cores: %w", err)
	}
	return ParseCPUs(f.effectiveCPUs(), s)
}

// Pin lets the processes of g, and of the groups inside it, run on cpus alone, and
// reads back that the kernel holds it so: a *Mismatch where it does not. Whoever
// else runs on these cores stays there. g exists in the hierarchy of cpuset; on v2
// the controller is handed down to it.
func (g Group) Pin(cpus CPUs) error {
	if len(cpus) == 0 {
		return fmt.Errorf("pin %s: to no core", g.path)
	}
	if g.fs.dir(CPUSet, g.path) == "" {
		return fmt.Errorf("pin %s: controller %q is not mounted", g.path, CPUSet)
	}
	if err := g.pin(cpus.String()); err != nil {
		return fmt.Errorf("pin %s: %w", g.path, err)
	}
	return nil
}

func (g Group) pin(list string) error {
	if g.fs.mode == V2 {
		for _, above := range g.above() {
			if err := above.delegate(CPUSet); err != nil {
				return err
			}
		}
	} else { // a group without memory nodes takes no process
		mems, err := g.parent().read(CPUSet, "cpuset.mems")
		if err == nil {
			err = g.write(CPUSet, "cpuset.mems", mems)
		}
		if err == nil {
			err = g.expect(CPUSet, "cpuset.mems", mems)
		}
		if err != nil {
			return err
		}
	}
	if err := g.write(CPUSet, "cpuset.cpus", list); err != nil {
		return err
	}
	if err := g.expect(CPUSet, "cpuset.cpus", list); err != nil {
		return err
	}
	return g.expect(CPUSet, g.fs.effectiveCPUs(), list)
}

// above are the groups that g is in, the root first.
func (g Group) above() (all []Group) {
	for p := g.path; p != "/"; {
		p = path.Dir(p)
		all = append(all, g.fs.Group(p))
	}
	slices.Reverse(all)
	return all
}
