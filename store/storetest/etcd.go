// Package storetest runs a real etcd for tests of what talks to one elsewhere.
package storetest

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/url"
	"path/filepath"
	"sync"
	"testing"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
)

// A single member elects itself after the second of these; in milliseconds.
const tick, election = 20, 100

// Serve starts an etcd for clients at that address, with TLS where info is not
// empty, until stop or the end of the test. It returns once the etcd takes writes.
func Serve(t testing.TB, client url.URL, info transport.TLSInfo) (stop func()) {
	t.Helper()
	c := embed.NewConfig()
	c.Dir = filepath.Join(t.TempDir(), "data")
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	nowhere := url.URL{Scheme: "http", Host: "127.0.0.1:1"}
	c.ListenClientUrls, c.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	c.ListenPeerUrls, c.AdvertisePeerUrls = nil, []url.URL{nowhere}
	c.ClientTLSInfo = info
	c.InitialCluster = c.InitialClusterFromName(c.Name)
	c.TickMs, c.ElectionMs, c.EnableGRPCGateway = tick, election, false
	e, err := embed.StartEtcd(c)
	if err != nil {
		t.Fatal(err)
	}
	stop = sync.OnceFunc(e.Close)
	t.Cleanup(stop)
	<-e.Server.ReadyNotify()
	return stop
}

// FreeAddr is an address of this machine that nobody listens on. Its port is none of
// those that connections are given, so that none has it before it is used.
func FreeAddr(t testing.TB) string {
	t.Helper()
	for range 100 {
		ln, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 10_000+rand.N(20_000)))
		if err != nil {
			continue
		}
		if err := ln.Close(); err != nil {
			t.Fatal(err)
		}
		return ln.Addr().String()
	}
	t.Fatal("no port is free")
	return ""
}
