package api

// MaskedProc are entries of /proc that tell about the machine or reach beyond
// the sandbox. Most are root's alone in the initial user namespace already; they
// are hidden so that this does not depend on each of them.
func MaskedProc() []string {
	return []string{
		"acpi", "asound", "scsi", "driver",
		"kcore", "kmsg", "kallsyms", "keys", "key-users",
		"kpagecgroup", "kpagecount", "kpageflags",
		"latency_stats", "timer_list", "timer_stats", "sched_debug",
		"sysrq-trigger", "interrupts", "softirqs", "iomem", "ioports",
		"slabinfo", "vmallocinfo", "modules", "config.gz", "cmdline",
		"diskstats", "partitions", "swaps", "mdstat", "pressure",
		"dynamic_debug", "bootconfig",
	}
}

// ReadOnlyProc are entries of /proc that a sandbox may read at most.
func ReadOnlyProc() []string { return []string{"bus", "fs", "irq", "sys"} }
