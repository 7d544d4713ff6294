package container

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Load reads and checks the specification of a bundle.
func Load(bundle string) (*specs.Spec, error) {
	b, err := os.ReadFile(filepath.Join(bundle, "config.json"))
	if err != nil {
		return nil, fmt.Errorf("read the specification: %w", err)
	}
	return Parse(b)
}

// Parse reads and checks a specification.
func Parse(b []byte) (*specs.Spec, error) {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	var s specs.Spec
	if err := d.Decode(&s); err != nil {
		return nil, fmt.Errorf("parse the specification: %w", err)
	}
	if err := check(&s); err != nil {
		return nil, fmt.Errorf("specification: %w", err)
	}
	return &s, nil
}

// refused is the error for a field whose value this package does not serve.
func refused(field, want string) error {
	return fmt.Errorf("%s: this runtime serves only %s", field, want)
}

// check refuses everything that is not implemented. Fields it knows are judged
// by name; of all others, those that a later version of the format adds
// included, any value is refused.
func check(s *specs.Spec) error {
	if s.Process == nil || s.Root == nil || s.Linux == nil || s.Linux.Resources == nil {
		return errors.New("process, root, linux and linux.resources must be there")
	}
	return errors.Join(checkProcess(s.Process), checkRoot(s), checkLinux(s.Linux), checkRest(s))
}

func checkProcess(p *specs.Process) error {
	var errs []error
	need := func(ok bool, field, want string) {
		if !ok {
			errs = append(errs, refused("process."+field, want))
		}
	}
	need(len(p.Args) > 0 && filepath.IsAbs(p.Args[0]), "args", "a program by its absolute path")
	need(filepath.IsAbs(p.Cwd), "cwd", "an absolute path")
	need(p.User.UID == 0 && p.User.GID == 0, "user", "the root of the user namespace")
	need(p.NoNewPrivileges, "noNewPrivileges", "true")
	need(p.Capabilities != nil, "capabilities", "a list")
	need(!slices.ContainsFunc(slices.Concat(p.Args, p.Env, []string{p.Cwd}), hasNUL), "args, env, cwd", "texts without NUL")
	return errors.Join(errs...)
}

func hasNUL(s string) bool { return strings.Contains(s, "\x00") }

func checkRoot(s *specs.Spec) error {
	var errs []error
	if !filepath.IsAbs(s.Root.Path) || hasNUL(s.Root.Path) {
		errs = append(errs, refused("root.path", "an absolute path"))
	}
	if s.Hostname == "" || hasNUL(s.Hostname) || len(s.Hostname) > 64 {
		errs = append(errs, refused("hostname", "a name of 1 to 64 bytes"))
	}
	return errors.Join(errs...)
}

func checkLinux(l *specs.Linux) error {
	var errs []error
	need := func(ok bool, field, want string) {
		if !ok {
			errs = append(errs, refused("linux."+field, want))
		}
	}
	need(l.RootfsPropagation == "rprivate" || l.RootfsPropagation == "private" || l.RootfsPropagation == "", "rootfsPropagation", "rprivate")
	need(filepath.IsAbs(l.CgroupsPath) && filepath.Clean(l.CgroupsPath) == l.CgroupsPath && l.CgroupsPath != "/", "cgroupsPath", "a clean absolute path below the root")
	need(len(l.UIDMappings) > 0 && len(l.GIDMappings) > 0, "uidMappings and gidMappings", "user namespaces with maps")
	need(l.Seccomp != nil, "seccomp", "a profile")
	for _, p := range slices.Concat(l.MaskedPaths, l.ReadonlyPaths) {
		need(cleanPath(p), "maskedPaths and readonlyPaths", "clean absolute paths, which "+p+" is not")
	}
	for _, ns := range l.Namespaces {
		need(ns.Path == "", "namespaces", "new namespaces, none by path")
	}
	for key, value := range l.Sysctl {
		need(strings.HasPrefix(key, "net.") && !strings.ContainsAny(key, "/\x00") && !strings.Contains(key, ".."), "sysctl", "settings of the network namespace, which "+key+" is not")
		need(!hasNUL(value), "sysctl", "texts without NUL")
	}
	return errors.Join(errs...)
}

func cleanPath(p string) bool {
	return filepath.IsAbs(p) && filepath.Clean(p) == p && p != "/" && !hasNUL(p)
}

// checkRest empties every field that is served in a copy, and refuses what is
// left in it.
func checkRest(s *specs.Spec) error {
	rest := *s
	process, linux, root := *s.Process, *s.Linux, *s.Root
	rest.Process, rest.Linux, rest.Root = &process, &linux, &root
	rest.Version, rest.Hostname, rest.Mounts = "", "", nil // mounts are checked where they are made
	rest.Annotations = nil                                 // notes for people and tools; they ask for nothing
	root.Path, root.Readonly = "", false
	process.Args, process.Env, process.Cwd = nil, nil, ""
	process.NoNewPrivileges, process.OOMScoreAdj = false, nil
	process.Capabilities, process.Rlimits = nil, nil
	linux.Namespaces, linux.UIDMappings, linux.GIDMappings = nil, nil, nil
	linux.CgroupsPath, linux.RootfsPropagation = "", ""
	linux.MaskedPaths, linux.ReadonlyPaths, linux.Sysctl = nil, nil, nil
	linux.Seccomp = nil   // checked by its compiler
	linux.Resources = nil // checked by its own function
	if field := firstSet("", reflect.ValueOf(&rest)); field != "" {
		return fmt.Errorf("%s: not implemented by this runtime", field)
	}
	return nil
}

// firstSet names the first field of v, by its JSON path, that is not empty.
func firstSet(path string, v reflect.Value) string {
	for v.Kind() == reflect.Pointer {
		if v.IsNil() {
			return ""
		}
		// A pointer to a value that is no structure counts as set.
		if v.Elem().Kind() != reflect.Struct {
			return path
		}
		v = v.Elem()
	}
	if v.Kind() != reflect.Struct {
		if v.IsZero() || (v.Kind() == reflect.Slice || v.Kind() == reflect.Map) && v.Len() == 0 {
			return ""
		}
		return path
	}
	for i := range v.NumField() {
		f := v.Type().Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		at := path
		if name != "" {
			if at != "" {
				at += "."
			}
			at += name
		}
		if found := firstSet(at, v.Field(i)); found != "" {
			return found
		}
	}
	return ""
}
