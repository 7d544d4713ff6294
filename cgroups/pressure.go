package cgroups

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Pressure says how much of the time tasks were held up for want of a
// resource, by the kernel's pressure stall information
// (Documentation/accounting/psi.rst).
type Pressure struct {
	SomeAvg10 float64       // percent of the last 10 s in which at least one task waited
	FullAvg10 float64       // percent in which all did; 0 for the machine's CPU
	SomeTotal time.Duration // in all
	FullTotal time.Duration
}

// Pressure reads a group's pressure for "cpu", "memory" or "io". ok is false
// where the kernel keeps none: on v1, or with PSI off.
func (g Group) Pressure(resource string) (p Pressure, ok bool, err error) {
	if g.fs.mode != V2 {
		return Pressure{}, false, nil
	}
	return readPressure(filepath.Join(g.fs.root, g.path, resource+".pressure"))
}

// Pressure reads the machine's pressure for "cpu", "memory" or "io".
func (f FS) Pressure(resource string) (p Pressure, ok bool, err error) {
	return readPressure(filepath.Join(f.proc, "pressure", resource))
}

func readPressure(path string) (Pressure, bool, error) {
	b, err := os.ReadFile(path)
	// EOPNOTSUPP is how a kernel with PSI compiled in but turned off answers.
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.EOPNOTSUPP) {
		return Pressure{}, false, nil
	}
	if err != nil {
		return Pressure{}, false, fmt.Errorf("read pressure: %w", err)
	}
	var p Pressure
	for line := range strings.Lines(string(b)) {
		kind, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		avg, total, err := pressureLine(rest)
		if err != nil {
			return Pressure{}, false, fmt.Errorf("%s: %w", path, err)
		}
		switch kind {
		case "some":
			p.SomeAvg10, p.SomeTotal = avg, total
		case "full":
			p.FullAvg10, p.FullTotal = avg, total
		}
	}
	return p, true, nil
}

// pressureLine reads "avg10=0.00 avg60=0.00 avg300=0.00 total=0".
func pressureLine(s string) (avg10 float64, total time.Duration, err error) {
	seen := 0
	for kv := range strings.FieldsSeq(s) {
		k, v, _ := strings.Cut(kv, "=")
		switch k {
		case "avg10":
			if avg10, err = strconv.ParseFloat(v, 64); err != nil {
				return 0, 0, err
			}
			seen++
		case "total":
			us, err := strconv.ParseInt(v, 10, 64)
			if err != nil {
				return 0, 0, err
			}
			total = time.Duration(us) * time.Microsecond
			seen++
		}
	}
	if seen != 2 {
		return 0, 0, fmt.Errorf("%q has no avg10 and total", s)
	}
	return avg10, total, nil
}
