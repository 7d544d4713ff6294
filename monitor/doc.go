// Package monitor watches one machine: what it and each task on it use, by procfs
// and cgroups, in samples at an even pace.
//
// It promises a bounded cost. Its memory is fixed for each task it watches and
// the number of those is bounded; a sample costs a handful of reads of files that
// stay open for each task (BenchmarkSample measures it); and nothing of it is on
// the way of an invocation: it asks the node for its list of tasks, at its own
// pace, and the node asks it for nothing.
//
// It promises no exactness. Counters of one sample are read one after the other.
// What happens between two samples shows in counters and not in gauges, and a
// task that comes and goes between two is not seen. What must not be missed, such
// as the end of a process, is not left to it.
//
// Beyond thresholds that hold for a while it appends to the anomaly log.
package monitor
