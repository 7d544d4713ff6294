package stack

import (
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/faasd-sec/faasd-sec/api"
)

// at makes an error of one place: "file:line:column: message", with the field's
// path and a remedy.
func (p *parser) at(n *yaml.Node, field, remedy, format string, args ...any) error {
	return &api.Error{Code: api.CodeInvalid, Field: field, Remedy: remedy,
		Message: fmt.Sprintf("%s:%d:%d: %s", p.path, n.Line, n.Column, fmt.Sprintf(format, args...))}
}

// unknown refuses a field and guesses what was meant.
func (p *parser) unknown(n *yaml.Node, field string, known []string) error {
	remedy := "known here: " + strings.Join(known, ", ")
	name := field[strings.LastIndexByte(field, '.')+1:]
	if guess := nearest(name, known); guess != "" {
		remedy = fmt.Sprintf("did you mean %q?", guess)
	}
	return p.at(n, field, remedy, "unknown field %q", name)
}

// nearest is the known word at the least edit distance, if it is near enough.
func nearest(s string, known []string) string {
	best, limit := "", min(max(1, len(s)/3)+1, len(s))
	for _, k := range slices.Sorted(slices.Values(known)) {
		if d := distance(strings.ToLower(s), k); d < limit {
			best, limit = k, d
		}
	}
	return best
}

// distance is Levenshtein's, over bytes.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}
