package runtimetest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
)

// Build compiles a main package of this module into a static program at path.
func Build(ctx context.Context, pkg, path string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", path, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build %s: %w\n%s", pkg, err, out)
	}
	return os.Chmod(path, 0o755)
}

// TestAgent is the package of the test agent.
const TestAgent = "github.com/faasd-sec/faasd-sec/runtime/runtimetest/testagent"
