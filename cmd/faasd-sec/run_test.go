package main

import (
	"path/filepath"
	"strings"
	"testing"
)

// What cannot work is said before anything is built or started, and leaves nothing.
func TestRunRefusesBeforeItStarts(t *testing.T) {
	s := newShell(t, "")
	dir := t.TempDir()
	state := filepath.Join(t.TempDir(), "state")
	if code, _, errs := s.run("", "run", dir, "--listen", "0.0.0.0:80"); code != exitInvalid || !strings.Contains(errs, "listen") {
		t.Errorf("exit %d: %s", code, errs)
	}
	if code, _, errs := s.run("", "run", dir, "-f", "function.yml"); code != exitInvalid {
		t.Errorf("exit %d: %s", code, errs)
	}
	if code, _, _ := s.run("", "run", dir, "--state", state); code == 0 {
		t.Error("run without a function.yml")
	}
	s.file(filepath.Join(dir, "function.yml"), helloYML) // without what it copies
	if code, _, _ := s.run("", "run", dir, "--state", state); code == 0 {
		t.Error("run of what does not build")
	}
	left, err := filepath.Glob(state + "*")
	if err != nil || len(left) > 0 {
		t.Errorf("left: %v %v", left, err)
	}
}
