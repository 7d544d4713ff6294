package openfaas

import (
	"context"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
)

// Functions are the cluster's functions, sealed and plain.
type Functions interface {
	// Functions lists those of a namespace, sorted by name.
	Functions(namespace string) []Function
	// Function describes one; CodeNotFound if there is none. With usage, nodes are
	// asked what its replicas use.
	Function(ctx context.Context, name api.FunctionName, usage bool) (Function, error)
	// PutPlain deploys a plain function, or changes it. host is by what name the
	// client knows this gateway, HOST[:PORT]: images there are the cluster's own.
	PutPlain(ctx context.Context, name api.FunctionName, p api.Plain, host string) (created bool, err error)
	// DeletePlain removes one; CodeNotFound if there is none.
	DeletePlain(ctx context.Context, name api.FunctionName) error
}

// Function is a function of the cluster with what clients of OpenFaaS want to know
// of its running.
type Function struct {
	api.FunctionStatus
	Invocations uint64 // since the coordinator started
	Desired     int    // replicas that there should be
	Available   int    // replicas that serve
	Usage       *Usage // nil if it was not asked for
}

// Usage is what all replicas of a function use together.
type Usage struct {
	CPU    int64 // millicores
	Memory int64 // bytes
}

// Scaler sets how many replicas a function, sealed or plain, should have.
type Scaler interface {
	ScaleFunction(ctx context.Context, name api.FunctionName, replicas int) error
}

// Secrets are those of plain functions.
type Secrets interface {
	List(ctx context.Context, namespace string) ([]string, error)
	Put(ctx context.Context, namespace, name string, value []byte) error
	Delete(ctx context.Context, namespace, name string) error
}

// Namespaces are the cluster's.
type Namespaces interface {
	Namespaces(ctx context.Context) ([]string, error)
	Namespace(ctx context.Context, name string) (api.Namespace, error)
}

// NamespaceEditor changes Namespaces.
type NamespaceEditor interface {
	CreateNamespace(ctx context.Context, n api.Namespace) error
	UpdateNamespace(ctx context.Context, n api.Namespace) error
	DeleteNamespace(ctx context.Context, name string) error
}

// Logs reads what functions wrote: of sealed ones records that only their owners open.
type Logs interface {
	// Lines calls each for every line, oldest first, until there are no more, each
	// fails, or, with Follow, ctx ends. It calls alive now and then while nothing is
	// written, and ends when that fails.
	Lines(ctx context.Context, q LogQuery, each func(LogLine) error, alive func() error) error
}

// LogQuery says which lines are wanted.
type LogQuery struct {
	Function api.FunctionName
	Instance string    // of this replica alone; "" for all
	Tail     int       // the last so many; 0 for all that are kept
	Since    time.Time // not older; the zero time for all that are kept
	Follow   bool      // go on as lines come
}

// LogLine is one line.
type LogLine struct {
	Instance string
	At       time.Time
	Text     string
}
