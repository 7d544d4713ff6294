package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/client"
)

// Sequences of a terminal (ECMA-48, xterm).
const (
	termEnter = "\x1b[?1049h\x1b[?25l" // the other screen, no cursor
	termLeave = "\x1b[?25h\x1b[?1049l"
	termHome  = "\x1b[H"
	termEOL   = "\x1b[K" // clear to the line's end
	termBelow = "\x1b[J" // and all below
	termBold  = "\x1b[1m"
	termPlain = "\x1b[0m"
)

func (a *app) topCommand() *cobra.Command {
	var once bool
	var every time.Duration
	cmd := &cobra.Command{Use: "top", Short: "Watch nodes and what runs on them",
		Long: "Watch what the cluster's machines and tasks use. On a terminal: q ends, s changes the order of tasks, up and\n" +
			"down scroll, space looks at once. Elsewhere it prints plain text again and again; --once prints once.",
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if every < 200*time.Millisecond {
				return api.Invalid("--every", "give 200ms or more", every.String()+" is too short")
			}
			c, err := a.anonymous()
			if err != nil {
				return err
			}
			defer c.Close()
			if a.json() || once {
				return a.topOnce(cmd.Context(), c)
			}
			if in, ok := terminal(a.stdin); ok {
				if out, ok := terminal(a.stdout); ok {
					return a.topLive(cmd.Context(), c, every, in, out)
				}
			}
			return a.topPlain(cmd.Context(), c, every)
		}}
	cmd.Flags().BoolVar(&once, "once", false, "print once and end")
	cmd.Flags().DurationVar(&every, "every", 2*time.Second, "time between two looks")
	a.jsonFlag(cmd)
	return cmd
}

// glance is one look at the cluster. Its JSON is what --json prints.
type glance struct {
	Nodes     []api.NodeView       `json:"nodes"`
	Functions []api.FunctionStatus `json:"functions"`
	Details   []api.NodeDetail     `json:"details"` // nodes by their own word, tasks included
}

func look(ctx context.Context, c *client.Client) (g glance, err error) {
	list, err := c.NodeDetails(ctx, true)
	if err != nil {
		return g, err
	}
	g.Details = list.Nodes
	for _, d := range list.Nodes {
		g.Nodes = append(g.Nodes, d.View)
	}
	g.Functions, err = c.List(ctx)
	return g, err
}

func (a *app) topOnce(ctx context.Context, c *client.Client) error {
	g, err := look(ctx, c)
	if err != nil {
		return err
	}
	if a.json() {
		return a.printJSON(g)
	}
	return a.topPrint(&g)
}

// topPrint prints a look as plain text, whole.
func (a *app) topPrint(g *glance) error {
	f := frame{gateway: a.gatewayURL(""), at: time.Now(), glance: g}
	if _, err := io.WriteString(a.stdout, f.plain()); err != nil {
		return fmt.Errorf("write the result: %w", err)
	}
	if len(g.Functions) == 0 {
		return nil
	}
	fmt.Fprintln(a.stdout)
	return a.functionTable(g.Functions).print(a.stdout)
}

// topPlain prints again and again until it is interrupted. A look that fails is
// told, for the next one may succeed.
func (a *app) topPlain(ctx context.Context, c *client.Client, every time.Duration) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		err := a.topOnce(ctx, c)
		if err != nil && ctx.Err() == nil {
			fmt.Fprintln(a.stdout, one(err.Error()))
		}
		fmt.Fprintln(a.stdout)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// topLive draws on a terminal until q or an interruption, and leaves the terminal
// as it was.
func (a *app) topLive(ctx context.Context, c *client.Client, every time.Duration, in, out *os.File) (retErr error) {
	was, err := term.MakeRaw(int(in.Fd()))
	if err != nil {
		return fmt.Errorf("prepare the terminal: %w", err)
	}
	defer func() {
		_, err := out.WriteString(termLeave)
		retErr = errors.Join(retErr, err, term.Restore(int(in.Fd()), was))
	}()
	if _, err := out.WriteString(termEnter); err != nil {
		return fmt.Errorf("draw: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	keys := make(chan string, 16)
	go readKeys(ctx, in, keys) // ends with the process where no key comes any more
	resized := make(chan os.Signal, 1)
	signal.Notify(resized, unix.SIGWINCH)
	defer signal.Stop(resized)
	type seen struct {
		g   glance
		err error
	}
	looks := make(chan seen, 1)
	ask := func() {
		go func() {
			g, err := look(ctx, c)
			select {
			case looks <- seen{g, err}:
			case <-ctx.Done():
			}
		}()
	}
	f := frame{gateway: a.gatewayURL(""), at: time.Now(), glance: &glance{}}
	asking := true
	ask()
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		if f.width, f.height, err = term.GetSize(int(out.Fd())); err != nil || f.width == 0 {
			f.width, f.height = 80, 24
		}
		if _, err := out.WriteString(f.live()); err != nil {
			return fmt.Errorf("draw: %w", err)
		}
		again := false
		select {
		case <-ctx.Done():
			return nil
		case <-resized:
		case <-tick.C:
			again = true
		case s := <-looks:
			asking = false
			if f.problem = ""; s.err != nil {
				f.problem = one(s.err.Error())
			} else {
				f.glance, f.at = &s.g, time.Now()
			}
		case k := <-keys:
			if k == "q" || k == "\x03" || k == "\x1b" {
				return nil
			}
			again = k == " "
			f.key(k)
		}
		if again && !asking {
			asking = true
			ask()
		}
	}
}

// readKeys passes on what is typed, a sequence at a time.
func readKeys(ctx context.Context, in *os.File, keys chan<- string) {
	buf := make([]byte, 32)
	for {
		n, err := in.Read(buf)
		if err != nil {
			return
		}
		select {
		case keys <- string(buf[:n]):
		case <-ctx.Done():
			return
		}
	}
}
