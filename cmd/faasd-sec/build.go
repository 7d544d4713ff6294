package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/spf13/cobra"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/image"
	"github.com/faasd-sec/faasd-sec/stack"
)

const stackFile = "function.yml"

// buildDir holds built images, beside function.yml.
const buildDir = ".faasd-sec"

// buildFlags are what building needs, for build and deploy --build.
type buildFlags struct {
	file       string
	arch       string
	goCommand  string
	baseScript string
}

func (b *buildFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVarP(&b.file, "file", "f", "", "the function.yml (default "+stackFile+" in the current directory)")
	f.StringVar(&b.arch, "arch", runtime.GOARCH, "architecture of the nodes")
	f.StringVar(&b.goCommand, "go", "go", "the go command, for functions with build.go")
	f.StringVar(&b.baseScript, "base-script", "", "the script that makes bases of Debian packages (default scripts/base-image.sh beside the program or below the current directory)")
}

func (a *app) buildCommand() *cobra.Command {
	var b buildFlags
	var out string
	cmd := &cobra.Command{Use: "build [DIR | FUNCTION...]", Short: "Build the images of a function.yml, without Docker",
		Long: "Build the image of every function that has a build section, or of the functions named. DIR stands for\n" +
			"-f DIR/function.yml. Images are kept in " + buildDir + "/ beside function.yml, where deploy finds them.",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 && b.file == "" {
				if info, err := os.Stat(args[0]); err == nil && info.IsDir() {
					b.file, args = filepath.Join(args[0], stackFile), nil
				}
			}
			f, err := a.loadStack(b.file)
			if err != nil {
				return err
			}
			list, err := selected(f, args)
			if err != nil {
				return err
			}
			if out != "" && len(list) != 1 {
				return api.Invalid("--out", "name one function", fmt.Sprintf("it is one file, and %d functions would be built", len(list)))
			}
			if err := fitFile("--out", out); err != nil { // before it takes its time
				return err
			}
			built := make([]builtImage, 0, len(list))
			for _, fn := range list {
				a.noteDockerfile(fn)
				if fn.Build == nil {
					if len(args) > 0 || len(list) == 1 {
						return api.Invalid("functions."+fn.Name.Short()+".build", "add a build section, or deploy with --image-tar or an image of a registry", "the function has none")
					}
					continue
				}
				one, err := a.build(cmd.Context(), fn, &b, out)
				if err != nil {
					return err
				}
				built = append(built, one)
			}
			return a.printBuilt(built)
		}}
	b.add(cmd)
	cmd.Flags().StringVar(&out, "out", "", "write the image to this file")
	return cmd
}

// fitFile refuses a path that no file can be written to, "" being none.
func fitFile(flag, path string) error {
	if path == "" {
		return nil
	}
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		return api.Invalid(flag, "name a file in it", path+" is a directory")
	}
	if info, err := os.Stat(filepath.Dir(path)); err != nil || !info.IsDir() {
		return api.Invalid(flag, "make the directory, or choose another", "there is no directory "+filepath.Dir(path))
	}
	return nil
}

// builtImage is what build reports.
type builtImage struct {
	Function api.FunctionName `json:"function"`
	Image    string           `json:"image"`
	Digest   string           `json:"digest"`
	File     string           `json:"file"`
	Bytes    int64            `json:"bytes"`
}

func (a *app) printBuilt(list []builtImage) error {
	if a.json() {
		return a.printJSON(list)
	}
	for _, b := range list {
		fmt.Fprintf(a.stdout, "built %s: %s@%s (%s, %s)\n", b.Function.Short(), b.Image, b.Digest, b.File, bytesText(b.Bytes))
	}
	return nil
}

func (a *app) loadStack(path string) (*stack.File, error) {
	return a.loadStackWith(stack.Load, path)
}

func (a *app) loadStackWith(load func(string, func(string) (string, bool)) (*stack.File, error), path string) (*stack.File, error) {
	if path == "" {
		path = stackFile
	}
	f, err := load(path, a.lookupEnv)
	if err != nil {
		return nil, err
	}
	for _, w := range f.Warnings {
		a.notef("warning: %s", one(w))
	}
	return f, nil
}

