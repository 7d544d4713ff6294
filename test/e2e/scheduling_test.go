package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/client"
	"github.com/faasd-sec/faasd-sec/manifest"
)

// firstPort is the first that each node of this test lends.
const firstPort = 31000

// TestScheduling sends sealed tasks of random needs to three machines, while one
// loses its power, one's daemon is killed, and one is cut off. Every task ends
// once, in success, a typed failure or expiry; none is run more often than its
// policy allows, as seen from the functions; and nothing is held afterwards.
func TestScheduling(t *testing.T) {
	needTools(t, "ctr", "ip", "iptables", "nft", "nsenter", "tc")
	const total, senders = 300, 14
	seed := seedOf(t)
	m := newMachines(t, 3, func(m *machines) {
		m.lent = func(*machine) []string {
			return []string{"-capacity-cpu", "2500m", "-capacity-memory", "1200Mi", "-capacity-pids", "1500", "-ingress", "200M", "-egress", "200M",
				"-port-range", fmt.Sprintf("%d-%d", firstPort, firstPort+7)}
		}
	})
	bare := map[string]held{}
	for _, x := range m.nodes[1:] {
		bare[x.id] = m.steady(t, x)
	}
	fn := m.deploy(t, "scheduled", func(d *client.Deployment) {
		d.Resources = api.Resources{CPU: 100, Memory: 32 << 20, PIDs: 64, Tmp: 4 << 20}
		d.MaxInFlight, d.Idle = 2, 20*time.Second
		d.Bounds = &manifest.Bounds{
			Max: manifest.Max{CPUMillis: 1000, MemoryBytes: 256 << 20, StorageBytes: 16 << 20, PIDs: 128, IngressBPS: 100e6, EgressBPS: 100e6, Ports: 4, Priority: 9, Attempts: 5},
			Overridable: []manifest.Field{manifest.FieldCPU, manifest.FieldMemory, manifest.FieldStorage, manifest.FieldPIDs, manifest.FieldIngress, manifest.FieldEgress,
				manifest.FieldPorts, manifest.FieldAntiAffinity, manifest.FieldDeadline, manifest.FieldPriority, manifest.FieldRetry},
		}
	})
	counting := startCounting(t, m.run, m.state)
	s := m.send(t, fn, newMix(seed), total, senders)

	off, killed, alone := m.nodes[2], m.nodes[1], m.nodes[3]
	s.past(t, 30)
	m.powerCut(t, off)
	t.Logf("%s lost its power after %d tasks", off.id, s.ended.Load())
	s.past(t, 80)
	killed.node.kill()
	t.Logf("the daemon of %s was killed after %d tasks", killed.id, s.ended.Load())
	m.startNode(t, killed)
	s.past(t, 140)
	m.net.cut(t, alone.i)
	t.Logf("%s was cut off after %d tasks", alone.id, s.ended.Load())
	m.waitGone(t, alone)
	s.past(t, 190)
	m.net.mend(t, alone.i)
	t.Logf("%s was connected again after %d tasks", alone.id, s.ended.Load())
	s.past(t, total)
	s.wg.Wait()

	m.accounted(t, s, counting.counts(t))
	m.suspected(t, off, alone)
	for _, d := range s.tasks {
		if d.code == "" { // sealed anew, and known all the same
			if _, _, err := m.invoke(t, fn, client.Request{Path: "/once", Query: "ms=0", Body: strings.NewReader(d.id), Needs: &client.Needs{Task: d.needs.Task}}); api.CodeOf(err) != api.CodeDuplicateTask {
				t.Errorf("the same task again: %v", err)
			}
			break
		}
	}
	m.powerOn(t, off)
	m.waitNodes(t, 90*time.Second, 3)
	if err := m.client.Remove(t.Context(), fn); err != nil {
		t.Fatal(err)
	}
	m.nothingHeld(t, s, bare)
	m.accounted(t, s, counting.counts(t)) // nothing has come later
}

