package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/client"
)

type invokeFlags struct {
	data    string
	file    string
	headers []string
	method  string
	path    string
	query   string
	stream  bool
	include bool
	timeout *time.Duration
	needs   needsFlags
	later   laterFlags
}

func (a *app) invokeCommand() *cobra.Command {
	var f invokeFlags
	cmd := &cobra.Command{Use: "invoke FUNCTION", Short: "Invoke a function, sealed both ways",
		Long: "Seal a request to a function and open its reply. The body is --data, a --file, or what is piped into\n" +
			"standard input. The reply's body goes to standard output; the exit code tells success (0), a status of\n" +
			"400 to 499 (8), or of 500 and above (9).",
		Args: usageArgs(cobra.ExactArgs(1)), ValidArgsFunction: a.completeFunctions,
		RunE: func(cmd *cobra.Command, args []string) error {
			f.method = strings.ToUpper(f.method)
			return a.invoke(cmd, args[0], &f)
		}}
	fl := cmd.Flags()
	fl.StringVarP(&f.data, "data", "d", "", "the body")
	fl.StringVar(&f.file, "file", "", "file with the body, - for standard input")
	fl.StringArrayVarP(&f.headers, "header", "H", nil, "a header of the request, \"Name: value\"; repeat")
	fl.StringVarP(&f.method, "method", "X", http.MethodPost, "method of the request")
	fl.StringVar(&f.path, "path", "", "path below the function, beginning with /")
	fl.StringVar(&f.query, "query", "", "query of the request, without ?")
	fl.BoolVar(&f.stream, "stream", false, "hand the body on while it flows, and the reply back meanwhile")
	fl.BoolVarP(&f.include, "include", "i", false, "print the reply's status and headers before its body")
	fl.BoolVar(&a.resend, "resend", false, "where the connection to a coordinator broke, ask the next of --gateway: the function may run twice")
	fl.StringVar(&a.via, "via", "", "URL of a node's gateway to ask first: one hop fewer for functions it hosts; --gateway serves the rest")
	f.needs.add(cmd)
	f.later.add(cmd)
	f.timeout = timeoutFlag(cmd, 5*time.Minute)
	a.trustFlag(cmd)
	return cmd
}

func (a *app) invoke(cmd *cobra.Command, function string, f *invokeFlags) (retErr error) {
	name, err := api.ParseFunctionName(function)
	if err != nil {
		return err
	}
	header, err := parseHeaders(f.headers)
	if err != nil {
		return err
	}
	needs, err := f.needs.parse(cmd.Flags(), time.Now())
	if err != nil {
		return err
	}
	if err := f.later.check(cmd.Flags()); err != nil {
		return err
	}
	ctx, cancel, err := within(cmd.Context(), *f.timeout)
	if err != nil {
		return err
	}
	defer cancel()
	body, err := a.invokeBody(ctx, cmd, "--file", f)
	if err != nil {
		return err
	}
	if c, ok := body.(io.Closer); ok {
		defer c.Close()
	}
	c, err := a.personal()
	if err != nil {
		return err
	}
	defer c.Close()
	req := client.Request{Method: f.method, Path: f.path, Query: f.query, Header: header, Body: body, Stream: f.stream, Needs: needs}
	if f.later.async {
		return a.invokeLater(ctx, c, name, req, &f.later)
	}
	res, err := c.Invoke(ctx, name, req)
	if needs != nil && f.needs.show {
		a.notef("task %s", needs.Task)
	}
	if err != nil {
		return about("FUNCTION", "faasd-sec nodes shows what is free on which machines, and their labels", err)
	}
	defer func() { retErr = errors.Join(retErr, res.Body.Close()) }()
	if f.include {
		a.printHead(res)
	}
	if err := a.copyOut(ctx, res.Body); err != nil {
		return err
	}
	if res.Failure() != "" || res.Status >= 400 {
		return &statusError{status: res.Status, code: res.Failure()}
	}
	return nil
}

