package containerd

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// mountsBelow lists the mount points of this mount namespace on and below dir,
// in the order of /proc/self/mountinfo: what is mounted over comes first. The
// kernel names them without the links by which dir may be reached; dir itself is
// none.
func mountsBelow(dir string) ([]string, error) {
	above, err := filepath.EvalSymlinks(filepath.Dir(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	dir = filepath.Join(above, filepath.Base(dir))
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	var out []string
	for line := range strings.Lines(string(b)) {
		fields := strings.Fields(line) // id parent major:minor root point options …
		if len(fields) < 5 {
			return nil, fmt.Errorf("list mounts: line %q has no mount point", line)
		}
		point, err := unescapeMount(fields[4])
		if err != nil {
			return nil, fmt.Errorf("list mounts: %w", err)
		}
		if point == dir || strings.HasPrefix(point, dir+"/") {
			out = append(out, point)
		}
	}
	return out, nil
}

// unescapeMount undoes the kernel's octal escapes of blanks and backslashes.
func unescapeMount(s string) (string, error) {
	if !strings.Contains(s, `\`) {
		return s, nil
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' {
			b.WriteByte(s[i])
			continue
		}
		if i+4 > len(s) {
			return "", fmt.Errorf("mount point %q ends in an escape", s)
		}
		n, err := strconv.ParseUint(s[i+1:i+4], 8, 8)
		if err != nil {
			return "", fmt.Errorf("mount point %q: %w", s, err)
		}
		b.WriteByte(byte(n))
		i += 3
	}
	return b.String(), nil
}
