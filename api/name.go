package api

import (
	"fmt"
	"strings"
)

// DefaultNamespace is the namespace of a function that names none. It is the
// one OpenFaaS uses, so that its users find their functions where they expect.
const DefaultNamespace = "openfaas-fn"

// MaxNameLen is the longest full name, "function.namespace", in bytes. The
// sealed envelope carries its length in one byte.
const MaxNameLen = 255

// FunctionName is a full function name, "function.namespace": lower-case
// letters, digits, '-' and exactly one '.'.
type FunctionName string

// ParseFunctionName reads "function" or "function.namespace". A missing
// namespace becomes DefaultNamespace. The error is an *Error with CodeInvalid
// that says which character or part is wrong.
func ParseFunctionName(s string) (FunctionName, error) {
	name, ns, dotted := strings.Cut(s, ".")
	if !dotted {
		ns = DefaultNamespace
	}
	if err := checkLabel("function name", name); err != nil {
		return "", err
	}
	if err := checkLabel("namespace", ns); err != nil {
		return "", err
	}
	full := name + "." + ns
	if len(full) > MaxNameLen {
		return "", Invalid("name", "shorten it",
			fmt.Sprintf("%d bytes, at most %d are allowed", len(full), MaxNameLen))
	}
	return FunctionName(full), nil
}

// Function is the part before the dot.
func (n FunctionName) Function() string { f, _, _ := strings.Cut(string(n), "."); return f }

// Namespace is the part after the dot.
func (n FunctionName) Namespace() string { _, ns, _ := strings.Cut(string(n), "."); return ns }

// Short is the name as a person writes it: without the namespace where that is
// the default one.
func (n FunctionName) Short() string {
	if n.Namespace() == DefaultNamespace {
		return n.Function()
	}
	return string(n)
}

// CheckNamespace reports what is wrong with a namespace's name, as an *Error with
// CodeInvalid.
func CheckNamespace(ns string) error { return checkLabel("namespace", ns) }

// checkLabel applies the rule of DNS labels (RFC 1123), which is also what
// OpenFaaS demands of a service name.
func checkLabel(what, s string) error {
	const remedy = "use 1 to 63 of a-z, 0-9 and '-', beginning and ending with a letter or digit"
	switch {
	case s == "":
		return Invalid(what, remedy, "it is empty")
	case len(s) > 63:
		return Invalid(what, remedy, fmt.Sprintf("%d characters", len(s)))
	case s[0] == '-' || s[len(s)-1] == '-':
		return Invalid(what, remedy, fmt.Sprintf("%q begins or ends with '-'", s))
	}
	for i := 0; i < len(s); i++ {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return Invalid(what, remedy, fmt.Sprintf("%q has %q at position %d", s, c, i+1))
		}
	}
	return nil
}

// NamesRegistry reports whether an image reference names a registry of its
// own, by the rule of the docker CLI: its first part has a dot or a port, or
// is "localhost". Other references are repositories of the cluster's registry.
func NamesRegistry(ref string) bool {
	first, _, more := strings.Cut(ref, "/")
	if first == "" || !strings.Contains("abcdefghijklmnopqrstuvwxyz0123456789", first[:1]) {
		return false // no host begins so: "/etc", "../x"
	}
	return more && (strings.ContainsAny(first, ".:") || first == "localhost")
}

// Repository is an image reference of the cluster's registry without tag and
// digest: images are always pulled by the digest that the owner signed.
func Repository(ref string) string {
	ref, _, _ = strings.Cut(ref, "@")
	if colon := strings.LastIndexByte(ref, ':'); colon > strings.LastIndexByte(ref, '/') {
		ref = ref[:colon]
	}
	return ref
}
