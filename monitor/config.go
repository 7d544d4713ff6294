package monitor

import (
	"fmt"
	"time"

	"github.com/faasd-sec/faasd-sec/anomaly"
	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/cgroups"
)

// Config sets up a Monitor. DefaultConfig fills all but Tasks.
type Config struct {
	Every     time.Duration // between two samples of counters
	SlowEvery time.Duration // between two looks at what costs more: file systems, interfaces, pressure
	Fine      int           // samples kept as they are
	Coarse    int           // samples kept folded
	Fold      int           // into one
	MaxTasks  int           // watched at once; more have no numbers
	MaxIfaces int           // of the machine

	Proc  string   // where procfs is mounted
	State string   // a path on the file system whose room counts
	Skip  []string // mount points in tasks that hold nothing of theirs

	Thresholds Thresholds

	Tasks     func() []Task // what runs now; called before each sample
	Anomalies anomaly.Sink  // nil is none
	Now       func() time.Time
}

// Thresholds say what is noted in the anomaly log. A share of 0 turns one off.
type Thresholds struct {
	For       time.Duration // a threshold must be passed for so long
	Again     time.Duration // and is noted again so long after, while it still is
	Memory    float64       // of a task's limit, or of the machine's memory
	PIDs      float64       // of a task's limit
	Storage   float64       // of a task's writable file systems, or of the machine's disk
	CPU       float64       // of the machine's processors
	Throttled float64       // of the periods of a task's CPU quota
	Pressure  float64       // share of time that some task on the machine waited for cpu, memory or io
}

// DefaultConfig samples each second and keeps five minutes as they are and an
// hour by 15 seconds: about 22 KiB for each task.
func DefaultConfig() Config {
	return Config{
		Every: time.Second, SlowEvery: 5 * time.Second, Fine: 300, Coarse: 240, Fold: 15, MaxTasks: 1024, MaxIfaces: 16,
		Proc: "/proc", State: "/", Thresholds: DefaultThresholds(), Now: time.Now,
	}
}

// DefaultThresholds note what lasts for half a minute, every ten minutes.
func DefaultThresholds() Thresholds {
	return Thresholds{For: 30 * time.Second, Again: 10 * time.Minute,
		Memory: 0.9, PIDs: 0.9, Storage: 0.9, CPU: 0.95, Throttled: 0.25, Pressure: 0.5}
}

// Task is one sandbox to watch.
type Task struct {
	ID       string
	Function api.FunctionName
	Revision string        // hex
	Limits   api.Resources // of the function
	Sealed   bool          // a manifest set the limits: its events tell shares in percent, and no amount that shows one
	Group    cgroups.Group
	Inner    []cgroups.Group // those inside Group whose memory and pids the limits are on
}

func (c *Config) check() error {
	invalid := func(field, remedy string, v any) error { return api.Invalid(field, remedy, fmt.Sprintf("%v", v)) }
	t := c.Thresholds
	switch {
	case c.Every < 100*time.Millisecond || c.SlowEvery < c.Every:
		return invalid("monitor-every", "give 100ms or more, not above the slow interval", c.Every)
	case c.Fine < 1 || c.Coarse < 0 || c.Fold < 1 || c.MaxTasks < 1 || c.MaxIfaces < 0:
		return invalid("monitor", "begin with DefaultConfig", "a bound is out of range")
	case c.Tasks == nil || c.Now == nil:
		return invalid("monitor", "give Tasks and Now", "one is nil")
	case t.For <= 0 || t.Again < t.For:
		return invalid("anomaly-for", "give a positive time, not above that to the next note", t.For)
	}
	for _, s := range []struct {
		name  string
		share float64
	}{{"memory", t.Memory}, {"pids", t.PIDs}, {"storage", t.Storage}, {"cpu", t.CPU}, {"throttled", t.Throttled}, {"pressure", t.Pressure}} {
		if !(s.share >= 0 && s.share <= 1) {
			return invalid("anomaly-"+s.name, "give a share from 0, for off, to 1", s.share)
		}
	}
	return nil
}
