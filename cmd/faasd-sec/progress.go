package main

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"
)

// progress shows one line on standard error that is written over. Where that is
// no terminal it shows nothing: a log has no use for it.
type progress struct {
	out   io.Writer // nil shows nothing
	title string
	width int

	mu   sync.Mutex
	last time.Time
}

func (a *app) newProgress(title string) *progress {
	p := &progress{title: title}
	if f, tty := terminal(a.stderr); tty {
		p.out = f
		if w, _, err := term.GetSize(int(f.Fd())); err == nil {
			p.width = w
		}
	}
	return p
}

// step names what is done now.
func (p *progress) step(what string) { p.draw(what, true) }

// bytes shows how far a transfer is.
func (p *progress) bytes(done, total int64) {
	if total <= 0 {
		p.draw(bytesText(done), false)
		return
	}
	const cells = 24
	full := int(min(done*cells/total, cells))
	p.draw(fmt.Sprintf("[%s%s] %s of %s", strings.Repeat("#", full), strings.Repeat(".", cells-full), bytesText(done), bytesText(total)), done >= total)
}

func (p *progress) draw(text string, always bool) {
	if p.out == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if !always && now.Sub(p.last) < 80*time.Millisecond {
		return
	}
	p.last = now
	line := one(p.title + ": " + text)
	if r := []rune(line); p.width > 1 && len(r) >= p.width {
		line = string(r[:p.width-1])
	}
	fmt.Fprintf(p.out, "\r\x1b[K%s", line)
}

// end removes the line.
func (p *progress) end() {
	if p.out != nil {
		fmt.Fprint(p.out, "\r\x1b[K")
	}
}
