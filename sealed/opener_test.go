package sealed_test

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"testing"
	"time"
)

// TestPythonOpener runs the opener in testdata/opener over the published vectors. It was written from
// docs/envelope.md alone and shares no code with this package, so it fails when the vectors and the
// document part, whatever the Go code does.
func TestPythonOpener(t *testing.T) {
	runPython(t, "opener.py", "vectors.json")
}

// TestPythonReadsTheTrafficStatement has the reader beside it read the published statement.
func TestPythonReadsTheTrafficStatement(t *testing.T) {
	runPython(t, "traffic.py", "traffic.json")
}

func runPython(t *testing.T, script, vectors string) {
	t.Helper()
	python, err := exec.LookPath("python3")
	if err != nil {
		if os.Getenv("REQUIRE_ALL") == "1" {
			t.Fatalf("REQUIRE_ALL=1 and no python3 on the PATH; install it: %v", err)
		}
		t.Skipf("no python3 on the PATH: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	// -E and -s: nothing of the user's environment is imported; -B: no byte code is left in the tree.
	opener := exec.CommandContext(ctx, python, "-E", "-s", "-B", "testdata/opener/"+script, "testdata/"+vectors)
	out, err := opener.CombinedOutput()
	if err != nil {
		t.Fatalf("the opener disagrees with the vectors: %v\n%s", err, out)
	}
	if !bytes.HasSuffix(out, []byte(" passed, 0 failed\n")) {
		t.Fatalf("the opener did not end with its count:\n%s", out)
	}
	t.Logf("%s", out)
}
