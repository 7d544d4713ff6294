package local

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	goruntime "runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/procfs"

	"github.com/faasd-sec/faasd-sec/api"
)

// waitReady returns when the coordinator sees all nodes with their loads.
func (c *Cluster) waitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		var nodes []api.NodeView
		err := c.get(ctx, api.GatewayPathNodes, &nodes)
		have := 0
		for _, n := range nodes {
			if n.Load.Epoch != 0 {
				have++
			}
		}
		if err == nil && have >= c.cfg.Nodes {
			return errors.Join(c.get(ctx, api.GatewayPathBroker, &c.broker), c.get(ctx, api.GatewayPathManifestKey, &c.manifest))
		}
		t := time.NewTimer(20 * time.Millisecond)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return fmt.Errorf("%d of %d nodes joined: %w", have, c.cfg.Nodes, ctx.Err())
		}
	}
}

func (c *Cluster) get(ctx context.Context, path string, out any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.Gateway()+path, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 4<<20))
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return api.ParseProblem(resp.StatusCode, b)
	}
	return json.Unmarshal(b, out)
}

// share is what each node lends to functions.
func (c *Cluster) share() (cpu, memory string, err error) {
	cpu, memory = c.cfg.CPU, c.cfg.Memory
	if cpu == "" {
		cpu = strconv.Itoa(goruntime.NumCPU()*4000/c.cfg.Nodes) + "m"
	}
	if memory == "" {
		fs, err := procfs.NewDefaultFS()
		if err != nil {
			return "", "", fmt.Errorf("read /proc: %w", err)
		}
		m, err := fs.Meminfo()
		if err != nil || m.MemTotalBytes == nil {
			return "", "", errors.Join(errors.New("read /proc/meminfo"), err)
		}
		memory = strconv.FormatUint(*m.MemTotalBytes/4*3/uint64(c.cfg.Nodes), 10)
	}
	return cpu, memory, nil
}

// Wait returns when a part keeps failing, or nil when ctx ends.
func (c *Cluster) Wait(ctx context.Context) error {
	failed := make(chan *process, len(c.procs))
	for _, p := range c.procs {
		go func() {
			select {
			case <-p.failed:
				failed <- p
			case <-p.done:
			case <-ctx.Done():
			}
		}()
	}
	select {
	case <-ctx.Done():
		return nil
	case p := <-failed:
		return fmt.Errorf("%s keeps ending:\n%s", p.name, c.lastLines(p.name))
	}
}

// Stop ends the cluster: nodes first, all at once, so that their sandboxes go;
// then what they relied on. It removes what is temporary.
func (c *Cluster) Stop(ctx context.Context) error {
	var errs error
	var mu sync.Mutex
	join := func(err error) {
		mu.Lock()
		errs = errors.Join(errs, err)
		mu.Unlock()
	}
	var wg sync.WaitGroup
	// keybroker and coordinator come first in procs.
	for i := len(c.procs) - 1; i >= 0; i-- {
		p := c.procs[i]
		if isLast(p.name) {
			continue
		}
		wg.Add(1)
		go func() { defer wg.Done(); join(p.stop(ctx)) }()
	}
	wg.Wait()
	for i := len(c.procs) - 1; i >= 0; i-- {
		if p := c.procs[i]; isLast(p.name) {
			join(p.stop(ctx))
		}
	}
	if c.ctrd != nil {
		join(c.ctrd.Stop(ctx))
	}
	if c.run != "" && errs == nil {
		join(os.RemoveAll(c.run))
		_ = os.Remove("/run/faasd-sec") // only when it is empty
	}
	if c.temp && errs == nil {
		join(os.RemoveAll(c.state))
	}
	if c.lock != nil {
		join(c.lock.Close())
		c.lock = nil
	}
	return errs
}

// isLast tells the parts that nodes rely on, which stop after them.
func isLast(name string) bool { return name == "keybroker" || strings.HasPrefix(name, "coordinator") }
