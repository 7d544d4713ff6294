package image

import (
	"fmt"
	"path"
	"path/filepath"
	"strings"

	"github.com/faasd-sec/faasd-sec/api"
)

// reserved is where the platform mounts its agent; an image that brings its
// own files there would be misleading at best.
const reserved = "/.faasd-sec"

// check refuses a description that cannot be built, naming the field.
func (d Build) check() error {
	if d.From == "" {
		return api.Invalid("build.from", `write "scratch", "debian:PACKAGE,…" or an image reference`, "it is empty")
	}
	for i, c := range d.Copy {
		if err := c.check(fmt.Sprintf("build.copy[%d]", i)); err != nil {
			return err
		}
	}
	if d.Go != "" {
		if err := checkLocal("build.go", d.Go); err != nil {
			return err
		}
	}
	for name := range d.Env {
		if name == "" || strings.ContainsAny(name, "=\x00") {
			return api.Invalid("build.env", "use a name without '='", fmt.Sprintf("%q is not a variable's name", name))
		}
	}
	for name, v := range d.Env {
		if strings.ContainsRune(v, 0) {
			return api.Invalid("build.env."+name, "remove the NUL byte", "its value has one")
		}
	}
	if d.WorkDir != "" && !path.IsAbs(d.WorkDir) {
		return api.Invalid("build.workdir", "write an absolute path", fmt.Sprintf("%q", d.WorkDir))
	}
	return nil
}

func (c Copy) check(field string) error {
	if err := checkLocal(field+".src", c.Src); err != nil {
		return err
	}
	const remedy = "write an absolute path without '..'"
	if !path.IsAbs(c.Dst) || strings.ContainsRune(c.Dst, 0) {
		return api.Invalid(field+".dst", remedy, fmt.Sprintf("%q is not absolute", c.Dst))
	}
	for part := range strings.SplitSeq(c.Dst, "/") {
		if part == ".." {
			return api.Invalid(field+".dst", remedy, fmt.Sprintf("%q leads upwards", c.Dst))
		}
	}
	if clean := path.Clean(c.Dst); clean == reserved || strings.HasPrefix(clean, reserved+"/") {
		return api.Invalid(field+".dst", "choose another place", reserved+" belongs to the platform")
	}
	if c.Mode&^0o777 != 0 {
		return api.Invalid(field+".mode", `write permission bits, as in "0755"`, fmt.Sprintf("%#o has more than permissions", c.Mode))
	}
	return nil
}

// checkLocal accepts a path that stays in the build directory by its text; the
// opened root then holds it there whatever links say.
func checkLocal(field, p string) error {
	if p == "" || !filepath.IsLocal(p) || strings.ContainsRune(p, 0) {
		return api.Invalid(field, "write a path inside the build directory, relative to it", fmt.Sprintf("%q is not one", p))
	}
	return nil
}
