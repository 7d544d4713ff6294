package proxy

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/valyala/fasthttp"
	"go.yaml.in/yaml/v3"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/client"
	"github.com/faasd-sec/faasd-sec/manifest"
)

// Need is what is asked for of one field of a manifest, as people write it.
type Need struct {
	Field  manifest.Field
	Values []string
}

// words are one value of a file, or a list of them.
type words []string

// UnmarshalYAML implements yaml.Unmarshaler.
func (w *words) UnmarshalYAML(n *yaml.Node) error {
	if n.Kind == yaml.SequenceNode {
		return n.Decode((*[]string)(w))
	}
	var one string
	if err := n.Decode(&one); err != nil {
		return err
	}
	*w = words{one}
	return nil
}

// needs reads what a route's file says.
func (f *fileRoute) needs(i int, r *Route) error {
	for name, values := range f.Needs {
		at := fmt.Sprintf("routes[%d].needs.%s", i, name)
		field, err := manifest.ParseField(at, name)
		if err != nil {
			return err
		}
		r.Needs = append(r.Needs, Need{field, values})
	}
	for j, name := range f.Overridable {
		field, err := manifest.ParseField(fmt.Sprintf("routes[%d].overridable[%d]", i, j), name)
		if err != nil {
			return err
		}
		r.Overridable = append(r.Overridable, field)
	}
	return nil
}

// checkNeeds refuses a route whose needs no task could have.
func checkNeeds(i int, r *Route) error {
	var n client.Needs
	var seen []manifest.Field
	for _, x := range r.Needs {
		at := fmt.Sprintf("routes[%d].needs.%s", i, x.Field)
		if slices.Contains(seen, x.Field) {
			return api.Invalid(at, "write it once", "it is there twice")
		}
		seen = append(seen, x.Field)
		if err := n.Set(x.Field, at, x.Values, time.Now()); err != nil {
			return err
		}
	}
	return nil
}

// asked are the values of a request's headers for one field, and the name that it
// wrote.
type asked struct {
	header string
	values []string
}

// needs is what a request asks for: its route's needs, and in place of these what
// its headers say, where the route lets them. It is nil where there is nothing.
func (x *exchange) needs(r *Route) (*client.Needs, error) {
	headers, err := needHeaders(&x.ctx.Request.Header)
	if err != nil || len(headers)+len(r.Needs) == 0 {
		return nil, err
	}
	out := new(client.Needs)
	for _, n := range r.Needs {
		if err := out.Set(n.Field, n.Field.String(), n.Values, x.began); err != nil {
			return nil, err
		}
	}
	for field, a := range headers {
		if !slices.Contains(r.Overridable, field) {
			return nil, &api.Error{Code: api.CodeForbidden, Field: a.header, Message: fmt.Sprintf("route %q lets no request ask for it", r.Name),
				Remedy: "leave it out, or list it under overridable of that route in the proxy's configuration"}
		}
		if err := out.Set(field, a.header, a.values, x.began); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// needHeaders collects the headers that ask for something. What would ask for it in
// a way that is not the proxy's is refused: to drop it would be to serve without.
func needHeaders(h *fasthttp.RequestHeader) (map[manifest.Field]asked, error) {
	var out map[manifest.Field]asked
	for k, v := range h.All() {
		header := string(k)
		name, ok := cutPrefixFold(header, api.HeaderNeedPrefix)
		if !ok {
			if strings.EqualFold(header, api.HeaderNeeds) || strings.EqualFold(header, api.HeaderManifest) {
				return nil, api.Invalid(header, "write a header for each need, as in "+api.HeaderNeedPrefix+"Cpu: 500m", "the proxy seals manifests itself")
			}
			continue
		}
		field, err := manifest.ParseField(header, strings.ToLower(name))
		if err != nil {
			return nil, api.Invalid(header, "end it in one of "+strings.Join(client.NeedNames(), ", "), fmt.Sprintf("%q is no field of a manifest", name))
		}
		if out == nil {
			out = make(map[manifest.Field]asked)
		}
		a := out[field]
		a.header = header
		if client.NeedIsList(field) { // HTTP lets whoever passes headers on join them with commas
			for s := range strings.SplitSeq(string(v), ",") {
				if s = strings.TrimSpace(s); s != "" {
					a.values = append(a.values, s)
				}
			}
		} else {
			a.values = append(a.values, strings.TrimSpace(string(v)))
		}
		out[field] = a
	}
	return out, nil
}

func cutPrefixFold(s, prefix string) (string, bool) {
	if len(s) < len(prefix) || !strings.EqualFold(s[:len(prefix)], prefix) {
		return "", false
	}
	return s[len(prefix):], true
}
