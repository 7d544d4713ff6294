package api

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// What a plain function gets that does not say.
const (
	DefaultPlainCPU    = 500       // millicores
	DefaultPlainMemory = 256 << 20 // bytes
	DefaultPlainPIDs   = 256

	maxPlainEnv     = 64 << 10 // bytes of names and values: with the image's they are one message to the launcher
	maxPlainSecrets = 64
)

// AnnotationStartTimeout is how long a plain function may take from its process's
// start until it is ready: a Go duration.
const AnnotationStartTimeout = "com.faasd-sec.start-timeout"

// PlainSettings is what a Plain means.
type PlainSettings struct {
	Resources                Resources     // limits of a sandbox, which are what is reserved; Storage is 0 where the root is read-only
	Read, Write, Exec, Start time.Duration // see DefaultReadTimeout and following
	MaxInFlight              int           // invocations at once in one sandbox
	Require                  []Requirement // on labels of nodes
	Archs                    []string      // GOARCHs of which the node has one; empty for any
}

// Settle checks p and says what it means. A value that does not parse is an error
// that names its field, never a default.
func (p *Plain) Settle() (PlainSettings, error) {
	s := PlainSettings{MaxInFlight: DefaultMaxInFlight}
	if strings.TrimSpace(p.Image) == "" || strings.ContainsAny(p.Image, " \t\n") {
		return s, Invalid("image", "name an image, as in ghcr.io/openfaas/figlet:latest", fmt.Sprintf("%q is none", p.Image))
	}
	for _, check := range []func(*Plain) error{s.limits, s.times, s.inFlight, s.constraints, checkEnv, checkSecrets} {
		if err := check(p); err != nil {
			return s, err
		}
	}
	return s, nil
}

func (s *PlainSettings) limits(p *Plain) error {
	asked, limit := Resources{}, Resources{}
	for _, v := range []struct {
		from  *PlainAmounts
		field string
		to    *Resources
	}{{p.Limits, "limits", &limit}, {p.Requests, "requests", &asked}} {
		if v.from == nil {
			continue
		}
		var err error
		if v.from.CPU != "" {
			if v.to.CPU, err = ParseCPU(v.field+".cpu", v.from.CPU); err != nil {
				return err
			}
		}
		if v.from.Memory != "" {
			if v.to.Memory, err = ParseBytes(v.field+".memory", v.from.Memory); err != nil {
				return err
			}
		}
	}
	const remedy = "ask for no more than the limit"
	switch {
	case limit.CPU > 0 && asked.CPU > limit.CPU:
		return Invalid("requests.cpu", remedy, "it is above limits.cpu")
	case limit.Memory > 0 && asked.Memory > limit.Memory:
		return Invalid("requests.memory", remedy, "it is above limits.memory")
	}
	if limit.CPU == 0 {
		limit.CPU = max(DefaultPlainCPU, asked.CPU)
	}
	if limit.Memory == 0 {
		limit.Memory = max(DefaultPlainMemory, asked.Memory)
	}
	limit.PIDs = DefaultPlainPIDs
	limit.Tmp = min(DefaultTmpBytes, limit.Memory/4)
	if !p.ReadOnlyRoot {
		limit.Storage = min(DefaultTmpBytes, limit.Memory/4)
	}
	s.Resources = limit
	return nil
}

func (s *PlainSettings) times(p *Plain) error {
	var err error
	for _, v := range []struct {
		name string
		to   *time.Duration
		def  time.Duration
	}{{"read_timeout", &s.Read, DefaultReadTimeout}, {"write_timeout", &s.Write, DefaultWriteTimeout}} {
		if *v.to, err = plainTimeout("environment."+v.name, p.Env[v.name], v.def); err != nil {
			return err
		}
	}
	// Who raised the other two and no more means that the function takes so long.
	if s.Exec, err = plainTimeout("environment.exec_timeout", p.Env["exec_timeout"], max(DefaultExecTimeout, s.Read, s.Write)); err != nil {
		return err
	}
	s.Start, err = plainTimeout("annotations."+AnnotationStartTimeout, p.Annotations[AnnotationStartTimeout], DefaultStartTimeout)
	return err
}

