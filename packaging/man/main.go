// Command man writes the manual pages of the daemons, section 8, from what each
// prints for -h: there is no second list of flags that could differ.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// daemons and what each is, for the NAME section.
var daemons = []struct{ name, what, text string }{
	{"coordinator", "gateway, placement and state of a cluster",
		"Takes sealed invocations over HTTP, chooses a node for each from what it can see without opening it, and passes the same bytes on. It keeps what owners deployed, and the registry of images and sealed bundles."},
	{"keybroker", "releases function keys to attested sandboxes",
		"Keeps deposits of function keys for their owners and releases them, sealed to a sandbox's own key, against evidence that the owner's policy accepts."},
	{"manifest-opener", "opens what tasks need for the coordinator of the same machine",
		"Opens sealed manifests and answers with the parsed needs alone, so that the coordinator links no code that opens messages."},
	{"node", "runs sealed functions on this machine's containerd",
		"Lends a part of the machine to functions: gossips what is free, admits or refuses exactly, keeps sandboxes ready, binds them, enforces limits."},
}

func main() {
	bin := flag.String("bin", "bin", "`directory` of the daemons")
	dir := flag.String("dir", "", "`directory` for the pages")
	flag.Parse()
	if err := run(*bin, *dir); err != nil {
		fmt.Fprintln(os.Stderr, "man: error:", err)
		os.Exit(1)
	}
}

func run(bin, dir string) error {
	if dir == "" {
		return fmt.Errorf("-dir is missing: name a directory for the pages")
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, d := range daemons {
		usage, err := usageOf(filepath.Join(bin, d.name))
		if err != nil {
			return err
		}
		page := "faasd-sec-" + d.name
		var b strings.Builder
		fmt.Fprintf(&b, ".TH %s 8 \"\" faasd-sec faasd-sec\n.SH NAME\n%s \\- %s\n", strings.ToUpper(page), page, roff(d.what))
		fmt.Fprintf(&b, ".SH SYNOPSIS\n.B /usr/lib/faasd-sec/%s\n[flags]\n.SH DESCRIPTION\n%s\n.SH OPTIONS\n%s", d.name, roff(d.text), options(usage))
		fmt.Fprintf(&b, ".SH FILES\n.TP\n.I /etc/faasd-sec/%s.env\nFlags, as the unit passes them on.\n.TP\n.I /var/lib/faasd-sec/%s\nState.\n", d.name, d.name)
		fmt.Fprintf(&b, ".SH SEE ALSO\n.BR faasd-sec (1),\n.I /usr/share/doc/faasd-sec/operations.md\n")
		if err := os.WriteFile(filepath.Join(dir, page+".8"), []byte(b.String()), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// usageOf is what a daemon prints of its flags. The exit code for -h is the
// daemon's own matter.
func usageOf(path string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, "-h").CombinedOutput()
	if !strings.Contains(string(out), "Usage of ") {
		return "", fmt.Errorf("%s -h printed no flags: %w", path, err)
	}
	return string(out), nil
}

// options turns the output of package flag, a line "  -name value" and indented
// lines of text after it, into tagged paragraphs.
func options(usage string) string {
	var b strings.Builder
	for _, line := range strings.Split(usage, "\n") {
		switch {
		case strings.HasPrefix(line, "  -"):
			head, text, oneLine := strings.Cut(strings.TrimSpace(line), "\t")
			fmt.Fprintf(&b, ".TP\n.B %s\n", roff(head))
			if oneLine {
				fmt.Fprintln(&b, roff(strings.TrimSpace(text)))
			}
		case strings.HasPrefix(line, "    "):
			fmt.Fprintln(&b, roff(strings.TrimSpace(line)))
		}
	}
	return b.String()
}

// roff escapes text: backslashes, hyphens that are to be copied, and lines that
// would be requests.
func roff(s string) string {
	s = strings.NewReplacer(`\`, `\e`, "-", `\-`).Replace(s)
	if strings.HasPrefix(s, ".") || strings.HasPrefix(s, "'") {
		s = `\&` + s
	}
	return s
}
