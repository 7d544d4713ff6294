// Command escapeprobe attacks the sandbox it runs in, and prints what each
// attempt came to as JSON. It is how the tests know that the hardening holds.
//
// It refuses to run anywhere else: a machine on which one of its attempts
// succeeds is not the same afterwards.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// Verdict is the outcome of one attempt.
type Verdict struct {
	Name    string `json:"name"`
	Allowed bool   `json:"allowed"`
	Detail  string `json:"detail,omitempty"`
}

// attempt tries one thing: nil means that it succeeded.
type attempt struct {
	name string
	try  func() error
}

// targets are things outside of the sandbox that the test prepared.
type targets struct {
	tcp      string // address of a listener on the host's loopback
	abstract string // name of a listener on an abstract unix socket of the host
	hostPID  int    // a process of the host
	suid     string // a set-user-id root copy of this program in the image
	device   string // a device node in the image
	writable string // a directory of a writable root that is the user's, "" where the root is read-only; device nodes and a set-user-id program were planted in it
	inet     bool   // the sandbox may use AF_INET on its own loopback
}

func main() {
	if err := inSandbox(); err != nil {
		fmt.Fprintln(os.Stderr, "escapeprobe:", err)
		os.Exit(78)
	}
	if len(os.Args) == 2 && strings.HasPrefix(os.Args[1], "-child=") {
		child(strings.TrimPrefix(os.Args[1], "-child="))
		return
	}
	var t targets
	flag.StringVar(&t.tcp, "tcp", "127.0.0.1:1", "TCP listener of the host")
	flag.StringVar(&t.abstract, "abstract", "none", "abstract unix socket of the host")
	flag.IntVar(&t.hostPID, "pid", 1<<22, "process of the host")
	flag.StringVar(&t.suid, "suid", "/bin/suid", "set-user-id program")
	flag.StringVar(&t.device, "device", "/mem", "device node in the image")
	flag.StringVar(&t.writable, "writable", "", "directory in a writable root")
	flag.BoolVar(&t.inet, "inet", false, "AF_INET is allowed")
	flag.Parse()

	var out []Verdict
	for _, list := range [][]attempt{kernelAttempts(), processAttempts(t), fileAttempts(t), baseAttempts(), replaceAttempts(), writableAttempts(t), networkAttempts(t), controls(t)} {
		for _, a := range list {
			v := Verdict{Name: a.name, Allowed: true}
			if err := a.try(); err != nil {
				v.Allowed, v.Detail = false, err.Error()
			}
			out = append(out, v)
		}
	}
	if err := json.NewEncoder(os.Stdout).Encode(out); err != nil {
		os.Exit(1)
	}
}

// inSandbox demands the marker of the tests, a user namespace whose root is
// nobody on the host, and the fixed host name of sandboxes.
func inSandbox() error {
	if os.Getenv("IN_SANDBOX") != "1" {
		return errors.New("IN_SANDBOX=1 is not set: this program attacks what it runs on and must be started by the tests of the sandbox")
	}
	b, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return fmt.Errorf("cannot tell whose root this is: %w", err)
	}
	f := strings.Fields(string(b))
	if len(f) != 3 {
		return fmt.Errorf("uid_map %q is not that of a sandbox", b)
	}
	base, err := strconv.ParseUint(f[1], 10, 32)
	if err != nil || f[0] != "0" || base < 65536 || f[2] != "65536" {
		return fmt.Errorf("uid_map %q is not that of a sandbox", b)
	}
	if name, err := os.Hostname(); err != nil || name != "sandbox" {
		return fmt.Errorf("host name %q is not that of a sandbox", name)
	}
	return nil
}
