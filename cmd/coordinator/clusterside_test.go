package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/coordinator"
	"github.com/faasd-sec/faasd-sec/daemon"
	"github.com/faasd-sec/faasd-sec/pki"
)

// TestOnlyCoordinatorsAreToldWhatWaitsAndIsWanted asks a cluster listener as all who
// can reach it.
func TestOnlyCoordinatorsAreToldWhatWaitsAndIsWanted(t *testing.T) {
	ca, err := pki.NewCluster(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	identity := func(role pki.Role, id string) *pki.Identity {
		key, cert, err := ca.Issue(role, id, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		i, err := pki.NewIdentity(key, cert, ca.CertificatePEM())
		if err != nil {
			t.Fatal(err)
		}
		return i
	}
	log := slog.New(slog.DiscardHandler)
	ln, err := daemon.Listen("127.0.0.1:0", pki.OptionalPeerConfig(identity(pki.RoleCoordinator, "coordinator-2"), pki.RoleNode, pki.RoleCoordinator))
	if err != nil {
		t.Fatal(err)
	}
	answers := func(ctx *fasthttp.RequestCtx) { ctx.SetBodyString("[]") }
	side := &clusterSide{log: log, waits: answers, demand: answers}
	server := daemon.Server(side.serve((&coordinator.Coordinator{}).Cluster(nodeOf)), log)
	go server.Serve(ln)
	t.Cleanup(func() { _ = server.Shutdown() })

	askFor := func(path string, transport *http.Transport) (int, error) {
		defer transport.CloseIdleConnections()
		client := &http.Client{Transport: transport, Timeout: 20 * time.Second}
		resp, err := client.Get("https://" + ln.Addr().String() + path)
		if err != nil {
			return 0, err
		}
		defer resp.Body.Close()
		_, err = io.Copy(io.Discard, resp.Body)
		return resp.StatusCode, err
	}
	ask := func(transport *http.Transport) (int, error) {
		code, err := askFor(api.GatewayPathWaits, transport)
		if other, oerr := askFor(api.GatewayPathDemand+"f.ns", transport); other != code || (oerr == nil) != (err == nil) {
			t.Errorf("of what waits: %d, %v; of the demand: %d, %v", code, err, other, oerr)
		}
		return code, err
	}
	member := api.NodeMeta{ID: "coordinator-2", Addr: ln.Addr().String(), Roles: []string{api.RoleCoordinator}}
	as := func(i *pki.Identity) *http.Transport {
		return &http.Transport{TLSClientConfig: pki.ClientConfig(i, pki.RoleCoordinator, pki.AnyID)}
	}
	if code, err := ask(as(identity(pki.RoleCoordinator, "coordinator-1"))); err != nil || code != http.StatusOK {
		t.Errorf("another coordinator: %d, %v", code, err)
	}
	if code, err := ask(as(identity(pki.RoleNode, "node-1"))); err != nil || code != http.StatusNotFound {
		t.Errorf("a node: %d, %v", code, err)
	}
	if code, err := ask(as(identity(pki.RoleKeyBroker, "broker"))); err == nil {
		t.Errorf("the key broker: %d", code)
	}
	nobody := as(identity(pki.RoleCoordinator, "coordinator-1"))
	nobody.TLSClientConfig.Certificates, nobody.TLSClientConfig.GetClientCertificate = nil, nil
	if code, err := ask(nobody); err != nil || code != http.StatusUnauthorized {
		t.Errorf("one without a certificate: %d, %v", code, err)
	}

	// Who asks makes sure of whom it asks: gossip may name any address.
	dial := func(i *pki.Identity, role pki.Role, m api.NodeMeta) error {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		conn, err := memberDialer{identity: i, role: role}.DialNode(ctx, m)
		if err != nil {
			return err
		}
		return conn.Close()
	}
	first := identity(pki.RoleCoordinator, "coordinator-1")
	if err := dial(first, pki.RoleCoordinator, member); err != nil {
		t.Errorf("the coordinator that gossip names: %v", err)
	}
	other := member
	other.ID = "coordinator-3"
	if dial(first, pki.RoleCoordinator, other) == nil {
		t.Error("another coordinator's address was taken for the one that gossip names")
	}
	if dial(first, pki.RoleNode, member) == nil {
		t.Error("a coordinator was taken for a node")
	}
}

// TestStrangersCannotFillACoordinatorsMemory sends what never ends to the one path
// of the cluster listener that reads a body of whoever has no certificate.
func TestStrangersCannotFillACoordinatorsMemory(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	ln, err := daemon.Listen("127.0.0.1:0", nil)
	if err != nil {
		t.Fatal(err)
	}
	side := &clusterSide{life: t.Context(), log: log}
	server := daemon.Server(side.serve((&coordinator.Coordinator{}).Cluster(nodeOf)), log)
	go server.Serve(ln)
	t.Cleanup(func() { _ = server.Shutdown() })
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(15 * time.Second)); err != nil { // before the server's own patience ends
		t.Fatal(err)
	}
	_, _ = fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", api.GatewayPathJoinCoordinator)
	piece := append([]byte("10000\r\n"), append(make([]byte, 64<<10), "\r\n"...)...)
	for range 4 { // and no end
		if _, err := c.Write(piece); err != nil {
			break // it was refused already
		}
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatalf("no answer to a body that is far too long: %v", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusRequestEntityTooLarge || !resp.Close {
		t.Errorf("status %d, the connection ends: %t", resp.StatusCode, resp.Close)
	}
}
