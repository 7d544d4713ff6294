package shim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v2"
	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"

	"github.com/faasd-sec/faasd-sec/shim/boot"
)

// Server is the configuration of a group's process.
type Server struct {
	Group    boot.Group
	Tasks    net.Listener // the group's task socket
	Control  net.Listener // the group's control socket
	Events   string       // unix socket of containerd's ttrpc services
	LogLevel slog.Level
}

// farewell is how long the process may take to send its last events and
// answers.
const farewell = time.Second

// Serve serves tasks until there are none left, or ctx ends. Tasks do not end
// with it.
func Serve(ctx context.Context, cfg Server) error {
	w := &bundleLog{}
	log := slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: cfg.LogLevel}))
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	pub := newPublisher(ctx, cfg.Group.Namespace, func() (net.Conn, error) { return net.DialTimeout("unix", cfg.Events, dialTimeout) }, log)
	s := newService(cfg.Group, pub, log)
	w.use(s)
	srv, err := ttrpc.NewServer(ttrpc.WithUnaryServerInterceptor(translate))
	if err != nil {
		return fmt.Errorf("serve tasks: %w", err)
	}
	taskapi.RegisterTTRPCTaskService(srv, taskAPI{s})
	tasks := countConnections(cfg.Tasks)
	var helpers sync.WaitGroup
	helpers.Go(func() { s.patrol(ctx) })
	helpers.Go(func() { s.control(ctx, cfg.Control) })
	served := make(chan error, 1)
	helpers.Go(func() { served <- srv.Serve(ctx, tasks) })

	select {
	case <-ctx.Done():
		err = ctx.Err()
	case <-s.done:
	case err = <-served:
	}
	bye, end := context.WithTimeout(context.WithoutCancel(ctx), farewell)
	defer end()
	pub.close(bye)
	tasks.idle(bye)
	err = errors.Join(err, srv.Close(), cfg.Control.Close())
	cancel()
	helpers.Wait()
	return err
}

// bundleLog writes into the log pipe of a task's bundle, which containerd
// copies into its own log. A line that no task's pipe takes is lost.
type bundleLog struct {
	mu sync.Mutex
	s  *Service
}

var _ io.Writer = (*bundleLog)(nil)

func (w *bundleLog) use(s *Service) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.s = s
}

func (w *bundleLog) Write(line []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.s == nil {
		return len(line), nil
	}
	for _, bundle := range w.s.bundles() {
		// Without waiting: a pipe that containerd does not read must not stop us.
		fd, err := unix.Open(filepath.Join(bundle, "log"), unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
		if err != nil {
			continue
		}
		_, err = unix.Write(fd, line)
		_ = unix.Close(fd)
		if err == nil {
			break
		}
	}
	return len(line), nil
}

// bundles are those of all tasks. It is called with a line to log, so the
// service's lock, which may be held then, is only tried.
func (s *Service) bundles() []string {
	if !s.mu.TryLock() {
		return nil
	}
	defer s.mu.Unlock()
	var list []string
	for _, t := range s.tasks {
		if t != nil {
			list = append(list, t.bundle)
		}
	}
	return list
}
