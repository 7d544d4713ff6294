package main

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"

	"github.com/faasd-sec/faasd-sec/api"
)

func TestMistakesAreToldBeforeAnythingListens(t *testing.T) {
	state := t.TempDir()
	nowhere := filepath.Join(state, "nowhere")
	for name, k := range map[string]struct {
		args []string
		env  string // of CREDENTIALS_DIRECTORY
		want string
	}{
		"no passphrase":      {[]string{"-state-dir", state}, "", "-passphrase-file"},
		"named file missing": {[]string{"-state-dir", state, "-passphrase-file", nowhere}, "", "passphrase"},
		"named credential":   {[]string{"-state-dir", state}, nowhere, credential},
		"short life":         {[]string{"-state-dir", state, "-insecure-passphrase", "-key-life", "1m"}, "", "key life"},
		"user":               {[]string{"-allow-uid", "root"}, "", "allow-uid"},
		"no connections":     {[]string{"-max-conns", "0"}, "", "max-conns"},
		"no calls":           {[]string{"-max-opening", "0"}, "", "max-opening"},
		"argument":           {[]string{"serve"}, "", "unexpected argument"},
		"flag":               {[]string{"-nope"}, "", "nope"},
		"level":              {[]string{"-log-level", "loud"}, "", "log-level"},
		"open directory":     {[]string{"-state-dir", filepath.Join(state, "s"), "-insecure-passphrase", "-socket", "/tmp/socket"}, "", "0700"},
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			args := append([]string{"-allow-swap"}, k.args...)
			err := run(t.Context(), args, func(string) string { return k.env }, &out, &out)
			if err == nil || api.CodeOf(err) == "" || !strings.Contains(err.Error(), k.want) {
				t.Errorf("error %v, want one about %q", err, k.want)
			}
		})
	}
}

func TestVersionAndHelpAreNoErrors(t *testing.T) {
	for _, arg := range []string{"-version", "-help"} {
		var out bytes.Buffer
		if err := run(t.Context(), []string{arg}, func(string) string { return "" }, &out, &out); err != nil || out.Len() == 0 {
			t.Errorf("%s: %v, %q", arg, err, out.String())
		}
	}
}