// plainTimeout reads "30s", or "30" as older watchdogs do. 0, which is without
// limit to a watchdog, is the longest that there is here.
func plainTimeout(field, text string, def time.Duration) (time.Duration, error) {
	if text == "" {
		return def, nil
	}
	d, err := time.ParseDuration(text)
	if seconds, serr := strconv.ParseUint(text, 10, 31); serr == nil {
		d, err = time.Duration(seconds)*time.Second, nil
	}
	if err != nil || d < 0 || d > MaxTimeout {
		return 0, Invalid(field, `write a duration of at most 24h, as in "30s"`, fmt.Sprintf("%q is none", text))
	}
	if d == 0 {
		d = MaxTimeout
	}
	return d, nil
}

func (s *PlainSettings) inFlight(p *Plain) error {
	text := p.Env["max_inflight"]
	if text == "" {
		return nil
	}
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return Invalid("environment.max_inflight", "write a number of 0 (the default) to 65535", fmt.Sprintf("%q is none", text))
	}
	if n > 0 {
		s.MaxInFlight = int(n)
	}
	return nil
}

func (s *PlainSettings) constraints(p *Plain) error {
	for i, text := range p.Constraints {
		r, err := parseConstraint(fmt.Sprintf("constraints[%d]", i), text)
		if err != nil {
			return err
		}
		switch r.Key {
		case "node.platform.arch", "kubernetes.io/arch", "beta.kubernetes.io/arch":
			if r.Op != OpEquals {
				return Invalid(fmt.Sprintf("constraints[%d]", i), "name the architecture that it must be", "an architecture can be compared with = alone")
			}
			s.Archs = append(s.Archs, goarch(r.Value))
		default:
			s.Require = append(s.Require, r)
		}
	}
	if len(s.Archs) > 1 {
		return Invalid("constraints", "name one architecture", "two are named, and all constraints must hold")
	}
	return nil
}

// parseConstraint reads "key=value", "key == value" and "key != value"; the prefix
// that Swarm gives to a node's labels is dropped.
func parseConstraint(field, text string) (Requirement, error) {
	bad := func(why string) (Requirement, error) {
		return Requirement{}, Invalid(field, `write "zone=a" or "zone != a"`, fmt.Sprintf("%q %s", text, why))
	}
	key, value, found := strings.Cut(text, "=")
	if !found {
		return bad("compares nothing")
	}
	r := Requirement{Op: OpEquals}
	if k, ok := strings.CutSuffix(key, "!"); ok {
		key, r.Op = k, OpDiffers
	} else {
		value = strings.TrimPrefix(value, "=")
	}
	r.Key = strings.TrimPrefix(strings.TrimSpace(key), "node.labels.")
	r.Value = strings.TrimSpace(value)
	if r.Key == "" || strings.ContainsAny(r.Key, " !=<>") || strings.ContainsAny(r.Value, " !=<>") {
		return bad("is no comparison of a label with a value")
	}
	return r, nil
}

func goarch(s string) string {
	switch s {
	case "x86_64":
		return "amd64"
	case "aarch64":
		return "arm64"
	}
	return s
}

func checkEnv(p *Plain) error {
	size := len(p.EnvProcess)
	for k, v := range p.Env {
		if k == "" || strings.ContainsAny(k, "=\x00") || strings.ContainsRune(v, 0) {
			return Invalid("environment", "name variables without '=' and NUL", fmt.Sprintf("%q cannot be a variable", k))
		}
		size += len(k) + len(v) + 2
	}
	if size > maxPlainEnv {
		return Invalid("environment", "put large values into the image or a secret", fmt.Sprintf("%d bytes, at most %d", size, maxPlainEnv))
	}
	return nil
}

func checkSecrets(p *Plain) error {
	if len(p.Secrets) > maxPlainSecrets {
		return Invalid("secrets", "use fewer", fmt.Sprintf("%d, at most %d", len(p.Secrets), maxPlainSecrets))
	}
	for _, name := range p.Secrets {
		if err := CheckSecretName(name); err != nil {
			return err
		}
	}
	return nil
}

// CheckSecretName takes names that are file names, as Kubernetes and OpenFaaS do:
// letters, digits, '-', '_' and '.', beginning with a letter or digit.
func CheckSecretName(name string) error {
	ok := len(name) > 0 && len(name) <= 253
	for i := 0; ok && i < len(name); i++ {
		c := name[i]
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		ok = letter || i > 0 && (c == '-' || c == '_' || c == '.')
	}
	if !ok {
		return Invalid("secret", "use letters, digits, '-', '_' and '.', beginning with a letter or digit", fmt.Sprintf("%q cannot be a name", name))
	}
	return nil
}
