package shim

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/faasd-sec/faasd-sec/shim/boot"
	"github.com/faasd-sec/faasd-sec/shim/container"
)

// commandTimeout bounds one command of package boot.
const commandTimeout = 10 * time.Second

// control answers the commands of package boot until the listener is closed.
func (s *Service) control(ctx context.Context, l net.Listener) {
	var open sync.WaitGroup
	defer open.Wait()
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			s.log.Error("commands cannot be taken", "error", err)
			select {
			case <-ctx.Done():
				return
			case <-time.After(firstPause): // no descriptor left, most likely
			}
			continue
		}
		open.Go(func() { // ends within commandTimeout
			defer c.Close()
			if err := s.answer(ctx, c); err != nil {
				s.log.Warn("a command failed", "error", err)
			}
		})
	}
}

func (s *Service) answer(ctx context.Context, c net.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	if err := c.SetDeadline(time.Now().Add(commandTimeout)); err != nil {
		return fmt.Errorf("take a command: %w", err)
	}
	line, err := bufio.NewReader(io.LimitReader(c, boot.MaxLine)).ReadString('\n')
	if err != nil {
		return fmt.Errorf("read a command: %w", err)
	}
	var exit boot.Exit
	cmd, err := boot.ParseCommand(line)
	if err == nil {
		switch cmd.Verb {
		case boot.Expect:
			err = s.expect(cmd.ID, cmd.Bundle)
		case boot.Forget:
			exit, err = s.forget(ctx, cmd.ID)
		}
	}
	if _, werr := io.WriteString(c, boot.Answer(exit, err)); werr != nil {
		err = errors.Join(err, werr)
	}
	s.endIfIdle()
	return err
}

// CleanUp removes a container by its bundle alone, where the process that made
// it is gone. A bundle without a specification never had one.
func CleanUp(ctx context.Context, bundle string) error {
	groups, err := container.GroupsOf(bundle)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = groups.Remove(ctx)
	}
	if err != nil {
		return fmt.Errorf("clean up bundle %s: %w", bundle, err)
	}
	return nil
}