// copyOut writes the reply. Its own errors are told from those of the output.
func (a *app) copyOut(ctx context.Context, body io.Reader) error {
	_, err := io.Copy(a.stdout, body)
	switch {
	case err == nil:
		return nil
	case errors.Is(ctx.Err(), context.Canceled):
		return fmt.Errorf("interrupted; what was printed is a part of the reply: %w", ctx.Err())
	case ctx.Err() != nil:
		return api.Wrap(api.CodeDeadline, ctx.Err(), "the reply did not end in time; what was printed is a part of it")
	case api.CodeOf(err) != api.CodeInternal:
		return err
	}
	return fmt.Errorf("write the reply: %w", err)
}

// invokeBody chooses the body; a terminal is not waited for. fileFlag names a file
// with it.
func (a *app) invokeBody(ctx context.Context, cmd *cobra.Command, fileFlag string, f *invokeFlags) (io.Reader, error) {
	switch {
	case cmd.Flags().Changed("data") && f.file != "":
		return nil, api.Invalid(fileFlag, "give one of --data and "+fileFlag, "there are two bodies")
	case cmd.Flags().Changed("data"):
		return strings.NewReader(f.data), nil
	case f.file == "-":
		return a.input(ctx), nil
	case f.file != "":
		file, err := os.Open(f.file)
		if err != nil {
			return nil, &api.Error{Code: api.CodeInvalid, Field: fileFlag, Err: err, Message: "cannot read the body", Remedy: "check the path"}
		}
		return file, nil
	}
	if _, tty := terminal(a.stdin); tty || a.stdin == nil {
		return nil, nil
	}
	return a.input(ctx), nil
}

// input is standard input, whose reads end with ctx. A regular file needs no
// such care, and can be sent a second time.
func (a *app) input(ctx context.Context) io.Reader {
	if f, ok := a.stdin.(*os.File); ok {
		if info, err := f.Stat(); err == nil && info.Mode().IsRegular() {
			return struct{ io.ReadSeeker }{f} // not closed here: it is not ours
		}
	}
	pr, pw := io.Pipe()
	context.AfterFunc(ctx, func() { pw.CloseWithError(ctx.Err()) })
	go func() { // ends with its input, or with the process
		_, err := io.Copy(pw, a.stdin)
		pw.CloseWithError(err)
	}()
	return pr
}

func parseHeaders(list []string) (http.Header, error) {
	h := make(http.Header)
	for _, s := range list {
		name, value, ok := strings.Cut(s, ":")
		if name = strings.TrimSpace(name); !ok || name == "" || strings.ContainsAny(name, " \t\r\n") {
			return nil, api.Invalid("--header", `write "Name: value"`, fmt.Sprintf("%q is not a header", s))
		}
		h.Add(name, strings.TrimSpace(value))
	}
	return h, nil
}

func (a *app) printHead(res *client.Response) {
	fmt.Fprintf(a.stdout, "%d %s\n", res.Status, http.StatusText(res.Status))
	names := make([]string, 0, len(res.Header))
	for n := range res.Header {
		names = append(names, n)
	}
	slices.Sort(names)
	for _, n := range names {
		for _, v := range res.Header[n] {
			fmt.Fprintf(a.stdout, "%s: %s\n", n, one(v))
		}
	}
	fmt.Fprintln(a.stdout)
	m := res.Meta
	a.notef("served by %s (%s start), revision %s, %s, call %s", first(one(m.Node), "-"), first(one(m.Start), "unknown"),
		short(m.Revision.String()), m.Duration.Round(10*time.Microsecond), first(one(m.CallID), "-"))
}

// completeFunctions offers the functions of the gateway, if it answers quickly.
func (a *app) completeFunctions(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 || a.settle() != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	c, err := a.anonymous()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(cmd.Context(), time.Second)
	defer cancel()
	list, err := c.List(ctx)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	names := make([]cobra.Completion, len(list))
	for i, f := range list {
		names[i] = f.Name.Short()
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
