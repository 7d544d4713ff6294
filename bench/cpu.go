package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"slices"
	"syscall"
	"time"
)

// cpuParts are the processes that a warm call passes, in its order.
func cpuParts() []string {
	return []string{"caller", "coordinator", "node", "agent", "function", "containerd", "shim"}
}

// cpu tells how much CPU time a warm call takes and where it goes, in turns
// with the floor.
func (b *bench) cpu(ctx context.Context) error {
	if err := b.needWorld(ctx); err != nil {
		return err
	}
	if err := b.needFloors(ctx); err != nil {
		return err
	}
	fn, err := b.world.running(ctx, "go")
	if err != nil {
		return err
	}
	body := bytes.Repeat([]byte("x"), 1<<10)
	floor, sealed := plainCall(b.floors.twoHopC, "/", body), echo(b.world.client, fn, body)
	rounds, slice := b.scaled(8, 3), time.Second
	if b.quick {
		slice = 400 * time.Millisecond
	}
	samples := map[string][]float64{}
	for range rounds {
		used, n, err := spent(ctx, slice, floor, b.floorCPU)
		if err != nil {
			return fmt.Errorf("floor: %w", err)
		}
		samples["floor"] = append(samples["floor"], total(used)/float64(n))
		if used, n, err = spent(ctx, slice, sealed, b.clusterCPU); err != nil {
			return err
		}
		samples["total"] = append(samples["total"], total(used)/float64(n))
		for _, part := range cpuParts() {
			samples[part] = append(samples[part], used[part]/float64(n))
		}
	}
	b.add("floor/cpu/two-hop/1KiB", "us/call", "", samples["floor"])
	b.add("cpu/total", "us/call", "floor/cpu/two-hop/1KiB", samples["total"])
	for _, part := range cpuParts() {
		if slices.Max(samples[part]) >= 0.05 {
			b.add("cpu/"+part, "us/call", "", samples[part])
		}
	}
	return b.world.client.Remove(ctx, fn)
}

// spent is the CPU time, by process, of calls over 16 connections.
func spent(ctx context.Context, d time.Duration, call func(context.Context) error, now func() (map[string]float64, error)) (map[string]float64, int, error) {
	before, err := now()
	if err != nil {
		return nil, 0, err
	}
	l, err := closedLoop(ctx, d, 16, call)
	if err != nil {
		return nil, 0, err
	}
	after, err := now()
	if err != nil {
		return nil, 0, err
	}
	for part := range after {
		after[part] = max(after[part]-before[part], 0)
	}
	if len(l.took) == 0 {
		return nil, 0, fmt.Errorf("no call ended within %v", d)
	}
	return after, len(l.took), nil
}

func total(used map[string]float64) (sum float64) {
	for _, v := range used {
		sum += v
	}
	return sum
}

// clusterCPU is what the cluster and this process, the caller, have used, in
// microseconds.
func (b *bench) clusterCPU() (map[string]float64, error) {
	all, err := processesOf(b.world.State())
	if err != nil {
		return nil, err
	}
	used := map[string]float64{"caller": ownCPU()}
	for _, p := range all {
		used[p.part] += p.cpu()
	}
	return used, nil
}

// floorCPU is what the floor's processes and this one have used.
func (b *bench) floorCPU() (map[string]float64, error) {
	used := map[string]float64{"caller": ownCPU()}
	for _, cmd := range b.floors.procs {
		used["floor"] += process{pid: cmd.Process.Pid}.cpu()
	}
	return used, nil
}

// ownCPU is this process's CPU time in microseconds, ended threads included.
func ownCPU() float64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return process{pid: os.Getpid()}.cpu()
	}
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e3
}
