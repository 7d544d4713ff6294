package stack

import (
	"fmt"
	"strings"
)

// substitute replaces ${NAME} and ${NAME:-default} by what lookup gives. "$$"
// stands for one "$"; a "$" before anything else is kept. A variable that is not
// set and has no default is an error: an empty gateway or image would go far
// before it failed. It works on one scalar, so a value cannot change the
// structure of the file.
func substitute(s string, lookup func(string) (string, bool)) (string, error) {
	if !strings.Contains(s, "$") {
		return s, nil
	}
	var out strings.Builder
	for {
		at := strings.IndexByte(s, '$')
		if at < 0 || at == len(s)-1 {
			out.WriteString(s)
			return out.String(), nil
		}
		out.WriteString(s[:at])
		s = s[at:]
		switch s[1] {
		case '$':
			out.WriteByte('$')
			s = s[2:]
		case '{':
			end := strings.IndexByte(s, '}')
			if end < 0 {
				return "", fmt.Errorf("%q has no closing brace", s)
			}
			v, err := expand(s[2:end], lookup)
			if err != nil {
				return "", err
			}
			out.WriteString(v)
			s = s[end+1:]
		default:
			out.WriteByte('$')
			s = s[1:]
		}
	}
}

func expand(expr string, lookup func(string) (string, bool)) (string, error) {
	name, def, hasDefault := strings.Cut(expr, ":-")
	if !variable(name) {
		return "", fmt.Errorf("${%s} is not a variable", expr)
	}
	if v, ok := lookup(name); ok && (v != "" || !hasDefault) {
		return v, nil
	}
	if hasDefault {
		return def, nil
	}
	return "", fmt.Errorf("the variable %s is not set", name)
}

func variable(s string) bool {
	for i, c := range s {
		letter := c == '_' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
		if !letter && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return s != ""
}