// seedOf is FAASD_SEC_SEED, or drawn.
func seedOf(t *testing.T) uint64 {
	seed := uint64(time.Now().UnixNano()) % 1e6
	if text := os.Getenv("FAASD_SEC_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("FAASD_SEC_SEED: %v", err)
		}
	}
	t.Logf("FAASD_SEC_SEED=%d", seed)
	return seed
}

// accounted holds what became of the tasks against what the functions did.
func (m *machines) accounted(t *testing.T, s *stream, ran map[string]int) {
	t.Helper()
	tally, twice, slowest := map[string]int{}, 0, time.Duration(0)
	for _, d := range s.tasks {
		if slowest = max(slowest, d.took); d.code == "" {
			tally[d.node]++
		} else {
			tally[string(d.code)]++
		}
		runs, may := ran[d.id], 1
		if d.needs.Retry.AfterNodeDeath {
			may = int(d.needs.Retry.MaxAttempts)
		}
		if runs > 1 {
			twice++
		}
		switch {
		case d.wrong != "":
			t.Errorf("task %s: %s", d.id, d.wrong)
		case runs > may:
			t.Errorf("task %s was run %d times, at most %d are allowed: %+v", d.id, runs, may, d.needs.Retry)
		case d.code == "" && runs == 0:
			t.Errorf("task %s succeeded and was never run", d.id)
		case unrun[d.code] && runs > 0 && may == 1:
			t.Errorf("task %s ended with %s and was run %d times", d.id, d.code, runs)
		}
		if d.why != "" {
			t.Logf("task %s, %v: %+v priority %d: %s: %s", d.id, d.took, d.needs.Needs, d.needs.Priority, d.said, d.why)
			d.why = "" // once is enough
		}
		delete(ran, d.id)
	}
	if len(ran) > 0 {
		t.Errorf("what nobody sent was run: %v", ran)
	}
	t.Logf("%d tasks: %v; %d run more than once, as they may; slowest %v", len(s.tasks), tally, twice, slowest)
}

// waitGone waits until the coordinator holds x for dead.
func (m *machines) waitGone(t *testing.T, x *machine) {
	t.Helper()
	waitFor(t, time.Minute, x.id+" to be declared dead", func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		have, err := m.members(ctx)
		if _, there := have[x.id]; err == nil && there {
			err = errors.New("it is a member")
		}
		return err
	})
}

// powerCut ends all that runs on x at one moment, as seen by the others, to whom
// it falls silent.
func (m *machines) powerCut(t *testing.T, x *machine) {
	t.Helper()
	m.net.cut(t, x.i)
	waitFor(t, 10*time.Second, x.id+" to be dark", func() error {
		procs, err := procsOf(x.run, x.state)
		if err != nil {
			return err
		}
		for _, p := range procs {
			_ = syscall.Kill(p.pid, syscall.SIGKILL)
		}
		if len(procs) > 0 {
			return fmt.Errorf("%v", procs)
		}
		return nil
	})
	<-x.node.done
}

// powerOn starts x again with what was on its disk. What was in the kernel's
// memory goes first.
func (m *machines) powerOn(t *testing.T, x *machine) {
	t.Helper()
	for mounts := mountsBelow(t, x.run); len(mounts) > 0; mounts = mountsBelow(t, x.run) {
		if err := syscall.Unmount(mounts[len(mounts)-1], syscall.MNT_DETACH); err != nil {
			t.Fatalf("unmount %s: %v", mounts[len(mounts)-1], err)
		}
	}
	for _, mnt := range mountsBelow(t, x.state) {
		_ = syscall.Unmount(mnt, syscall.MNT_DETACH) // one goes with the other
	}
	groups := cgroupsOf(t, m.namespace(x)+"/")
	for i := len(groups) - 1; i >= 0; i-- { // children first
		if err := os.Remove(groups[i]); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
	}
	entries, err := os.ReadDir(x.run)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(x.run, e.Name())); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.RemoveAll(filepath.Join(x.state, "containerd", "state")); err != nil { // on /run elsewhere
		t.Fatal(err)
	}
	m.net.mend(t, x.i)
	if len(m.links(t, x)) > 0 || strings.Contains(run(t, "ip", "-n", m.net.spaces[x.i], "-o", "link"), "fsec0") {
		run(t, "ip", "-n", m.net.spaces[x.i], "link", "del", "fsec0")
	}
	run(t, "nsenter", "--net="+m.net.path(x.i), "nft", "flush", "ruleset")
	m.startContainerd(t, x)
	m.startNode(t, x)
}

