package e2e

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/faasd-sec/faasd-sec/client"
	"github.com/faasd-sec/faasd-sec/local"
	"github.com/faasd-sec/faasd-sec/manifest"
)

// TestScratchOfASealedManifest has a task write more to its disk than its manifest
// asked for, and looks for what it wrote on the host's.
func TestScratchOfASealedManifest(t *testing.T) {
	const size = 24 << 20
	c := up(t, 1, func(cfg *local.Config) { cfg.NodeArgs = append(cfg.NodeArgs, "-scratch", "256Mi") })
	fn := c.deploy(t, "writer", func(d *client.Deployment) {
		d.Bounds = &manifest.Bounds{Max: manifest.Max{ScratchBytes: 64 << 20}, Overridable: []manifest.Field{manifest.FieldScratch}}
	})
	call := func(path, query, body string) (int, string) {
		t.Helper()
		resp, b, err := c.invoke(t, fn, client.Request{Path: path, Query: query, Body: strings.NewReader(body),
			Needs: &client.Needs{Needs: manifest.Needs{ScratchBytes: size}}})
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		return resp.Status, string(b)
	}
	_, said := call("/fill", "path=/scratch/big", "")
	count, why, _ := strings.Cut(said, " ")
	if n, err := strconv.Atoi(count); err != nil || n > size || n < size/2 || !strings.Contains(why, "no space left") {
		t.Errorf("%d bytes of scratch took %q", size, said)
	}
	canaries := newCanaries(t)
	text, name := strings.Repeat(canaries.secret+"\n", 5000), canaries.header
	if status, said := call("/put", "path=/scratch/"+name, text); status != 200 {
		t.Fatalf("write: %d %s", status, said)
	}
	if status, said := call("/read", "path=/scratch/"+name, ""); status != 200 || said != text {
		t.Fatalf("read back: %d, %d bytes", status, len(said))
	}
	if got := len(c.sandboxes(t, fn)); got != 1 {
		t.Errorf("%d sandboxes", got)
	}
	// The device below is there in whole, and has neither.
	devices := volumes(t, c.State())
	if len(devices) != 1 {
		t.Fatalf("volumes %q", devices)
	}
	disk, err := os.ReadFile(devices[0])
	if err != nil || len(disk) < size {
		t.Fatalf("%d bytes of %s, %v", len(disk), devices[0], err)
	}
	for what, word := range map[string]string{"contents": canaries.secret, "a name": name} {
		if bytes.Contains(disk, []byte(word)) {
			t.Errorf("%s in clear on the disk", what)
		}
	}
	// Nothing of it is outside.
	err = filepath.WalkDir(c.State(), func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return nil // files of a running cluster come and go
		}
		if strings.Contains(path, name) {
			t.Errorf("%s is outside", path)
		}
		if b, err := os.ReadFile(path); err == nil && bytes.Contains(b, []byte(canaries.secret)) {
			t.Errorf("%s has what was written", path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.client.Remove(t.Context(), fn); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the disk goes with the sandbox", func() bool { return len(volumes(t, c.State())) == 0 })
}

// volumes are the devices of scratch space below a cluster's state directory.
func volumes(t *testing.T, state string) (devices []string) {
	t.Helper()
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil && strings.HasPrefix(string(b), state) { // or it is released meanwhile
			devices = append(devices, "/dev/"+strings.Split(f, "/")[3])
		}
	}
	return devices
}
