package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/enrol"
	"github.com/faasd-sec/faasd-sec/gossip"
	"github.com/faasd-sec/faasd-sec/pki"
	"github.com/faasd-sec/faasd-sec/registry"
	"github.com/faasd-sec/faasd-sec/replica"
	"github.com/faasd-sec/faasd-sec/store"
)

// memberFile holds the certificate for other coordinators' stores.
const memberFile = "member.pem"

// joinOthers makes the state directory that of one more coordinator, once.
func joinOthers(ctx context.Context, o options, log *slog.Logger) error {
	if o.join == "" {
		return nil
	}
	var cl enrol.Cluster
	if err := enrol.Load(o.state, enrol.ClusterFile, "", &cl); err == nil {
		return nil // it has joined before
	} else if api.CodeOf(err) != api.CodeNotFound {
		return err
	}
	if o.peerListen == "" {
		return api.Invalid("peer-listen", "coordinators share their store: give -peer-listen and -peer-advertise", "-join without it")
	}
	token := o.joinToken
	if path, ok := strings.CutPrefix(token, "@"); ok {
		b, err := os.ReadFile(path)
		if err != nil {
			return api.Invalid("join-token", "name a file with the token", err.Error())
		}
		token = strings.TrimSpace(string(b))
	}
	if err := enrol.JoinAsCoordinator(ctx, o.join, token, o.id, o.peerAdvertise, o.state); err != nil {
		return err
	}
	log.Info("joined as a coordinator", "through", o.join)
	return nil
}

// storeConfig is the store that the flags describe. member is nil for one that
// is alone or elsewhere.
func storeConfig(o options, ca *pki.Authority, log *slog.Logger) (cfg store.Config, member *pki.Member, err error) {
	cfg = store.DefaultConfig(filepath.Join(o.state, "etcd"), log)
	if o.etcd != "" {
		if o.peerListen != "" {
			return cfg, nil, api.Invalid("peer-listen", "leave out -etcd or -peer-listen", "an etcd elsewhere has members of its own")
		}
		cfg.Dir, cfg.Endpoints = "", strings.Split(o.etcd, ",")
		cfg.TLS, err = etcdTLS(o)
		return cfg, nil, err
	}
	if o.peerListen == "" {
		if _, err := os.Stat(filepath.Join(o.state, memberFile)); err == nil {
			return cfg, nil, api.Invalid("peer-listen", "give it and -peer-advertise as before; to go on alone, remove the others first and then "+memberFile,
				"this coordinator has been one of several")
		}
		return cfg, nil, nil
	}
	if member, err = ca.EnsureMember(filepath.Join(o.state, memberFile), filepath.Join(o.state, enrol.CADir)); err != nil {
		return cfg, nil, err
	}
	member.Log = log
	cfg.Name = o.id
	cfg.Peers = &store.Peers{Listen: o.peerListen, Advertise: o.peerAdvertise, CertFile: member.File, CAFile: member.CAFile,
		CertName: member.Name, Initial: o.peers, ForgetOthers: o.peerForgetOthers}
	var m enrol.Members
	switch err := enrol.Load(o.state, enrol.MembersFile, "", &m); {
	case err == nil:
		cfg.Peers.Initial, cfg.Peers.Join = m.Initial, true
	case api.CodeOf(err) != api.CodeNotFound:
		return cfg, nil, err
	}
	return cfg, member, nil
}

// otherCoordinators are the cluster addresses of those that the mesh shows.
func otherCoordinators(mesh *gossip.Mesh, self string) func() []string {
	return func() []string {
		var all []string
		for _, n := range mesh.Snapshot().Nodes {
			if n.Meta.ID != self && slices.Contains(n.Meta.Roles, api.RoleCoordinator) {
				all = append(all, n.Meta.Addr)
			}
		}
		return all
	}
}

// replicas are the registries of all coordinators.
func replicas(life context.Context, o options, images *registry.Registry, st *store.Store, mesh *gossip.Mesh,
	identity *pki.Identity, log *slog.Logger) *replica.Replicas {
	others := otherCoordinators(mesh, o.id)
	return replica.New(life, images, replica.Config{
		Self: o.clusterAdvertise, Others: others, Log: log,
		Count: func(ctx context.Context) (int, error) {
			switch {
			case o.etcd != "": // its members are not coordinators
				return 1 + len(others()), nil
			case o.peerListen == "":
				return 1, nil
			}
			members, err := st.Members(ctx)
			return len(members), err
		},
		TLS: pki.ClientConfig(identity, pki.RoleCoordinator, pki.AnyID),
	})
}

// errRemoved ends a coordinator whose store stopped by itself.
func errRemoved(id string) error {
	return &api.Error{Code: api.CodeUnavailable, Field: "store", Err: errors.New("its member stopped"),
		Message: "coordinator " + id + " is no member of the store any longer",
		Remedy:  "to have it back, move its state away and join again with a new token"}
}

// parsePeers reads -peers.
func parsePeers(text string) (map[string]string, error) {
	if text == "" {
		return nil, nil
	}
	all := map[string]string{}
	for part := range strings.SplitSeq(text, ",") {
		name, addr, ok := strings.Cut(part, "=")
		if _, twice := all[name]; !ok || name == "" || addr == "" || twice {
			return nil, api.Invalid("peers", "write ID=HOST:PORT,ID=HOST:PORT,… with all coordinators, this one too", part)
		}
		all[name] = addr
	}
	return all, nil
}
