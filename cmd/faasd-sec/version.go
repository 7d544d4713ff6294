package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// version is set by the linker; without, it is what the Go toolchain recorded.
var version = ""

// buildVersion is what the Go toolchain recorded of this binary.
type buildVersion struct {
	Version  string `json:"version"`
	Revision string `json:"revision,omitempty"` // of the source
	Modified bool   `json:"modified,omitempty"` // the source had changes beside that revision
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{Use: "version", Short: "Print the version", Args: usageArgs(cobra.NoArgs), RunE: func(*cobra.Command, []string) error {
		v := buildVersion{Version: first(version, "unknown"), Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
		if info, ok := debug.ReadBuildInfo(); ok {
			v.Version = first(version, info.Main.Version, v.Version)
			for _, s := range info.Settings {
				switch s.Key {
				case "vcs.revision":
					v.Revision = s.Value
				case "vcs.modified":
					v.Modified = s.Value == "true"
				}
			}
		}
		if a.json() {
			return a.printJSON(v)
		}
		fmt.Fprintf(a.stdout, "faasd-sec %s %s %s\n", v.Version, v.Go, v.Platform)
		return nil
	}}
}
