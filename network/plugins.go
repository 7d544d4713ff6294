package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	gocni "github.com/containerd/go-cni"
)

// inside is the interface's name in the sandbox: go-cni's prefix and number.
const inside = gocni.DefaultPrefix + "0"

// plugins are what makes an attachment, in order; host-local is bridge's.
var plugins = []string{"bridge", "host-local", "firewall", "portmap", "bandwidth"}

// networkName keeps what plugins name after the network apart from other nodes'.
func (c Config) networkName() string { return "faasd-sec-" + c.Bridge }

// conflist is the configuration of the plugins, which nobody else writes.
//
// The bridge plugin does not masquerade: what it sets up for it is left behind
// when the sandbox's namespace is gone before the removal. A rule of ours does,
// for all of the subnet.
func (c Config) conflist() ([]byte, error) {
	type obj = map[string]any
	return json.Marshal(obj{
		"cniVersion": "1.0.0",
		"name":       c.networkName(),
		"plugins": []obj{
			{
				"type": "bridge", "bridge": c.Bridge, "isGateway": true, "ipMasq": false, "hairpinMode": false,
				"ipam": obj{
					"type":    "host-local",
					"dataDir": c.ipamDir(),
					"ranges":  [][]obj{{{"subnet": c.Subnet.String(), "gateway": c.gateway().String()}}},
					"routes":  []obj{{"dst": "0.0.0.0/0"}},
				},
			},
			{"type": "firewall", "backend": "iptables", "iptablesAdminChainName": c.adminChain()},
			{"type": "portmap", "capabilities": obj{"portMappings": true}, "snat": true},
			{"type": "bandwidth", "capabilities": obj{"bandwidth": true}},
		},
	})
}

// adminChain is where the firewall plugin has iptables look first.
func (c Config) adminChain() string { return "CNI-" + strings.ToUpper(c.Bridge) }

func (c Config) ipamDir() string { return filepath.Join(c.Dir, "ipam") }

func (c Config) loadPlugins() (gocni.CNI, error) {
	for _, p := range plugins {
		if _, err := os.Stat(filepath.Join(c.PluginDir, p)); err != nil {
			return nil, fmt.Errorf("network: CNI plugin %s (Debian's containernetworking-plugins): %w", p, err)
		}
	}
	conf, err := c.conflist()
	if err != nil {
		return nil, fmt.Errorf("network: %w", err)
	}
	n, err := gocni.New(gocni.WithPluginDir([]string{c.PluginDir}), gocni.WithConfListBytes(conf))
	if err != nil {
		return nil, fmt.Errorf("network: CNI: %w", err)
	}
	return n, nil
}

func (m *Manager) capabilities(w Want) []gocni.NamespaceOpts {
	ports := make([]gocni.PortMapping, 0, len(w.Ports))
	for _, p := range w.Ports {
		ports = append(ports, gocni.PortMapping{HostPort: int32(p.Host), ContainerPort: int32(p.Sandbox), Protocol: p.Protocol})
	}
	return []gocni.NamespaceOpts{
		gocni.WithArgs("IgnoreUnknown", "1"), gocni.WithArgs(mark, m.mark),
		gocni.WithCapabilityPortMap(ports),
		gocni.WithCapabilityBandWidth(gocni.BandWidth{
			IngressRate: uint64(w.Ingress), IngressBurst: uint64(burst(w.Ingress)),
			EgressRate: uint64(w.Egress), EgressBurst: uint64(burst(w.Egress)),
		}),
	}
}

func (m *Manager) add(ctx context.Context, r *record, n *namespace) error {
	// Serially is in this goroutine; there is one network.
	err := m.bounded(ctx, r.ID, func(ctx context.Context) error {
		_, err := m.cni.SetupSerially(ctx, r.ID, n.path(), m.capabilities(r.Want)...)
		return err
	})
	if err != nil {
		return fmt.Errorf("network: attach %s: %w", r.ID, err)
	}
	return nil
}

// del runs the plugins' removal, which is the same for what was never made. An
// empty path is a namespace that is gone.
func (m *Manager) del(ctx context.Context, r *record, path string) error {
	err := m.bounded(ctx, r.ID, func(ctx context.Context) error {
		return m.cni.Remove(ctx, r.ID, path, m.capabilities(r.Want)...)
	})
	if err != nil {
		return fmt.Errorf("network: detach %s: %w", r.ID, err)
	}
	return nil
}

// bounded runs plugins until the deadline. The library kills the plugin then,
// and waits for the plugin's children, which have its output open; those are
// killed here.
func (m *Manager) bounded(ctx context.Context, id string, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, m.cfg.Deadline)
	defer cancel()
	ended := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() { ended <- m.settle(context.WithoutCancel(ctx), id) })
	err := f(ctx)
	if !stop() {
		err = errors.Join(context.Cause(ctx), err, <-ended)
	}
	return err
}
