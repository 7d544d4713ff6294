package gossip

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"time"
)

// logBridge turns memberlist's lines into slog records: "[WARN] memberlist: text".
// A mesh in trouble writes thousands of lines a second, so that lines beyond a
// few each second are counted instead.
type logBridge struct {
	ctx    context.Context // for the handler's values alone
	logger *slog.Logger
	count  *counters
	doubts *suspects

	mu      sync.Mutex
	tokens  float64
	at      time.Time
	dropped int
}

const (
	logRate  = 5.0  // lines a second in the long run
	logBurst = 20.0 // lines at once
)

func newLogBridge(ctx context.Context, logger *slog.Logger, count *counters, doubts *suspects) *logBridge {
	return &logBridge{ctx: context.WithoutCancel(ctx), logger: logger, count: count, doubts: doubts, tokens: logBurst, at: time.Now()}
}

// Write takes one line of the standard logger. It never fails.
func (b *logBridge) Write(line []byte) (int, error) {
	level, text := parseLine(string(line))
	b.doubts.read(text, time.Now())
	if b.logger.Enabled(b.ctx, level) {
		ok, dropped := b.take(time.Now())
		if dropped > 0 {
			b.logger.Warn("gossip: memberlist lines left out", "lines", dropped)
		}
		if ok {
			b.logger.Log(b.ctx, level, text)
		}
	}
	return len(line), nil
}

// take asks for room for one line; dropped is what was left out before it.
func (b *logBridge) take(now time.Time) (ok bool, dropped int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.tokens = min(logBurst, b.tokens+logRate*max(0, now.Sub(b.at).Seconds()))
	b.at = now
	if b.tokens < 1 {
		b.dropped++
		b.count.logsDropped.Add(1)
		return false, 0
	}
	b.tokens--
	dropped, b.dropped = b.dropped, 0
	return true, dropped
}

func parseLine(s string) (slog.Level, string) {
	s = strings.TrimSpace(s)
	level := slog.LevelInfo
	if tag, rest, ok := strings.Cut(s, "] "); ok && strings.HasPrefix(tag, "[") {
		switch tag[1:] {
		case "DEBUG":
			level = slog.LevelDebug
		case "WARN":
			level = slog.LevelWarn
		case "ERR", "ERROR":
			// Its errors are peers that went away and packets that were lost: what a
			// gossip protocol is there to survive.
			level = slog.LevelWarn
		}
		s = rest
	}
	return level, "gossip: " + strings.TrimPrefix(s, "memberlist: ")
}
