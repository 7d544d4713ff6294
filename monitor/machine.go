package monitor

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/cgroups"
)

// machine reads this machine's counters. The files of what is read each time stay
// open.
type machine struct {
	cfg   *Config
	stat  *os.File
	mem   *os.File
	fs    cgroups.FS
	buf   []byte
	ticks [2]int64            // busy and all, of the last look
	net   map[string][2]int64 // bytes in and out, of the last look
}

func newMachine(cfg *Config, fs cgroups.FS) (_ *machine, err error) {
	m := &machine{cfg: cfg, fs: fs, buf: make([]byte, 16<<10), net: map[string][2]int64{}}
	if m.stat, err = os.Open(filepath.Join(cfg.Proc, "stat")); err != nil {
		return nil, fmt.Errorf("watch the machine: %w", err)
	}
	if m.mem, err = os.Open(filepath.Join(cfg.Proc, "meminfo")); err != nil {
		return nil, errors.Join(fmt.Errorf("watch the machine: %w", err), m.stat.Close())
	}
	return m, nil
}

func (m *machine) close() {
	m.stat.Close()
	m.mem.Close()
}

// fast reads processors and memory into u.
func (m *machine) fast(u *api.MachineUsage) error {
	b, err := m.content(m.stat)
	if err != nil {
		return err
	}
	// cpu user nice system idle iowait irq softirq steal …, proc_stat(5)
	line, _, _ := bytes.Cut(b, []byte("\n"))
	f := bytes.Fields(line)
	if len(f) < 6 || string(f[0]) != "cpu" {
		return fmt.Errorf("%s: no line of all processors", m.stat.Name())
	}
	var all, idle int64
	for i, v := range f[1:min(len(f), 9)] {
		n, err := strconv.ParseInt(string(v), 10, 64)
		if err != nil {
			return fmt.Errorf("%s: %w", m.stat.Name(), err)
		}
		all += n
		if i == 3 || i == 4 {
			idle += n
		}
	}
	u.CPUs = goruntime.NumCPU()
	if span := all - m.ticks[1]; m.ticks[1] > 0 && span > 0 {
		u.CPU = max(0, (all-idle-m.ticks[0])*int64(u.CPUs)*1000/span)
	}
	m.ticks = [2]int64{all - idle, all}

	if b, err = m.content(m.mem); err != nil {
		return err
	}
	for line := range bytes.Lines(b) {
		name, rest, _ := bytes.Cut(line, []byte(":"))
		var into *int64
		switch string(name) {
		case "MemTotal":
			into = &u.MemoryTotal
		case "MemAvailable":
			into = &u.MemoryAvailable
		default:
			continue
		}
		n, err := strconv.ParseInt(string(bytes.TrimSuffix(bytes.TrimSpace(rest), []byte(" kB"))), 10, 64)
		if err != nil {
			return fmt.Errorf("%s: %w", m.mem.Name(), err)
		}
		*into = n << 10
	}
	return nil
}

func (m *machine) content(f *os.File) ([]byte, error) {
	n, err := f.ReadAt(m.buf, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("watch the machine: %w", err)
	}
	return m.buf[:n], nil
}

// slow reads the rest into u. What cannot be read is left out, and said.
func (m *machine) slow(u *api.MachineUsage, seconds float64) error {
	var errs []error
	var st unix.Statfs_t
	if err := unix.Statfs(m.cfg.State, &st); err != nil {
		errs = append(errs, fmt.Errorf("room on %s: %w", m.cfg.State, err))
	} else {
		u.DiskSize, u.DiskFree = int64(st.Blocks)*st.Bsize, int64(st.Bavail)*st.Bsize
	}
	pressure := map[string]api.Pressure{}
	for _, what := range []string{"cpu", "memory", "io"} {
		p, ok, err := m.fs.Pressure(what)
		if err != nil {
			errs = append(errs, err)
		} else if ok {
			pressure[what] = api.Pressure{Some: p.SomeAvg10, Full: p.FullAvg10}
		}
	}
	u.Pressure = pressure
	if b, err := os.ReadFile(filepath.Join(m.cfg.Proc, "loadavg")); err != nil {
		errs = append(errs, err)
	} else if _, err := fmt.Sscan(string(b), &u.Load1); err != nil {
		errs = append(errs, fmt.Errorf("load: %w", err))
	}
	if b, err := os.ReadFile(filepath.Join(m.cfg.Proc, "net/sockstat")); err != nil {
		errs = append(errs, err)
	} else {
		u.Sockets = 0
		for line := range strings.Lines(string(b)) {
			f := strings.Fields(line)
			if len(f) > 2 && (f[0] == "TCP:" || f[0] == "UDP:") && f[1] == "inuse" {
				n, err := strconv.ParseInt(f[2], 10, 64)
				errs = append(errs, err)
				u.Sockets += n
			}
		}
	}
	list, err := interfaces(filepath.Join(m.cfg.Proc, "net/dev"))
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	seen := make(map[string][2]int64, len(list))
	u.Interfaces = nil
	for _, i := range list {
		if i.Name == "lo" || len(u.Interfaces) == m.cfg.MaxIfaces || strings.HasPrefix(i.Name, "veth") {
			continue // the other end of a veth pair is a task's, which has its own counters
		}
		if was, ok := m.net[i.Name]; ok && seconds > 0 {
			i.In, i.Out = rate(i.InAll-was[0], seconds)*8, rate(i.OutAll-was[1], seconds)*8
		}
		seen[i.Name] = [2]int64{i.InAll, i.OutAll}
		u.Interfaces = append(u.Interfaces, i)
	}
	m.net = seen
	return errors.Join(errs...)
}

// rate is n over seconds; a counter that began anew has none.
func rate(n int64, seconds float64) int64 {
	if n <= 0 || seconds <= 0 {
		return 0
	}
	return int64(float64(n) / seconds)
}

// interfaces reads a file such as /proc/net/dev: "name: bytes packets errs drop
// fifo frame compressed multicast" of receiving, then the same of sending.
func interfaces(path string) ([]api.InterfaceUsage, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read interfaces: %w", err)
	}
	var out []api.InterfaceUsage
	for line := range strings.Lines(string(b)) {
		name, rest, ok := strings.Cut(line, ":")
		f := strings.Fields(rest)
		if !ok || len(f) < 12 {
			continue // the two lines of headings have no colon
		}
		var n [12]int64
		for i := range n {
			if n[i], err = strconv.ParseInt(f[i], 10, 64); err != nil {
				return nil, fmt.Errorf("%s: %w", path, err)
			}
		}
		out = append(out, api.InterfaceUsage{Name: strings.TrimSpace(name), InAll: n[0], OutAll: n[8], Drops: n[3] + n[11]})
	}
	return out, nil
}
