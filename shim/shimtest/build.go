package shimtest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// programs is the variable by which Main tells the tests where it has put what
// it built.
const programs = "FAASD_SEC_TEST_PROGRAMS"

// Main is for the TestMain of packages that use this one: it builds the
// programs that the tests run, the shim's own included, and runs the tests.
func Main(m *testing.M) (code int) {
	if os.Getuid() != 0 {
		return m.Run() // nothing that needs a program can run
	}
	dir, err := os.MkdirTemp("", "fsshimbin")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() {
		if err := os.RemoveAll(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}()
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", dir,
		"github.com/faasd-sec/faasd-sec/shim/shimtest/inside",
		"github.com/faasd-sec/faasd-sec/cmd/containerd-shim-faasdsec-v1",
		"github.com/faasd-sec/faasd-sec/cmd/containerd-shim-faasdsec-server")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0") // static: there is nothing else in a container
	if out, err := cmd.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build the programs of the tests: %v\n%s", err, out)
		return 1
	}
	if err := os.Setenv(programs, dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// Shim is the program that containerd runs; the server's lies beside it.
func Shim() string { return filepath.Join(os.Getenv(programs), "containerd-shim-faasdsec-v1") }

// Program is the one that runs in containers, for those who run it outside.
func Program() string { return filepath.Join(os.Getenv(programs), "inside") }
