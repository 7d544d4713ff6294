package api

// Namespace is a namespace of functions as clients of OpenFaaS see it.
type Namespace struct {
	Name        string            `json:"name"`
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`
}
