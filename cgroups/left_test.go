package cgroups

import (
	"os"
	"path/filepath"
	"testing"
)

func TestLeftIsWhatTheMachineHasFree(t *testing.T) {
	f := FS{proc: "/proc"}
	m, err := f.Machine()
	if err != nil {
		t.Fatal(err)
	}
	l, err := f.Left()
	if err != nil {
		t.Fatal(err)
	}
	// Others work on this machine meanwhile.
	if d := l.Memory - m.Free.Memory; d > m.Capacity.Memory/4 || -d > m.Capacity.Memory/4 || l.Memory <= 0 || l.Memory > m.Capacity.Memory {
		t.Errorf("%d bytes, by Machine %d", l.Memory, m.Free.Memory)
	}
	if d := l.PIDs - m.Free.PIDs; d > 5000 || -d > 5000 || l.PIDs <= 0 {
		t.Errorf("%d pids, by Machine %d", l.PIDs, m.Free.PIDs)
	}
	for _, bad := range []string{"", "MemTotal: 5 kB\n", "MemTotal: 5 kB\nMemAvailable: x kB\n"} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "meminfo"), []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if l, err := (FS{proc: dir}).Left(); err == nil {
			t.Errorf("%q was read as %+v", bad, l)
		}
	}
}

func BenchmarkLeft(b *testing.B) {
	f := FS{proc: "/proc"}
	for b.Loop() {
		if _, err := f.Left(); err != nil {
			b.Fatal(err)
		}
	}
}