// selected are the functions named, or all.
func selected(f *stack.File, names []string) ([]*stack.Function, error) {
	var out []*stack.Function
	if len(names) == 0 {
		for i := range f.Functions {
			out = append(out, &f.Functions[i])
		}
		return out, nil
	}
	for _, n := range names {
		fn, err := f.Find(n)
		if err != nil {
			return nil, err
		}
		out = append(out, fn)
	}
	return out, nil
}

// builtPath is where the image of a function lies after it was built.
func builtPath(fn *stack.Function) string {
	return filepath.Join(fn.Dir, buildDir, string(fn.Name)+".tar")
}

func (a *app) build(ctx context.Context, fn *stack.Function, flags *buildFlags, out string) (_ builtImage, retErr error) {
	if out == "" {
		out = builtPath(fn)
		if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
			return builtImage{}, fmt.Errorf("build %s: %w", fn.Name.Short(), err)
		}
	}
	script, err := a.findBaseScript(fn, flags.baseScript)
	if err != nil {
		return builtImage{}, err
	}
	b := image.DefaultBuilder(fn.Dir)
	b.Arch, b.Go, b.BaseScript, b.Pull = flags.arch, flags.goCommand, script, &image.Remote{}
	p := a.newProgress("build " + fn.Name.Short())
	defer p.end()
	b.Progress = func(s image.Step) { p.step(s.Name + " " + s.Detail) }
	img, err := b.Build(ctx, description(fn.Build))
	if err != nil {
		return builtImage{}, underFunction(fn, err)
	}
	defer func() { retErr = errors.Join(retErr, img.Close()) }()
	p.step("write " + out)
	if err := img.Save(out, withTag(fn.Image)); err != nil {
		return builtImage{}, err
	}
	digest, err := img.DigestString()
	if err != nil {
		return builtImage{}, err
	}
	info, err := os.Stat(out)
	if err != nil {
		return builtImage{}, fmt.Errorf("build %s: %w", fn.Name.Short(), err)
	}
	return builtImage{Function: fn.Name, Image: fn.Image, Digest: digest, File: out, Bytes: info.Size()}, nil
}

func description(b *stack.Build) image.Build {
	d := image.Build{From: b.From, Go: b.Go, Entrypoint: b.Entrypoint, Cmd: b.Cmd, Env: b.Env, WorkDir: b.WorkDir, User: b.User, Labels: b.Labels}
	for _, c := range b.Copy {
		d.Copy = append(d.Copy, image.Copy(c))
	}
	return d
}

// underFunction completes a field's path: the builder knows no function.
func underFunction(fn *stack.Function, err error) error {
	var e *api.Error
	if errors.As(err, &e) && strings.HasPrefix(e.Field, "build") {
		c := *e
		c.Field = "functions." + fn.Name.Short() + "." + e.Field
		return &c
	}
	return err
}

// findBaseScript looks for the script where a source checkout and an
// installation have it.
func (a *app) findBaseScript(fn *stack.Function, given string) (string, error) {
	if given != "" || !strings.HasPrefix(fn.Build.From, "debian:") {
		return given, nil
	}
	places := []string{filepath.Join("scripts", "base-image.sh")}
	if exe, err := os.Executable(); err == nil {
		dir := filepath.Dir(exe)
		places = append(places, filepath.Join(dir, "scripts", "base-image.sh"), filepath.Join(dir, "..", "scripts", "base-image.sh"),
			filepath.Join(dir, "..", "share", "faasd-sec", "base-image.sh"))
	}
	for _, p := range places {
		if _, err := os.Stat(p); err == nil {
			return filepath.Abs(p)
		}
	}
	return "", &api.Error{Code: api.CodeNotFound, Field: "--base-script", Message: "a base of Debian packages needs scripts/base-image.sh, which is not in " + strings.Join(places, ", "),
		Remedy: "give its path with --base-script"}
}

// splitRef cuts "repository:tag" of an image in the cluster's own registry.
func splitRef(ref string) (repo, tag string) {
	repo, tag, ok := strings.Cut(ref, ":")
	if !ok {
		tag = "latest"
	}
	return repo, tag
}

func withTag(ref string) string {
	repo, tag := splitRef(ref)
	return repo + ":" + tag
}
