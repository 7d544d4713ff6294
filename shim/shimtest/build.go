package shimtest

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// Build compiles the shim's programs into dir, and gives the path of the one
// that containerd runs.
func Build(t testing.TB, dir string) string {
	t.Helper()
	for _, name := range []string{"containerd-shim-faasdsec-v1", "containerd-shim-faasdsec-server"} {
		cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(dir, name), "github.com/faasd-sec/faasd-sec/cmd/"+name)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("build %s: %v\n%s", name, err, out)
		}
	}
	return filepath.Join(dir, "containerd-shim-faasdsec-v1")
}
