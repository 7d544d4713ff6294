package stack

import (
	"fmt"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/faasd-sec/faasd-sec/api"
)

var sealedFields = []string{"mode", "upstream", "bundle", "bundle_path", "callers", "pids", "tmp", "read_bps", "write_bps",
	"timeouts", "max_inflight", "idle", "attestation", "max_queued"}

var (
	fingerprint  = regexp.MustCompile(`^[0-9a-f]{64}$`)
	evidenceType = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
)

func (p *parser) sealed(fn *Function, n *yaml.Node, field string) error {
	entries, err := p.mapping(n, field, sealedFields)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := p.sealedField(fn, e); err != nil {
			return err
		}
	}
	return nil
}

func (p *parser) sealedField(fn *Function, e pair) (err error) {
	switch e.key {
	case "mode":
		fn.Mode, err = p.choice(e.node, e.field, "http", "serializing", "streaming")
	case "upstream":
		fn.Upstream, err = p.upstream(e.node, e.field)
	case "bundle":
		fn.Bundle, err = p.relative(e.node, e.field)
	case "bundle_path":
		fn.BundlePath, err = p.absolute(e.node, e.field)
	case "callers":
		fn.Callers, err = p.callers(e.node, e.field)
	case "pids":
		var v int
		v, err = p.count(e.node, e.field, minPIDs, 1<<22)
		fn.Resources.PIDs = int64(v)
	case "tmp":
		fn.Resources.Tmp, err = p.quantity(e.node, e.field, api.ParseBytes)
	case "read_bps":
		fn.Resources.ReadBps, err = p.quantity(e.node, e.field, api.ParseBytes)
	case "write_bps":
		fn.Resources.WriteBps, err = p.quantity(e.node, e.field, api.ParseBytes)
	case "timeouts":
		err = p.timeouts(fn, e.node, e.field)
	case "max_inflight":
		fn.MaxInFlight, err = p.count(e.node, e.field, 1, 65536)
	case "idle":
		fn.Idle, err = p.duration(e.node, e.field)
	case "max_queued":
		fn.MaxQueued, err = p.duration(e.node, e.field)
	case "attestation":
		fn.Attestation, err = p.attestation(e.node, e.field)
	}
	return err
}

// upstream admits the function's own loopback or socket alone.
func (p *parser) upstream(n *yaml.Node, field string) (string, error) {
	s, err := p.text(n, field)
	if err != nil {
		return "", err
	}
	s = strings.TrimRight(s, "/")
	port, ok := strings.CutPrefix(s, "http://127.0.0.1:")
	v, perr := strconv.ParseUint(port, 10, 16)
	if s != "unix" && (!ok || perr != nil || v == 0 || strconv.FormatUint(v, 10) != port) {
		return "", p.at(resolve(n), field, `write "unix" or "http://127.0.0.1:8080"`, "%q is not where a function can listen", s)
	}
	return s, nil
}

func (p *parser) absolute(n *yaml.Node, field string) (string, error) {
	s, err := p.text(n, field)
	if err != nil {
		return "", err
	}
	if !path.IsAbs(s) || path.Clean(s) != s || s == "/" {
		return "", p.at(resolve(n), field, `write a path such as "/function"`, "%q is not a clean absolute path below /", s)
	}
	return s, nil
}

func (p *parser) callers(n *yaml.Node, field string) (Callers, error) {
	var c Callers
	list, nodes, err := p.list(n, field, true)
	if err != nil {
		return c, err
	}
	for i, s := range list {
		at := fmt.Sprintf("%s[%d]", field, i)
		switch {
		case s == "any" && len(list) > 1:
			return c, p.at(nodes[i], at, "write \"any\" alone, or list who may call", "\"any\" stands among others")
		case s == "any":
			c.Any = true
		case s == "owner":
			c.Owner = true
		case !fingerprint.MatchString(s):
			return c, p.at(nodes[i], at, "write \"owner\", \"any\", or the fingerprint that faasd-sec key show prints", "%q is not a caller", s)
		case slices.Contains(c.Listed, s):
			return c, p.at(nodes[i], at, "remove one of the two", "the fingerprint is listed twice")
		default:
			c.Listed = append(c.Listed, s)
		}
	}
	return c, nil
}

func (p *parser) attestation(n *yaml.Node, field string) ([]string, error) {
	list, nodes, err := p.list(n, field, true)
	if err != nil {
		return nil, err
	}
	if len(list) == 0 {
		return nil, p.at(resolve(n), field, `write at least one type, as in ["node-key"]`, "with no type of evidence no machine would get the keys")
	}
	for i, s := range list {
		if !evidenceType.MatchString(s) || slices.Contains(list[:i], s) {
			return nil, p.at(nodes[i], fmt.Sprintf("%s[%d]", field, i), `write each type once, as in ["node-key"]`, "%q is not a type of evidence, or is listed twice", s)
		}
	}
	return list, nil
}

func (p *parser) timeouts(fn *Function, n *yaml.Node, field string) error {
	entries, err := p.mapping(n, field, []string{"read", "write", "exec", "start"})
	if err != nil {
		return err
	}
	for _, e := range entries {
		d, err := p.duration(e.node, e.field)
		if err != nil {
			return err
		}
		switch e.key {
		case "read":
			fn.Read = d
		case "write":
			fn.Write = d
		case "exec":
			fn.Exec = d
		case "start":
			fn.Start = d
		}
	}
	return nil
}
