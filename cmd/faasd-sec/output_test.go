package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/faasd-sec/faasd-sec/api"
)

// full takes nothing, as a disk that is full.
type full struct{}

func (full) Write([]byte) (int, error) { return 0, errors.New("no room") }

func TestAResultThatDidNotArriveIsNoSuccess(t *testing.T) {
	var errs bytes.Buffer
	code := run(t.Context(), []string{"version"}, strings.NewReader(""), full{}, &errs, func(string) (string, bool) { return t.TempDir(), true })
	if code != exitFailed || !strings.Contains(errs.String(), "no room") {
		t.Errorf("exit %d: %s", code, errs.String())
	}
}

func TestEveryErrorOfSeveralIsTold(t *testing.T) {
	var errs bytes.Buffer
	a := &app{stderr: &errs}
	a.printError(errors.Join(fmt.Errorf("nodes: %w", api.Invalid("memory", "lend some", "it is none")), nil, errors.New("clean up: a shim runs")))
	want := "error: nodes: it is none\n  field: memory\n  fix: lend some\nerror: clean up: a shim runs\n"
	if errs.String() != want {
		t.Errorf("%q", errs.String())
	}
}

// Who gives too many arguments is told which command's help to read, with the exit
// code of what does not parse.
func TestArgumentsThatDoNotFitAreUsageErrors(t *testing.T) {
	a := &app{stdout: io.Discard, stderr: io.Discard}
	var all func(*cobra.Command)
	all = func(cmd *cobra.Command) {
		for _, c := range cmd.Commands() {
			all(c)
		}
		if cmd.Args == nil {
			return
		}
		for _, args := range [][]string{nil, {"a", "b", "c", "d"}} {
			if err := cmd.Args(cmd, args); err != nil && !errors.As(err, new(*usageError)) {
				t.Errorf("%s %v: %v", cmd.CommandPath(), args, err)
			}
		}
	}
	all(a.root())
}

func TestImportEndsWithAnInterruptWhileItWaitsForKeys(t *testing.T) {
	s := newShell(t, "http://127.0.0.1:1")
	in, keep := io.Pipe() // nothing comes, and no end
	defer keep.Close()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan int, 1)
	go func() {
		ended <- run(ctx, []string{"key", "import", "other"}, in, io.Discard, io.Discard, func(k string) (string, bool) { v, ok := s.env[k]; return v, ok })
	}()
	cancel()
	select {
	case code := <-ended:
		if code != exitFailed {
			t.Errorf("exit %d", code)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("it waits on")
	}
}

func TestWhatAGatewayRefusesNamesTheArgument(t *testing.T) {
	for name, err := range map[string]error{"unknown": api.Errorf(api.CodeNotFound, "no such function nope"), "another's": api.Errorf(api.CodeForbidden, "it belongs to another owner")} {
		var e *api.Error
		if got := aboutFunction(err); !errors.As(got, &e) || e.Field != "FUNCTION" || e.Remedy == "" || e.Message == "" || api.CodeOf(got) != api.CodeOf(err) {
			t.Errorf("%s: %v", name, got)
		}
	}
	whole := api.Invalid("name", "use another", "it is taken")
	for _, err := range []error{nil, whole, errors.New("down"), api.Errorf(api.CodeUnavailable, "away")} {
		if got := about("FUNCTION", "look", err); got != err {
			t.Errorf("%v became %v", err, got)
		}
	}
}
