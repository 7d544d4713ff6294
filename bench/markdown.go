package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// num prints a figure with three digits or more.
func num(v float64) string {
	switch {
	case v >= 1000:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

// higherIsBetter tells rates from times and sizes by the unit.
func higherIsBetter(unit string) bool {
	return strings.HasSuffix(unit, "/s") && !strings.HasPrefix(unit, "B/")
}

// markdown is the run as tables, one for each section.
func (r *report) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n", r.Machine)
	var order []string
	rows := map[string][]row{}
	for _, w := range r.Rows {
		g := r.places[w.Name]
		if rows[g] == nil {
			order = append(order, g)
		}
		rows[g] = append(rows[g], w)
	}
	for _, g := range order {
		fmt.Fprintf(&b, "\n### %s\n\n| row | unit | better | n | min | median | p99 | p99 / median | floor | floor's median | ratio |\n|---|---|---|---|---|---|---|---|---|---|---|\n", g)
		for _, w := range rows[g] {
			better, tail, floor, times := "lower", "", "", ""
			if higherIsBetter(w.Unit) {
				better = "higher"
			}
			if t := ratio(w.P99, w.Median); t != nil && w.N > 1 {
				tail = fmt.Sprintf("%.2f", *t)
			}
			if w.Ratio != nil {
				floor, times = num(*w.FloorMedian), fmt.Sprintf("**%.2f**", *w.Ratio)
			}
			fmt.Fprintf(&b, "| %s | %s | %s | %d | %s | %s | %s | %s | %s | %s | %s |\n",
				w.Name, w.Unit, better, w.N, num(w.Min), num(w.Median), num(w.P99), tail, w.Floor, floor, times)
		}
	}
	r.againstKernel(&b)
	notes(&b, "Not measured in this run", r.absent)
	notes(&b, "Failed in this run", r.failed)
	return b.String()
}

// againstKernel compares cold starts with the other floor that they have.
func (r *report) againstKernel(b *strings.Builder) {
	var lines []string
	for _, lang := range []string{"c", "go"} {
		floor, ok := r.named("cold/clone-floor/" + lang)
		hit, there := r.named("cold/pool-hit/" + lang)
		if !ok || !there {
			continue
		}
		if times := ratio(hit.Median, floor.Median); times != nil {
			lines = append(lines, fmt.Sprintf("- `cold/pool-hit/%s` is %.2f times `cold/clone-floor/%s`, %s ms more", lang, *times, lang, num(hit.Median-floor.Median)))
		}
	}
	if len(lines) > 0 {
		fmt.Fprintf(b, "\n### cold starts against the kernel alone\n\n%s\n", strings.Join(lines, "\n"))
	}
}

func notes(b *strings.Builder, title string, list []note) {
	if len(list) == 0 {
		return
	}
	fmt.Fprintf(b, "\n### %s\n\n", title)
	for _, n := range list {
		fmt.Fprintf(b, "- `%s`: %s\n", n.Row, strings.ReplaceAll(n.Why, "\n", " "))
	}
}

// What a program writes into the document stands between these lines.
const (
	markBegin = "<!-- begin: written by make bench -->"
	markEnd   = "<!-- end: written by make bench -->"
)

// between replaces what stands between the marks of a document.
func between(doc, text string) (string, error) {
	head, rest, ok := strings.Cut(doc, markBegin)
	_, tail, ended := strings.Cut(rest, markEnd)
	if !ok || !ended {
		return "", fmt.Errorf("no lines %q and %q in that order", markBegin, markEnd)
	}
	return head + markBegin + "\n\n" + strings.TrimSpace(text) + "\n\n" + markEnd + tail, nil
}

// document writes the tables into the document, and the plots into the
// directory beside it that has the document's name.
func (r *report) document(path string) error {
	old, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("document: %w", err)
	}
	plots := r.plots()
	dir := strings.TrimSuffix(path, filepath.Ext(path))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("document: %w", err)
	}
	text := &strings.Builder{}
	for _, p := range plots {
		if err := replaceFile(filepath.Join(dir, p.file), []byte(p.svg)); err != nil {
			return err
		}
		fmt.Fprintf(text, "![%s](%s/%s)\n\n", p.title, filepath.Base(dir), p.file)
	}
	text.WriteString(r.markdown())
	text2, err := between(string(old), text.String())
	if err != nil {
		return fmt.Errorf("document %s: %w", path, err)
	}
	return replaceFile(path, []byte(text2))
}
