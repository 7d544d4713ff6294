package keybroker

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/faasd-sec/faasd-sec/api"
)

type metrics struct {
	decisions *prometheus.CounterVec
}

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	m := &metrics{decisions: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "faasd_sec_keybroker_decisions_total",
		Help: "Deposits, evidence handed in, releases and removals, by outcome: ok or the code of the refusal.",
	}, []string{"operation", "outcome"})}
	if err := r.Register(m.decisions); err != nil {
		return nil, fmt.Errorf("keybroker: register metrics: %w", err)
	}
	return m, nil
}

// decided logs and counts one decision. It names no key material: a function, who
// asked, and why.
func (b *Broker) decided(operation, function string, err error, more ...any) {
	outcome := b.counted(operation, err)
	attrs := append([]any{"operation", operation, "function", function, "outcome", outcome}, more...)
	if err != nil {
		b.cfg.Log.Warn("key broker refused", append(attrs, "error", err)...)
		return
	}
	b.cfg.Log.Info("key broker decided", attrs...)
}

func (b *Broker) counted(operation string, err error) (outcome string) {
	outcome = "ok"
	if err != nil {
		outcome = string(api.CodeOf(err))
	}
	b.metrics.decisions.WithLabelValues(operation, outcome).Inc()
	return outcome
}
