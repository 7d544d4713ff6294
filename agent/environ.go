package agent

import (
	"strings"

	"github.com/faasd-sec/faasd-sec/sealed"
)

const envPrefix = "Http_"

// requestEnv describes a request in environment variables, with the names that
// OpenFaaS's classic watchdog uses: Http_Method, Http_Path, Http_Query,
// Http_ContentLength, and Http_Name_Of_Header for each header. The prefix keeps
// a caller from setting anything else, such as LD_PRELOAD.
func requestEnv(h *sealed.RequestHead) []string {
	env := make([]string, 0, 8+len(h.Header))
	path := h.Path
	if path == "" {
		path = "/"
	}
	env = append(env, envPrefix+"Method="+h.Method, envPrefix+"Path="+path)
	if h.Query != "" {
		env = append(env, envPrefix+"Query="+h.Query)
	}
	seen := map[string]bool{"Method": true, "Path": true, "Query": true, "ContentLength": true}
	for _, f := range h.Header {
		name, ok := envName(f.Name)
		if !ok || seen[name] || strings.ContainsRune(f.Value, 0) {
			continue // the first of a repeated header counts, as there
		}
		seen[name] = true
		env = append(env, envPrefix+name+"="+f.Value)
		if f.Name == "content-length" {
			env = append(env, envPrefix+"ContentLength="+f.Value)
		}
	}
	return env
}

// envName is "Content_Type" for "content-type"; not ok for a name that has
// more than letters, digits and '-'.
func envName(header string) (string, bool) {
	b := []byte(header)
	upper := true
	for i, c := range b {
		switch {
		case 'a' <= c && c <= 'z':
			if upper {
				b[i] = c - 'a' + 'A'
			}
			upper = false
		case 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
			upper = false
		case c == '-':
			b[i], upper = '_', true
		default:
			return "", false
		}
	}
	return string(b), len(b) > 0
}

// lookupEnv finds a variable in a list of "K=V".
func lookupEnv(env []string, key string) (string, bool) {
	for _, kv := range env {
		if k, v, _ := strings.Cut(kv, "="); k == key {
			return v, true
		}
	}
	return "", false
}
