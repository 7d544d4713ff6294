package main

import (
	goruntime "runtime"
	"runtime/debug"

	"github.com/faasd-sec/faasd-sec/coordinator/openfaas"
)

// openFaaS sets up the API of OpenFaaS, with the credentials of a directory.
func openFaaS(dir string) (openfaas.Config, error) {
	cfg := openfaas.Config{Arch: goruntime.GOARCH, Version: openfaas.Version{Release: version, SHA: "unknown", CommitMessage: "faasd-sec " + version}}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				cfg.Version.SHA = s.Value
			}
		}
	}
	if dir == "" {
		return cfg, nil
	}
	var err error
	cfg.Credentials, err = openfaas.LoadCredentials(dir)
	return cfg, err
}