// links are the interfaces of sandboxes on x.
func (m *machines) links(t *testing.T, x *machine) (out []string) {
	t.Helper()
	for line := range strings.SplitSeq(run(t, "ip", "-n", m.net.spaces[x.i], "-o", "link", "show", "type", "veth"), "\n") {
		if strings.Contains(line, "master fsec0") {
			out = append(out, line)
		}
	}
	return out
}

// suspected makes sure that those who fell silent are in the coordinator's log,
// first as suspects and then as dead.
func (m *machines) suspected(t *testing.T, silent ...*machine) {
	t.Helper()
	have := map[string]bool{}
	for _, l := range m.anomalies(t, map[string][]string{api.QueryKind: {"heartbeat-missed"}}) {
		have[l.Node+" "+l.Code] = true
	}
	for _, x := range silent {
		if !have[x.id+" suspect"] || !have[x.id+" dead"] {
			t.Errorf("the anomaly log does not tell of %s: %v", x.id, have)
		}
	}
}

// nothingHeld waits until every counter is where it was before the first task.
func (m *machines) nothingHeld(t *testing.T, s *stream, bare map[string]held) {
	t.Helper()
	zero := func(i int, addr string, names ...string) error {
		for _, name := range names {
			v, err := m.metricOf(i, addr, name)
			if err == nil && v != 0 {
				err = fmt.Errorf("%s is %v", name, v)
			}
			if err != nil {
				return err
			}
		}
		return nil
	}
	waitFor(t, 30*time.Second, "the coordinator to hold nothing", func() error {
		return zero(0, "127.0.0.1:7444", "faasd_sec_queue_length", "faasd_sec_invocations_in_flight", "faasd_sec_held_bytes")
	})
	// Remembered are the tasks that an agent had or may have had.
	least, most := 0.0, 0.0
	for _, d := range s.tasks {
		switch {
		case d.code == "":
			least++
			most++
		case !unrun[d.code]:
			most++
		}
	}
	if v := m.counter(t, "faasd_sec_tasks_remembered"); v < least || v > most {
		t.Errorf("%v tasks are remembered, want %v to %v", v, least, most)
	}
	for _, x := range m.nodes[1:] {
		waitFor(t, 45*time.Second, x.id+" to hold its pool alone", func() error {
			if err := zero(x.i, "127.0.0.1:7481", "faasd_sec_node_invocations_in_flight", "faasd_sec_node_sandboxes",
				"faasd_sec_node_reserved_ports", "faasd_sec_node_reserved_ingress_bits_second", "faasd_sec_node_reserved_egress_bits_second",
				"faasd_sec_node_reserved_scratch_bytes", "faasd_sec_node_reserved_cpu_millicores", "faasd_sec_node_pool_creating"); err != nil {
				return err
			}
			boxes, err := m.metricOf(x.i, "127.0.0.1:7481", "faasd_sec_node_pool_depth")
			if err != nil || boxes != 1 {
				return fmt.Errorf("%v boxes, %w", boxes, err)
			}
			for name, each := range map[string]int64{"faasd_sec_node_reserved_memory_bytes": api.AgentOverhead().Memory, "faasd_sec_node_reserved_pids": api.AgentOverhead().PIDs} {
				v, err := m.metricOf(x.i, "127.0.0.1:7481", name)
				if err != nil || v != float64(each) {
					return fmt.Errorf("%s is %v, %w", name, v, err)
				}
			}
			if left := m.links(t, x); len(left) > 0 {
				return fmt.Errorf("links %v", left)
			}
			return nil
		})
		if h := m.steady(t, x); h != bare[x.id] {
			t.Errorf("%s holds %+v, before the first task %+v", x.id, h, bare[x.id])
		}
	}
}
