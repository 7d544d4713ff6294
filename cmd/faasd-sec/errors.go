package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/sealed"
	"github.com/faasd-sec/faasd-sec/sealed/unseal"
)

// Exit codes; docs/cli.md lists them.
const (
	exitOK          = 0
	exitFailed      = 1 // anything else
	exitInvalid     = 2 // a flag, a file or a value
	exitNotFound    = 3
	exitRefused     = 4 // identity, pin, policy, evidence, passphrase
	exitUnavailable = 5 // busy or down: the same may succeed later
	exitDeadline    = 6
	exitNotGenuine  = 7 // a sealed message does not open, an anomaly log is broken
	exitFunction4xx = 8 // the function answered with a status from 400 to 499
	exitFunction5xx = 9 // the function answered with 500 or above, or died
)

// statusError is a function's answer that is no success.
type statusError struct {
	status int
	code   api.Code // the agent's, if the function did not answer itself
}

func (e *statusError) Error() string {
	if e.code != "" {
		return fmt.Sprintf("the function did not answer: %s (status %d)", e.code, e.status)
	}
	return fmt.Sprintf("the function answered with status %d", e.status)
}

// usageError is a command line that does not parse.
type usageError struct {
	command string
	err     error
}

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func usage(cmd *cobra.Command, err error) error {
	return &usageError{command: cmd.CommandPath(), err: err}
}

// usageArgs makes the errors of an argument check usage errors.
func usageArgs(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return usage(cmd, err)
		}
		return nil
	}
}

// exitCode is the one place where an error becomes an exit code.
func exitCode(err error) int {
	var (
		status *statusError
		use    *usageError
	)
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &status):
		if status.code == "" && status.status < 500 {
			return exitFunction4xx
		}
		return exitFunction5xx
	case errors.As(err, &use):
		return exitInvalid
	case errors.As(err, new(*brokenLogError)):
		return exitNotGenuine
	case errors.Is(err, unseal.ErrPassphrase):
		return exitRefused
	case errors.Is(err, context.Canceled):
		return exitFailed
	}
	switch code := api.CodeOf(err); code {
	case api.CodeInvalid, api.CodeTooLarge, api.CodeMethod:
		return exitInvalid
	case api.CodeNotFound, api.CodeUnknownRevision:
		return exitNotFound
	case api.CodeUnauthorized, api.CodeForbidden, api.CodeKeyRefused, api.Code(sealed.CodeSender), api.CodeReplay:
		return exitRefused
	case api.CodeBusy, api.CodeNoRoom, api.CodeDraining, api.CodeUnavailable, api.CodeNodeLost, api.CodeStartFailed, api.CodeFunctionNotReady:
		return exitUnavailable
	case api.CodeDeadline:
		return exitDeadline
	case api.CodeMediaType, api.Code(sealed.CodeFormat), api.Code(sealed.CodeSignature), api.Code(sealed.CodeCommitment),
		api.Code(sealed.CodeRecord), api.Code(sealed.CodeTruncated):
		return exitNotGenuine
	case api.CodeOOMKilled, api.CodeFunctionCrashed, api.CodeFunctionIO:
		return exitFunction5xx
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return exitDeadline
	}
	return exitFailed
}

// about completes what a gateway refuses of an argument without naming it.
func about(field, remedy string, err error) error {
	var e *api.Error
	if !errors.As(err, &e) || e.Field != "" || e.Remedy != "" {
		return err
	}
	switch e.Code {
	case api.CodeNotFound, api.CodeForbidden, api.CodeConflict, api.CodeNoRoom:
		c := *e
		c.Field, c.Remedy = field, remedy
		return &c
	}
	return err
}

// aboutFunction is about for the name of a function.
func aboutFunction(err error) error {
	if api.CodeOf(err) == api.CodeForbidden {
		return about("FUNCTION", "use the identity that deployed it (--identity)", err)
	}
	return about("FUNCTION", "faasd-sec list shows what is deployed", err)
}

// printError tells what happened, which input is at fault and what to do.
func (a *app) printError(err error) {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range joined.Unwrap() {
			a.printError(e)
		}
		return
	}
	var use *usageError
	if errors.As(err, &use) {
		a.notef("error: %s\n  fix: %s --help", one(use.Error()), use.command)
		return
	}
	var broken *brokenLogError
	if errors.As(err, &broken) {
		a.notef("error: %s\n  fix: %s", one(broken.Error()), broken.remedy())
		return
	}
	var e *api.Error
	if !errors.As(err, &e) {
		a.notef("error: %s", one(strings.ReplaceAll(err.Error(), context.Canceled.Error(), "interrupted")))
		return
	}
	message := e.Message
	if message == "" {
		message = string(e.Code)
	}
	if e.Err != nil {
		message += ": " + e.Err.Error()
	}
	around, _ := strings.CutSuffix(err.Error(), e.Error()) // what was said where it passed
	if around == err.Error() {
		around = ""
	}
	a.notef("error: %s", one(around+message))
	if e.Field != "" {
		a.notef("  field: %s", one(e.Field))
	}
	if e.Remedy != "" {
		a.notef("  fix: %s", one(e.Remedy))
	}
}

// one keeps an error on one line and its characters harmless: part of it may
// come from a server.
func one(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' {
			return ' '
		}
		if r < 0x20 || r >= 0x7f && r < 0xa0 {
			return '�'
		}
		return r
	}, s)
}
