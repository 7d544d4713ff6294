package proxy

import (
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/faasd-sec/faasd-sec/api"
)

// route is a Route, ready to match.
type route struct {
	*Route
	all        bool
	functions  map[api.FunctionName]bool
	namespaces map[string]bool
}

func compile(i int, r *Route) (*route, error) {
	at := func(name string) string { return fmt.Sprintf("routes[%d].%s", i, name) }
	out := &route{Route: r, functions: make(map[api.FunctionName]bool), namespaces: make(map[string]bool)}
	if len(r.Functions) == 0 {
		return nil, api.Invalid(at("functions"), `name them, or write ["*"] for all`, "the route has none")
	}
	for j, s := range r.Functions {
		if s == "*" {
			out.all = true
			continue
		}
		probe := s
		ns, wild := strings.CutPrefix(s, "*.")
		if wild {
			probe = "any." + ns
		}
		fn, err := api.ParseFunctionName(probe)
		if err != nil {
			return nil, api.Invalid(fmt.Sprintf("routes[%d].functions[%d]", i, j), `write NAME, NAME.NAMESPACE, "*.NAMESPACE" or "*"`, fmt.Sprintf("%q is none of them", s))
		}
		if wild {
			out.namespaces[ns] = true
		} else {
			out.functions[fn] = true
		}
	}
	for j, m := range r.Methods {
		if m == "" || m != strings.ToUpper(m) || refusedMethod(m) {
			return nil, api.Invalid(fmt.Sprintf("routes[%d].methods[%d]", i, j), "write methods in capitals, as in GET", fmt.Sprintf("%q is not served", m))
		}
	}
	for j, p := range r.Paths {
		bare := strings.TrimSuffix(p, "/*")
		if p == "" || p[0] != '/' || strings.ContainsAny(bare, "*?#%") || !plainPath(strings.TrimSuffix(bare, "/")+"/") {
			return nil, api.Invalid(fmt.Sprintf("routes[%d].paths[%d]", i, j), `write "/a", or "/a/*" for all that is below too`, fmt.Sprintf("%q is not such a path", p))
		}
	}
	if r.Timeout <= 0 || r.Timeout > maxTimeout {
		return nil, api.Invalid(at("timeout"), "write up to 24h", r.Timeout.String()+" is out of range")
	}
	return out, checkNeeds(i, r)
}

// refusedMethod are those that mean the connection and not a resource.
func refusedMethod(m string) bool { return m == "CONNECT" || m == "TRACE" }

// admits reports whether the route takes a request; path is escaped.
func (r *route) admits(fn api.FunctionName, method, path string) bool {
	if !r.all && !r.functions[fn] && !r.namespaces[fn.Namespace()] {
		return false
	}
	if len(r.Methods) > 0 && !slices.Contains(r.Methods, method) {
		return false
	}
	return len(r.Paths) == 0 || r.path(path)
}

// path compares what the function will make of a path. Where two readers could
// make different paths of it, it is none of the list.
func (r *route) path(escaped string) bool {
	p, err := url.PathUnescape(escaped)
	if err != nil || strings.Contains(strings.ToLower(escaped), "%2f") {
		return false
	}
	if again, err := url.PathUnescape(p); err == nil && again != p {
		return false // some readers unescape twice
	}
	if p == "" {
		p = "/"
	}
	if !plainPath(p) {
		return false
	}
	for _, want := range r.Paths {
		below, wild := strings.CutSuffix(want, "/*")
		if p == want || wild && (p == below || strings.HasPrefix(p, below+"/")) {
			return true
		}
	}
	return false
}

// plainPath reports whether p has no segment that is empty, "." or "..", but for
// one slash at the end, and nothing that a reader may take for a separator.
func plainPath(p string) bool {
	if strings.ContainsAny(p, "\\;\x00") {
		return false
	}
	for i, s := range strings.Split(strings.TrimSuffix(p, "/"), "/") {
		if i > 0 && s == "" || s == "." || s == ".." {
			return false
		}
	}
	return true
}
