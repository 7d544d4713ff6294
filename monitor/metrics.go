package monitor

import (
	"github.com/prometheus/client_golang/prometheus"
)

// collector gives what was last sampled to Prometheus. Tasks and functions are no
// labels, since their number is not bounded; interfaces are, up to MaxIfaces.
type collector struct {
	m     *Monitor
	descs map[string]*prometheus.Desc
}

// metric names, help and label.
var metrics = []struct{ name, help, label string }{
	{"faasd_sec_machine_cpu_used_cores", "Processors in use, of the last interval.", ""},
	{"faasd_sec_machine_cpus", "Processors.", ""},
	{"faasd_sec_machine_load1", "Runnable tasks, mean of the last minute.", ""},
	{"faasd_sec_machine_memory_total_bytes", "Memory of the machine.", ""},
	{"faasd_sec_machine_memory_available_bytes", "Memory available without swapping.", ""},
	{"faasd_sec_machine_disk_size_bytes", "Size of the file system with the node's state.", ""},
	{"faasd_sec_machine_disk_free_bytes", "Room on the file system with the node's state.", ""},
	{"faasd_sec_machine_sockets", "TCP and UDP sockets in use.", ""},
	{"faasd_sec_machine_pressure_ratio", "Share of the last ten seconds in which some task waited.", "resource"},
	{"faasd_sec_machine_network_receive_bytes_total", "Bytes received.", "interface"},
	{"faasd_sec_machine_network_transmit_bytes_total", "Bytes sent.", "interface"},
	{"faasd_sec_machine_network_drops_total", "Packets dropped, both ways.", "interface"},
	{"faasd_sec_node_tasks_watched", "Tasks under watch.", ""},
	{"faasd_sec_node_tasks_unwatched", "Tasks that are not watched for want of room.", ""},
	{"faasd_sec_node_tasks_memory_bytes", "Memory of all tasks, agents included.", ""},
	{"faasd_sec_node_tasks_pids", "Processes and threads of all tasks.", ""},
	{"faasd_sec_node_tasks_storage_used_bytes", "Used of the writable file systems of all tasks.", ""},
	{"faasd_sec_node_tasks_storage_size_bytes", "Size of the writable file systems of all tasks.", ""},
	{"faasd_sec_node_tasks_cpu_seconds_total", "CPU time of all tasks there were.", ""},
	{"faasd_sec_node_tasks_throttled_seconds_total", "Time that quotas held tasks back.", ""},
	{"faasd_sec_node_tasks_oom_kills_total", "Processes of tasks that the kernel killed for memory.", ""},
	{"faasd_sec_node_tasks_read_bytes_total", "Bytes that tasks read from block devices.", ""},
	{"faasd_sec_node_tasks_written_bytes_total", "Bytes that tasks wrote to block devices.", ""},
	{"faasd_sec_node_monitor_samples_total", "Samples taken.", ""},
	{"faasd_sec_node_monitor_failures_total", "Samples of which something could not be read.", ""},
	{"faasd_sec_node_monitor_overruns_total", "Samples that took longer than the interval.", ""},
	{"faasd_sec_node_monitor_seconds_total", "Time spent on samples.", ""},
}

// Collector is to be registered once.
func (m *Monitor) Collector() prometheus.Collector {
	c := &collector{m: m, descs: make(map[string]*prometheus.Desc, len(metrics))}
	for _, d := range metrics {
		var labels []string
		if d.label != "" {
			labels = []string{d.label}
		}
		c.descs[d.name] = prometheus.NewDesc(d.name, d.help, labels, nil)
	}
	return c
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range c.descs {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	put := func(kind prometheus.ValueType, name string, v float64, label ...string) {
		ch <- prometheus.MustNewConstMetric(c.descs[name], kind, v, label...)
	}
	gauge := func(name string, v float64, label ...string) { put(prometheus.GaugeValue, name, v, label...) }
	count := func(name string, v float64, label ...string) { put(prometheus.CounterValue, name, v, label...) }
	u, at := c.m.Machine()
	t := c.m.Totals()
	if at > 0 {
		gauge("faasd_sec_machine_cpu_used_cores", float64(u.CPU)/1000)
		gauge("faasd_sec_machine_cpus", float64(u.CPUs))
		gauge("faasd_sec_machine_load1", u.Load1)
		gauge("faasd_sec_machine_memory_total_bytes", float64(u.MemoryTotal))
		gauge("faasd_sec_machine_memory_available_bytes", float64(u.MemoryAvailable))
		gauge("faasd_sec_machine_disk_size_bytes", float64(u.DiskSize))
		gauge("faasd_sec_machine_disk_free_bytes", float64(u.DiskFree))
		gauge("faasd_sec_machine_sockets", float64(u.Sockets))
	}
	for what, p := range u.Pressure {
		gauge("faasd_sec_machine_pressure_ratio", p.Some/100, what)
	}
	for _, i := range u.Interfaces {
		count("faasd_sec_machine_network_receive_bytes_total", float64(i.InAll), i.Name)
		count("faasd_sec_machine_network_transmit_bytes_total", float64(i.OutAll), i.Name)
		count("faasd_sec_machine_network_drops_total", float64(i.Drops), i.Name)
	}
	gauge("faasd_sec_node_tasks_watched", float64(t.Tasks))
	gauge("faasd_sec_node_tasks_unwatched", float64(t.Unwatched))
	gauge("faasd_sec_node_tasks_memory_bytes", float64(t.Memory))
	gauge("faasd_sec_node_tasks_pids", float64(t.PIDs))
	gauge("faasd_sec_node_tasks_storage_used_bytes", float64(t.StorageUsed))
	gauge("faasd_sec_node_tasks_storage_size_bytes", float64(t.StorageSize))
	count("faasd_sec_node_tasks_cpu_seconds_total", t.CPU.Seconds())
	count("faasd_sec_node_tasks_throttled_seconds_total", t.Throttled.Seconds())
	count("faasd_sec_node_tasks_oom_kills_total", float64(t.OOMKills))
	count("faasd_sec_node_tasks_read_bytes_total", float64(t.ReadBytes))
	count("faasd_sec_node_tasks_written_bytes_total", float64(t.WriteBytes))
	count("faasd_sec_node_monitor_samples_total", float64(t.Samples))
	count("faasd_sec_node_monitor_failures_total", float64(t.Failures))
	count("faasd_sec_node_monitor_overruns_total", float64(t.Overruns))
	count("faasd_sec_node_monitor_seconds_total", t.Spent.Seconds())
}
