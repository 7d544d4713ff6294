package container

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
)

// deviceRule allows some use of some devices.
type deviceRule struct {
	kind         byte // 'b' or 'c'
	major, minor int  // any where negative
	access       string
}

// deviceRules are what OCI runtimes allow every container, without the network
// tunnel, for which no sandbox has a use. Everything else is denied.
func deviceRules() []deviceRule {
	const all = -1
	return []deviceRule{
		{'b', all, all, "m"}, {'c', all, all, "m"}, // making a node is no use of the device
		{'c', 1, 3, "rwm"},     // null
		{'c', 1, 5, "rwm"},     // zero
		{'c', 1, 7, "rwm"},     // full
		{'c', 1, 8, "rwm"},     // random
		{'c', 1, 9, "rwm"},     // urandom
		{'c', 5, 0, "rwm"},     // tty
		{'c', 5, 2, "rwm"},     // ptmx
		{'c', 136, all, "rwm"}, // pts
	}
}

// String is the rule as a line for v1's devices.allow.
func (r deviceRule) String() string {
	number := func(n int) string {
		if n < 0 {
			return "*"
		}
		return strconv.Itoa(n)
	}
	return fmt.Sprintf("%c %s:%s %s", r.kind, number(r.major), number(r.minor), r.access)
}

// restrictDevices denies all devices to a group of v1's devices controller, then
// allows the usual ones.
func restrictDevices(dir string) error {
	if err := os.WriteFile(filepath.Join(dir, "devices.deny"), []byte("a"), 0); err != nil {
		return fmt.Errorf("deny devices: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "devices.allow"), os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("allow devices: %w", err)
	}
	defer f.Close()
	for _, rule := range deviceRules() { // one write each: the kernel takes one rule at a time
		if _, err := f.WriteString(rule.String()); err != nil {
			return fmt.Errorf("allow device %q: %w", rule, err)
		}
	}
	return nil
}
