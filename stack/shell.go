package stack

import (
	"errors"
	"strings"
)

// split cuts a command line into arguments as a shell would, with single and
// double quotes and backslashes, and without any expansion.
func split(s string) ([]string, error) {
	var (
		out   []string
		word  strings.Builder
		open  bool // a word has begun, be it empty
		quote byte
	)
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c == '\\' && quote != '\'':
			i++
			if i == len(s) {
				return nil, errors.New("it ends in a backslash")
			}
			if quote == '"' && !strings.ContainsRune(`"\$`, rune(s[i])) {
				word.WriteByte('\\')
			}
			word.WriteByte(s[i])
			open = true
		case quote != 0 && c == quote:
			quote = 0
		case quote != 0:
			word.WriteByte(c)
		case c == '\'' || c == '"':
			quote, open = c, true
		case c == ' ' || c == '\t' || c == '\n':
			if open {
				out = append(out, word.String())
				word.Reset()
				open = false
			}
		default:
			word.WriteByte(c)
			open = true
		}
	}
	if quote != 0 {
		return nil, errors.New("a quote is not closed")
	}
	if open {
		out = append(out, word.String())
	}
	return out, nil
}
