package store

import (
	"log/slog"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// zapTo makes the logger that etcd wants out of ours. etcd is talkative:
// everything below a warning is dropped. Its keys are function names and
// hashes; its values are never logged by it.
func zapTo(log *slog.Logger) *zap.Logger {
	// A fatal condition of etcd, such as a failed fsync, must end the process,
	// as nothing written later could be trusted; with a panic it says where.
	return zap.New(&slogCore{log: log}, zap.WithFatalHook(zapcore.WriteThenPanic))
}

// slogCore is a zapcore.Core over log/slog.
type slogCore struct{ log *slog.Logger }

var _ zapcore.Core = (*slogCore)(nil)

func (c *slogCore) Enabled(l zapcore.Level) bool { return l >= zapcore.WarnLevel }

func (c *slogCore) With(fields []zapcore.Field) zapcore.Core {
	return &slogCore{log: c.log.With(toArgs(fields)...)}
}

func (c *slogCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return ce.AddCore(e, c)
	}
	return ce
}

func (c *slogCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	tell := c.log.Warn
	if e.Level >= zapcore.ErrorLevel {
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
