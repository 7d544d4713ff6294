package network

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"time"
)

// Config is how a node attaches sandboxes.
type Config struct {
	// Dir holds the records and addresses of what is attached, below the
	// node's state directory. It has to be on a disk and the node's own.
	Dir string

	// Bridge is the node's own bridge; it is made with the first attachment.
	// Two nodes on one machine need two bridges and two subnets.
	Bridge string

	// Subnet has the addresses of sandboxes. Its first address is the bridge's.
	Subnet netip.Prefix

	// Never lists what no sandbox reaches, whatever its own list says, beyond
	// what never is reached anyway. The addresses of the cluster's other
	// servers belong here, where their daemons must be out of reach.
	Never []netip.Prefix

	// PluginDir has bridge, host-local, firewall, portmap and bandwidth.
	PluginDir string

	// NFT and IPTables are the programs of those names, looked up on the PATH
	// and in the sbin directories where they are no path.
	NFT, IPTables string

	// Deadline is for one run of all plugins, and for one run of a program.
	Deadline time.Duration
}

// Default is the configuration of a node whose state is in dir.
func Default(dir string) Config {
	return Config{
		Dir:       dir,
		Bridge:    "fsec0",
		Subnet:    netip.MustParsePrefix("10.213.0.0/16"),
		PluginDir: "/usr/lib/cni",
		NFT:       "nft",
		IPTables:  "iptables",
		Deadline:  20 * time.Second,
	}
}

// never is out of every sandbox's reach: this host, link-local addresses with
// their metadata services, the metadata services that clouds put elsewhere,
// multicast and reserved addresses.
var never = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),
	netip.MustParsePrefix("127.0.0.0/8"),
	netip.MustParsePrefix("169.254.0.0/16"),
	netip.MustParsePrefix("100.100.100.200/32"), // Alibaba Cloud
	netip.MustParsePrefix("168.63.129.16/32"),   // Azure
	netip.MustParsePrefix("192.0.0.192/32"),     // Oracle Cloud
	netip.MustParsePrefix("224.0.0.0/3"),
}

// bridgeName keeps the names made of it within the kernel's, and free of what
// nft and file systems read as more than a name.
var bridgeName = regexp.MustCompile(`^[a-z][a-z0-9]{0,14}$`)

func (c Config) check() error {
	switch {
	case c.Dir == "" || c.PluginDir == "" || c.NFT == "" || c.IPTables == "":
		return errors.New("network: a directory or program is not named")
	case !bridgeName.MatchString(c.Bridge):
		return fmt.Errorf("network: bridge %q is not 1 to 15 small letters and digits", c.Bridge)
	case !c.Subnet.Addr().Is4() || c.Subnet != c.Subnet.Masked() || c.Subnet.Bits() > 29 || c.Subnet.Bits() < 8:
		return fmt.Errorf("network: subnet %s is not an IPv4 network between /8 and /29", c.Subnet)
	case c.Deadline <= 0:
		return errors.New("network: no deadline")
	}
	for _, p := range c.Never {
		if !p.Addr().Is4() || p != p.Masked() {
			return fmt.Errorf("network: %s is not an IPv4 network", p)
		}
	}
	return nil
}

// gateway is the bridge's own address.
func (c Config) gateway() netip.Addr { return c.Subnet.Addr().Next() }
