package store

import (
	"log/slog"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// zapTo makes the logger that etcd wants out of ours. etcd is talkative:
// everything below a warning is dropped. Its keys are function names and
// hashes; its values are never logged by it.
func zapTo(log *slog.Logger) *zap.Logger {
	// A fatal condition of etcd, such as a failed fsync, must end the process,
	// as nothing written later could be trusted; with a panic it says where.
	return zap.New(&slogCore{log: log, settled: time.Now().Add(settling)}, zap.WithFatalHook(zapcore.WriteThenPanic))
}

// settling is how long after its start etcd's warnings and errors are told at
// debug level: a new member reports schema versions, listeners and elections
// that it has got right a moment later. What keeps it from starting comes back
// from Open as an error; what goes on being wrong is said again.
const settling = 5 * time.Second

// slogCore is a zapcore.Core over log/slog.
type slogCore struct {
	log     *slog.Logger
	settled time.Time
}

var _ zapcore.Core = (*slogCore)(nil)

func (c *slogCore) Enabled(l zapcore.Level) bool { return l >= zapcore.WarnLevel }

func (c *slogCore) With(fields []zapcore.Field) zapcore.Core {
	return &slogCore{log: c.log.With(toArgs(fields)...), settled: c.settled}
}

func (c *slogCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return ce.AddCore(e, c)
	}
	return ce
}

func (c *slogCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	tell := c.log.Warn
	switch {
	case e.Level > zapcore.ErrorLevel: // ends the process
		tell = c.log.Error
	case e.Time.Before(c.settled):
		tell = c.log.Debug
	case e.Level == zapcore.ErrorLevel:
		tell = c.log.Error
	}
	tell("etcd: "+e.Message, toArgs(fields)...)
	return nil
}

func (c *slogCore) Sync() error { return nil }

func toArgs(fields []zapcore.Field) []any {
	enc := zapcore.NewMapObjectEncoder()
	for _, f := range fields {
		f.AddTo(enc)
	}
	args := make([]any, 0, len(enc.Fields))
	for k, v := range enc.Fields {
		args = append(args, slog.Any(k, v))
	}
	return args
}
