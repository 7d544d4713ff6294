package gossip

import (
	"context"
	"fmt"
	"log"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/hashicorp/memberlist"
)

// netTransport is memberlist's UDP and TCP with dials that end at Shutdown, so
// that a seed that swallows packets does not hold Close up.
type netTransport struct {
	*memberlist.NetTransport
	ctx    context.Context // ends at Shutdown
	cancel context.CancelFunc
}

var _ memberlist.NodeAwareTransport = (*netTransport)(nil)

// listen opens UDP and TCP on bind. With port 0 the kernel chooses one for TCP
// that may be taken for UDP, hence the attempts.
func listen(ctx context.Context, bind netip.AddrPort, std *log.Logger) (*netTransport, error) {
	attempts := 1
	if bind.Port() == 0 {
		attempts = 10
	}
	var err error
	for range attempts {
		var t *memberlist.NetTransport
		t, err = memberlist.NewNetTransport(&memberlist.NetTransportConfig{
			BindAddrs: []string{bind.Addr().String()}, BindPort: int(bind.Port()), Logger: std,
		})
		if err == nil {
			life, cancel := context.WithCancel(context.WithoutCancel(ctx))
			return &netTransport{NetTransport: t, ctx: life, cancel: cancel}, nil
		}
		if !strings.Contains(err.Error(), "address already in use") {
			break
		}
	}
	return nil, api.Wrap(api.CodeUnavailable, err, fmt.Sprintf("gossip: listen on %s; is another member running there?", bind))
}

// DialTimeout dials over TCP.
func (t *netTransport) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(t.ctx, timeout)
	defer cancel()
	var d net.Dialer
	return d.DialContext(ctx, "tcp", addr)
}

// DialAddressTimeout dials over TCP; the name plays no part.
func (t *netTransport) DialAddressTimeout(addr memberlist.Address, timeout time.Duration) (net.Conn, error) {
	return t.DialTimeout(addr.Addr, timeout)
}

// Shutdown closes the sockets and ends dials.
func (t *netTransport) Shutdown() error {
	t.cancel()
	return t.NetTransport.Shutdown()
}
