package main

import (
	"context"
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"

	"github.com/faasd-sec/faasd-sec/image"
)

//go:embed programs/echo.c
var echoC []byte

//go:embed programs/echo.py
var echoPython []byte

// dialEnv names the socket that a program connects to instead of serving.
const dialEnv = "BENCH_DIAL"

// program is one function in one language, as a file and as an image.
type program struct {
	lang  string
	made  string   // how, for the report
	file  string   // on this machine, "" where it only runs in its image
	argv  []string // in the image
	build image.Build
}

// makePrograms builds what runs on this machine. Languages that cannot be built
// here are reported as absent.
func makePrograms(ctx context.Context, dir string, absent func(row, why string)) ([]*program, error) {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, err
	}
	var out []*program
	c, err := makeC(ctx, filepath.Join(dir, "c"))
	switch {
	case err != nil:
		return nil, err
	case c == nil:
		absent("cold/*/c", "no C compiler that links statically, and the hand-made program is for amd64 alone")
	default:
		out = append(out, c)
	}
	g := staticProgram("go", filepath.Join(dir, "go"))
	g.made = "fasthttp, static"
	if err := goBuild(ctx, g.file, "./bench/function"); err != nil {
		return nil, err
	}
	out = append(out, g)
	script := filepath.Join(dir, "echo.py")
	if err := os.WriteFile(script, echoPython, 0o644); err != nil {
		return nil, err
	}
	argv := []string{"/usr/bin/python3", "-I", "-S", "-B", "/fn.py"}
	return append(out, &program{lang: "python", made: "Debian's python3-minimal", argv: argv, build: image.Build{
		From: "debian:python3-minimal", Copy: []image.Copy{{Src: "echo.py", Dst: "/fn.py", Mode: 0o644}}, Entrypoint: argv,
	}}), nil
}

// staticProgram is one static binary in an image of nothing else.
func staticProgram(lang, file string) *program {
	return &program{lang: lang, file: file, argv: []string{"/fn"}, build: image.Build{
		From: "scratch", Copy: []image.Copy{{Src: filepath.Base(file), Dst: "/fn", Mode: 0o755}}, Entrypoint: []string{"/fn"}}}
}

// makeC compiles echo.c; without a compiler the hand-made program stands in.
func makeC(ctx context.Context, file string) (*program, error) {
	p := staticProgram("c", file)
	for _, cc := range []string{"gcc", "cc", "clang"} {
		path, err := exec.LookPath(cc)
		if err != nil {
			continue
		}
		src := file + ".c"
		if err := os.WriteFile(src, echoC, 0o644); err != nil {
			return nil, err
		}
		cmd := exec.CommandContext(ctx, path, "-static", "-Os", "-s", "-o", file, src)
		if out, err := cmd.CombinedOutput(); err != nil {
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			fmt.Fprintf(os.Stderr, "%s -static: %v\n%s", cc, err, out)
			continue
		}
		p.made = cc + " -static"
		return p, nil
	}
	if goruntime.GOARCH != "amd64" {
		return nil, nil
	}
	p.made = "hand-assembled"
	return p, writeTiny(file)
}

// goBuild compiles a main package of this module into a static binary.
func goBuild(ctx context.Context, out, pkg string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", out, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if b, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", pkg, err, b)
	}
	return nil
}
