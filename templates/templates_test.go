package templates_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/stack"
	"github.com/faasd-sec/faasd-sec/templates"
)

func TestEveryTemplatePassesItsOwnTest(t *testing.T) {
	for _, lang := range templates.Languages() {
		t.Run(lang, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "greet-all")
			names, err := templates.Write(dir, lang, "greet-all.team-a")
			if err != nil {
				t.Fatal(err)
			}
			for _, n := range names {
				b, err := os.ReadFile(filepath.Join(dir, n))
				if err != nil || strings.Contains(string(b), "{{.") {
					t.Errorf("%s: %v", n, err)
				}
			}
			f, err := stack.Load(filepath.Join(dir, "function.yml"), func(string) (string, bool) { return "", false })
			if err != nil {
				t.Fatal(err)
			}
			if len(f.Warnings) > 0 || len(f.Functions) != 1 || f.Functions[0].Name != "greet-all.team-a" || f.Functions[0].Build == nil {
				t.Errorf("%+v", f)
			}
			words := strings.Fields(templates.Test(lang))
			if _, err := exec.LookPath(words[0]); err != nil {
				if os.Getenv("REQUIRE_ALL") == "1" {
					t.Fatalf("needs %s", words[0])
				}
				t.Skipf("needs %s", words[0])
			}
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			cmd := exec.CommandContext(ctx, words[0], words[1:]...)
			cmd.Dir = dir
			cmd.Env = append(os.Environ(), "GOFLAGS=", "GOWORK=off", "CGO_ENABLED=0")
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%s: %v\n%s", templates.Test(lang), err, out)
			}
		})
	}
}

// A test that never fails proves nothing: each notices a handler that is broken.
func TestTestsOfTemplatesNoticeABrokenHandler(t *testing.T) {
	for lang, file := range map[string]string{"go": "handler.go", "shell": "code/handler.sh", "python": "code/handler.py", "node": "code/handler.js"} {
		words := strings.Fields(templates.Test(lang))
		if _, err := exec.LookPath(words[0]); err != nil && os.Getenv("REQUIRE_ALL") != "1" {
			continue
		}
		dir := filepath.Join(t.TempDir(), "f")
		if _, err := templates.Write(dir, lang, "f.openfaas-fn"); err != nil {
			t.Fatal(err)
		}
		p := filepath.Join(dir, file)
		b, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(strings.ReplaceAll(string(b), "!\\n", "?\\n")), 0o644); err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), words[0], words[1:]...)
		cmd.Dir, cmd.Env = dir, append(os.Environ(), "GOFLAGS=", "GOWORK=off", "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err == nil {
			t.Errorf("%s passes with a broken handler\n%s", lang, out)
		}
	}
}

func TestNothingIsOverwritten(t *testing.T) {
	dir := t.TempDir()
	keep := filepath.Join(dir, "notes")
	if err := os.WriteFile(keep, []byte("mine"), 0o644); err != nil {
		t.Fatal(err)
	}
	_, err := templates.Write(dir, "go", "f.openfaas-fn")
	var e *api.Error
	if !errors.As(err, &e) || e.Code != api.CodeConflict || e.Remedy == "" {
		t.Error(err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("%v, %v", entries, err)
	}
	if _, err := templates.Write(t.TempDir(), "cobol", "f.openfaas-fn"); api.CodeOf(err) != api.CodeInvalid {
		t.Error(err)
	}
	if _, err := templates.Write(filepath.Join(t.TempDir(), "a", "b"), "go", "f.openfaas-fn"); api.CodeOf(err) != api.CodeInvalid {
		t.Error(err)
	}
	if _, err := templates.Write(t.TempDir(), "shell", "f.openfaas-fn"); err != nil {
		t.Errorf("an empty directory: %v", err)
	}
}
