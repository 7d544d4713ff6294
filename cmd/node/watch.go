package main

import (
	"flag"

	"github.com/faasd-sec/faasd-sec/monitor"
)

// watchFlags are the flags of the monitor.
func watchFlags(fs *flag.FlagSet, c *monitor.Config) {
	*c = monitor.DefaultConfig()
	t := &c.Thresholds
	fs.DurationVar(&c.Every, "monitor-every", c.Every, "time between two samples of what tasks use, at least 100ms")
	fs.DurationVar(&t.For, "anomaly-for", t.For, "note what stays over its threshold for so long")
	fs.DurationVar(&t.Again, "anomaly-again", t.Again, "and again so long after, while it still is")
	fs.Float64Var(&t.Memory, "anomaly-memory", t.Memory, "threshold, as a `share` of a function's memory limit and of the machine's memory; 0 for none, as for all of them")
	fs.Float64Var(&t.PIDs, "anomaly-pids", t.PIDs, "threshold, as a `share` of a function's limit of processes")
	fs.Float64Var(&t.Storage, "anomaly-storage", t.Storage, "threshold, as a `share` of a sandbox's writable file systems and of the node's disk")
	fs.Float64Var(&t.CPU, "anomaly-cpu", t.CPU, "threshold, as a `share` of the machine's processors")
	fs.Float64Var(&t.Throttled, "anomaly-throttled", t.Throttled, "threshold, as a `share` of the periods in which a function's CPU limit held it back")
	fs.Float64Var(&t.Pressure, "anomaly-pressure", t.Pressure, "threshold, as a `share` of the time in which something on the machine waited for cpu, memory or io")
}
