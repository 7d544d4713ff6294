package main

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/templates"
)

func (a *app) newCommand() *cobra.Command {
	var lang, dir string
	cmd := &cobra.Command{Use: "new NAME", Short: "Make a new function: a handler, its test and a function.yml",
		Long: "Make a directory NAME with a function that works: a handler to change, a test that runs with the language's own\n" +
			"tools, and a function.yml. Nothing is overwritten.",
		Example: "  faasd-sec new --lang go hello && cd hello && go test ./...",
		Args:    usageArgs(cobra.ExactArgs(1)),
		RunE: func(_ *cobra.Command, args []string) error {
			name, err := api.ParseFunctionName(args[0])
			if err != nil {
				return err
			}
			if dir == "" {
				dir = name.Function()
			}
			names, err := templates.Write(dir, lang, name)
			if api.CodeOf(err) == api.CodeInternal {
				return &api.Error{Code: api.CodeInvalid, Field: "--dir", Err: err, Message: "cannot make the function", Remedy: "choose a directory that can be made and written to"}
			} else if err != nil {
				return err
			}
			return a.printNew(newFunction{Function: name, Directory: dir, Files: names, Test: templates.Test(lang)})
		}}
	f := cmd.Flags()
	f.StringVar(&lang, "lang", "", "what it is written in: "+strings.Join(templates.Languages(), ", ")+"; required")
	f.StringVar(&dir, "dir", "", "where to make it (default a directory of the function's name)")
	if err := cmd.RegisterFlagCompletionFunc("lang", cobra.FixedCompletions(templates.Languages(), cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic(err) // the flag is defined above
	}
	return cmd
}

// newFunction is what new reports.
type newFunction struct {
	Function  api.FunctionName `json:"function"`
	Directory string           `json:"directory"`
	Files     []string         `json:"files"`
	Test      string           `json:"test"`
}

func (a *app) printNew(n newFunction) error {
	if a.json() {
		return a.printJSON(n)
	}
	fmt.Fprintf(a.stdout, "made %s\n", n.Function.Short())
	for _, f := range n.Files {
		fmt.Fprintf(a.stdout, "  %s\n", filepath.Join(n.Directory, f))
	}
	fmt.Fprintf(a.stdout, "test it: cd %s && %s\n", n.Directory, n.Test)
	return nil
}
