package openfaas

import (
	"maps"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
)

// The messages of the API, by the names that its clients know.

// resources are quantities as written.
type resources struct {
	Memory string `json:"memory,omitempty"`
	CPU    string `json:"cpu,omitempty"`
}

func (r *resources) amounts() *api.PlainAmounts {
	if r == nil || *r == (resources{}) {
		return nil
	}
	return &api.PlainAmounts{CPU: r.CPU, Memory: r.Memory}
}

func resourcesOf(a *api.PlainAmounts) *resources {
	if a == nil || *a == (api.PlainAmounts{}) {
		return nil
	}
	return &resources{Memory: a.Memory, CPU: a.CPU}
}

// deployment is a FunctionDeployment. Fields that it does not have, such as
// "network", are accepted and have no effect, as with other gateways.
type deployment struct {
	Service                string            `json:"service"`
	Image                  string            `json:"image"`
	Namespace              string            `json:"namespace"`
	EnvProcess             string            `json:"envProcess"`
	EnvVars                map[string]string `json:"envVars"`
	Constraints            []string          `json:"constraints"`
	Secrets                []string          `json:"secrets"`
	Labels                 map[string]string `json:"labels"`
	Annotations            map[string]string `json:"annotations"`
	Limits                 *resources        `json:"limits"`
	Requests               *resources        `json:"requests"`
	ReadOnlyRootFilesystem bool              `json:"readOnlyRootFilesystem"`
}

func (d *deployment) plain() api.Plain {
	return api.Plain{Image: d.Image, EnvProcess: d.EnvProcess, Env: d.EnvVars, Secrets: d.Secrets, Labels: d.Labels, Annotations: d.Annotations,
		Constraints: d.Constraints, ReadOnlyRoot: d.ReadOnlyRootFilesystem, Limits: d.Limits.amounts(), Requests: d.Requests.amounts()}
}

// status is a FunctionStatus. Mode is ours: "plain" or "sealed".
type status struct {
	Name                   string            `json:"name"`
	Image                  string            `json:"image"`
	Namespace              string            `json:"namespace"`
	EnvProcess             string            `json:"envProcess,omitempty"`
	EnvVars                map[string]string `json:"envVars,omitempty"`
	Constraints            []string          `json:"constraints,omitempty"`
	Secrets                []string          `json:"secrets,omitempty"`
	Labels                 map[string]string `json:"labels"`
	Annotations            map[string]string `json:"annotations"`
	Limits                 *resources        `json:"limits,omitempty"`
	Requests               *resources        `json:"requests,omitempty"`
	ReadOnlyRootFilesystem bool              `json:"readOnlyRootFilesystem,omitempty"`
	InvocationCount        float64           `json:"invocationCount"`
	Replicas               uint64            `json:"replicas"`
	AvailableReplicas      uint64            `json:"availableReplicas"`
	CreatedAt              time.Time         `json:"createdAt"`
	Usage                  *usage            `json:"usage,omitempty"`
	Mode                   string            `json:"mode"`
}

type usage struct {
	CPU              float64 `json:"cpu"` // millicores
	TotalMemoryBytes float64 `json:"totalMemoryBytes"`
}

// labelSealed marks the sealed functions of a list.
const labelSealed = "com.faasd-sec.sealed"

func statusOf(f *Function) status {
	st := status{Name: f.Name.Function(), Namespace: f.Name.Namespace(), Image: f.Image, Mode: api.ModePlain,
		Labels: map[string]string{}, Annotations: map[string]string{}, InvocationCount: float64(f.Invocations),
		Replicas: uint64(max(f.Desired, 0)), AvailableReplicas: uint64(max(f.Available, 0)), CreatedAt: createdAt(f)}
	if f.Usage != nil {
		st.Usage = &usage{CPU: float64(f.Usage.CPU), TotalMemoryBytes: float64(f.Usage.Memory)}
	}
	p := f.Plain
	if p == nil {
		maps.Copy(st.Labels, f.Labels)
		maps.Copy(st.Annotations, f.Annotations)
		st.Mode, st.Labels[labelSealed], st.Annotations[labelSealed] = "sealed", "true", "true"
		return st
	}
	maps.Copy(st.Labels, p.Labels)
	maps.Copy(st.Annotations, p.Annotations)
	st.Image, st.EnvProcess, st.EnvVars, st.Secrets, st.Constraints = p.Image, p.EnvProcess, p.Env, p.Secrets, p.Constraints
	st.Limits, st.Requests, st.ReadOnlyRootFilesystem = resourcesOf(p.Limits), resourcesOf(p.Requests), p.ReadOnlyRoot
	return st
}

func createdAt(f *Function) time.Time {
	at := f.CreatedAt
	if at == 0 {
		at = f.UpdatedAt
	}
	return time.Unix(at, 0).UTC()
}

// secret is a Secret. RawValue wins over Value.
type secret struct {
	Name      string `json:"name"`
	Namespace string `json:"namespace,omitempty"`
	Value     string `json:"value,omitempty"`
	RawValue  []byte `json:"rawValue,omitempty"`
}

// logMessage is a line of a log.
type logMessage struct {
	Name      string    `json:"name"`
	Namespace string    `json:"namespace"`
	Instance  string    `json:"instance"`
	Timestamp time.Time `json:"timestamp"`
	Text      string    `json:"text"`
}

// info is the reply of /system/info.
type info struct {
	Provider providerInfo `json:"provider"`
	Version  Version      `json:"version"`
	Arch     string       `json:"arch"`
}

type providerInfo struct {
	Provider      string  `json:"provider"`
	Orchestration string  `json:"orchestration"`
	Version       Version `json:"version"`
}

// Version is a release. Clients expect neither Release nor SHA empty.
type Version struct {
	Release       string `json:"release"`
	SHA           string `json:"sha"`
	CommitMessage string `json:"commit_message"`
}
