package containerd

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/faasd-sec/faasd-sec/api"
)

// nobodyElse are the ids of functions whose image names no user, or root.
const nobodyElse = api.FunctionID

// functionUser is the uid and gid that an image's USER means, "user[:group]"
// by name or number. A function is never root, so root becomes nobodyElse.
func functionUser(layers []string, user string) (uid, gid int, err error) {
	name, group, hasGroup := strings.Cut(user, ":")
	if name == "" {
		return nobodyElse, nobodyElse, nil
	}
	uid, gid, err = lookup(layers, name)
	if err != nil {
		return 0, 0, err
	}
	if hasGroup {
		if gid, err = lookupGroup(layers, group); err != nil {
			return 0, 0, err
		}
	}
	if uid == 0 {
		return nobodyElse, nobodyElse, nil
	}
	if gid == 0 {
		gid = nobodyElse
	}
	return uid, gid, nil
}

// lookup finds a user's ids. A number that /etc/passwd does not know has the
// group of the same number.
func lookup(layers []string, name string) (uid, gid int, err error) {
	number, numeric := parseID(name)
	lines, err := fileLines(layers, "etc/passwd")
	if err != nil {
		return 0, 0, err
	}
	for _, line := range lines {
		f := strings.Split(line, ":") // name:password:uid:gid:…
		if len(f) < 4 || (f[0] != name && (!numeric || f[2] != strconv.Itoa(number))) {
			continue
		}
		u, ok1 := parseID(f[2])
		g, ok2 := parseID(f[3])
		if !ok1 || !ok2 {
			return 0, 0, api.Invalid("image", "set USER to a number", fmt.Sprintf("/etc/passwd has no valid ids for user %q", name))
		}
		return u, g, nil
	}
	if numeric {
		return number, number, nil
	}
	return 0, 0, api.Invalid("image", "set USER to a number", fmt.Sprintf("USER %q is not in the image's /etc/passwd", name))
}

func lookupGroup(layers []string, name string) (int, error) {
	if n, ok := parseID(name); ok {
		return n, nil
	}
	lines, err := fileLines(layers, "etc/group")
	if err != nil {
		return 0, err
	}
	for _, line := range lines {
		f := strings.Split(line, ":") // name:password:gid:…
		if len(f) >= 3 && f[0] == name {
			if n, ok := parseID(f[2]); ok {
				return n, nil
			}
		}
	}
	return 0, api.Invalid("image", "set USER's group to a number", fmt.Sprintf("group %q is not in the image's /etc/group", name))
}

// parseID takes ids that exist in a sandbox. 65535 stands for "no id" in old
// interfaces.
func parseID(s string) (int, bool) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n >= 65535 {
		return 0, false
	}
	return int(n), true
}

// maxAccounts bounds what is read of an image's passwd and group files.
const maxAccounts = 1 << 20

// fileLines reads a small file of the image from its topmost layer that has
// it, following no links; a file that is in no layer has no lines.
func fileLines(layers []string, rel string) ([]string, error) {
	for _, l := range layers {
		info, err := lstatNoFollow(l, rel)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("look into a layer: %w", err)
		}
		if !info.Mode().IsRegular() || info.Size() > maxAccounts { // a whiteout, a link, or nonsense
			return nil, nil
		}
		b, err := os.ReadFile(filepath.Join(l, rel))
		if err != nil {
			return nil, fmt.Errorf("read /%s of the image: %w", rel, err)
		}
		return strings.Split(string(b), "\n"), nil
	}
	return nil, nil
}
