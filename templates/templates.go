// Package templates makes new functions: a directory with a function.yml, a
// handler and a test that runs with the language's own tools.
//
// It promises that nothing that is there is overwritten, and that a function as it
// is made passes its test, builds, deploys and answers: each is tested so.
package templates

import (
	"bytes"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/template"

	"github.com/faasd-sec/faasd-sec/api"
)

// Files end in suffix, so that the compiler leaves those of Go alone.
const suffix = ".tmpl"

//go:embed go shell python node
var files embed.FS

// languages have a directory each. Its name is the language's.
var languages = map[string]string{"go": "go test ./...", "node": "node --test", "python": "python3 -m unittest", "shell": "sh test.sh"}

// Languages lists what functions can be written in.
func Languages() []string {
	out := make([]string, 0, len(languages))
	for l := range languages {
		out = append(out, l)
	}
	slices.Sort(out)
	return out
}

// Test is the command that tests a function of a language, in its directory.
func Test(language string) string { return languages[language] }

// values are what templates may name.
type values struct {
	Name      string // as a person writes it
	Function  string // without its namespace
	Namespace string
}

// Write makes the function in dir, which may exist if it is empty. It returns the
// files' names, below dir. After an error what was written is removed again.
func Write(dir, language string, name api.FunctionName) (_ []string, retErr error) {
	if languages[language] == "" {
		return nil, api.Invalid("--lang", "choose "+strings.Join(Languages(), ", "), fmt.Sprintf("%q has no template", language))
	}
	made := os.Mkdir(dir, 0o755) == nil
	if !made {
		entries, err := os.ReadDir(dir)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil, api.Invalid("--dir", "create the directory above it", dir+" cannot be made")
		case err != nil:
			return nil, fmt.Errorf("new function: %w", err)
		case len(entries) > 0:
			return nil, &api.Error{Code: api.CodeConflict, Field: "--dir", Message: dir + " is not empty, and nothing is overwritten", Remedy: "choose another name or directory"}
		}
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("new function: %w", err)
	}
	defer root.Close()
	var done []string // files and directories, in order
	defer func() {
		if retErr == nil {
			return
		}
		for _, p := range slices.Backward(done) {
			_ = root.Remove(p) // retErr says what went wrong
		}
		if made {
			_ = os.Remove(dir)
		}
	}()
	var names []string
	v := values{Name: name.Short(), Function: name.Function(), Namespace: name.Namespace()}
	err = fs.WalkDir(files, language, func(p string, e fs.DirEntry, err error) error {
		if err != nil || p == language {
			return err
		}
		to := strings.TrimSuffix(strings.TrimPrefix(p, language+"/"), suffix)
		if to == "gitignore" {
			to = ".gitignore" // which embed leaves out
		}
		if e.IsDir() {
			err = root.Mkdir(to, 0o755)
		} else {
			names = append(names, to)
			err = write(root, p, to, v)
		}
		if err == nil {
			done = append(done, to)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("new function: %w", err)
	}
	return names, nil
}

func write(root *os.Root, from, to string, v values) error {
	b, err := files.ReadFile(from)
	if err != nil {
		return err
	}
	t, err := template.New(from).Parse(string(b))
	if err != nil {
		return err
	}
	var out bytes.Buffer
	if err := t.Execute(&out, v); err != nil {
		return err
	}
	mode := fs.FileMode(0o644)
	if filepath.Ext(to) == ".sh" {
		mode = 0o755
	}
	f, err := root.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(out.Bytes())
	return errors.Join(err, f.Close())
}
