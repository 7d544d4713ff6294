package main

import (
	"os"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"github.com/faasd-sec/faasd-sec/api"
)

// manCommand writes manual pages, for packagers.
func (a *app) manCommand() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:     "man",
		Short:   "Write manual pages of every command",
		Long:    "Writes one manual page of section 1 for each command into a directory.",
		Example: "  faasd-sec man --dir /usr/local/share/man/man1",
		Args:    usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if dir == "" {
				return api.Invalid("--dir", "name a directory for the pages", "it is missing")
			}
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return &api.Error{Code: api.CodeInvalid, Field: "--dir", Err: err, Message: "cannot make the directory", Remedy: "choose another"}
			}
			// The pages' date: without one each build would give others.
			released := time.Unix(0, 0).UTC()
			root := cmd.Root()
			root.DisableAutoGenTag = true
			return doc.GenManTree(root, &doc.GenManHeader{Title: "FAASD-SEC", Section: "1", Date: &released, Source: "faasd-sec", Manual: "faasd-sec"}, dir)
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "", "directory for the pages, made if it is missing")
	return cmd
}
