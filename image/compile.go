package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
)

// maxToolOutput bounds what of a tool's output goes into an error.
const maxToolOutput = 4000

// compile builds the main package in dir statically and without anything of
// this machine in it: no paths, no build id, no version control state.
func (b *Builder) compile(ctx context.Context, root *os.Root, dir, out string) error {
	st, err := root.Stat(dir)
	if err != nil || !st.IsDir() {
		return &api.Error{Code: api.CodeInvalid, Field: "build.go", Err: err,
			Message: fmt.Sprintf("no directory %q in the build directory", dir), Remedy: "name the directory of a Go main package"}
	}
	goCmd, err := exec.LookPath(b.Go)
	if err != nil {
		return &api.Error{Code: api.CodeInvalid, Field: "build.go", Err: err,
			Message: "the go command was not found", Remedy: "install Go and put it on PATH, or copy a program that is built already"}
	}
	cmd := exec.CommandContext(ctx, goCmd, "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w -buildid=", "-o", out, ".")
	cmd.Dir = filepath.Join(b.Dir, dir)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+b.Arch, "GOFLAGS=", "GO111MODULE=on")
	if err := run(cmd); err != nil {
		return &api.Error{Code: api.CodeInvalid, Field: "build.go", Message: err.Error(), Remedy: "make `go build` pass in " + dir}
	}
	return nil
}

// run runs a tool; the error ends with what the tool said.
func run(cmd *exec.Cmd) error {
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	// Tools have children; a cancelled build leaves none of them behind.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	err := cmd.Run()
	if err == nil {
		return nil
	}
	text := strings.TrimSpace(said.String())
	if len(text) > maxToolOutput {
		text = "…" + text[len(text)-maxToolOutput:]
	}
	if text == "" {
		return fmt.Errorf("%s: %w", filepath.Base(cmd.Path), err)
	}
	return errors.New(text)
}
