package store

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/membership"
	etcderrors "go.etcd.io/etcd/server/v3/etcdserver/errors"
	"go.etcd.io/raft/v3"

	"github.com/faasd-sec/faasd-sec/api"
)

// Members on several machines take longer to hear of each other than one
// needs to elect itself: etcd's own defaults.
const (
	peerTickMs     = 100
	peerElectionMs = 10 * peerTickMs
)

// Peers says how an embedded member meets others. Between members there is
// mutual TLS 1.3; certificates are read anew for each connection.
type Peers struct {
	Listen    string // ip:port for other members
	Advertise string // host:port under which they reach Listen

	CertFile string // PEM of certificate and key, which both sides show
	CAFile   string // PEM of the authority that the other side's must chain to
	CertName string // the DNS name that the other side's must carry

	// Initial are the members, this one among them, by name with the address
	// that each advertises. It counts while the directory is empty; nil is
	// this member alone.
	Initial map[string]string
	// Join says that Initial is a cluster that runs already and has this
	// member added: see AddMember.
	Join bool
	// ForgetOthers makes this member the only one, with all it has. It is for
	// when most members are lost for good; of those none may come back.
	ForgetOthers bool

	// Patience is how long a member that has had a vote before waits for a majority
	// when it starts, before it goes on with what it knows; 0 is ten seconds.
	Patience time.Duration
}

func (p *Peers) patience() time.Duration {
	if p.Patience > 0 {
		return p.Patience
	}
	return 10 * time.Second
}

func (p *Peers) check() error {
	if p == nil {
		return nil
	}
	host, _, err := net.SplitHostPort(p.Listen)
	if err != nil || (net.ParseIP(host) == nil && host != "localhost") {
		return api.Invalid("store.peers.listen", "give an address of this machine as IP:PORT", fmt.Sprintf("%q", p.Listen))
	}
	if err := checkPeerAddress(p.Advertise); err != nil {
		return err
	}
	if p.CertFile == "" || p.CAFile == "" || p.CertName == "" {
		return api.Invalid("store.peers.cert", "give certificate, authority and name", "members do not speak in clear")
	}
	for _, name := range slices.Sorted(maps.Keys(p.Initial)) {
		if err := checkPeerAddress(p.Initial[name]); err != nil {
			return err
		}
	}
	return nil
}

func checkPeerAddress(addr string) error {
	host, port, err := net.SplitHostPort(addr)
	ip := net.ParseIP(host)
	if err != nil || host == "" || port == "" || port == "0" || (ip != nil && ip.IsUnspecified()) || strings.ContainsAny(addr, ",=/") {
		return api.Invalid("store.peers.advertise", "give the host:port under which other coordinators reach this one", fmt.Sprintf("%q", addr))
	}
	return nil
}

func peerURL(addr string) url.URL { return url.URL{Scheme: "https", Host: addr} }

// apply configures etcd for members elsewhere.
func (p *Peers) apply(c *embed.Config) {
	c.ListenPeerUrls, c.AdvertisePeerUrls = []url.URL{peerURL(p.Listen)}, []url.URL{peerURL(p.Advertise)}
	c.TickMs, c.ElectionMs = peerTickMs, peerElectionMs
	c.PeerTLSInfo.CertFile, c.PeerTLSInfo.KeyFile = p.CertFile, p.CertFile
	c.PeerTLSInfo.TrustedCAFile, c.PeerTLSInfo.ClientCertAuth = p.CAFile, true
	// Who a member is its certificate's name says, wherever it calls from: the
	// name is asked of servers as of clients, and replaces etcd's own check
	// that a certificate names the caller's address.
	c.PeerTLSInfo.ServerName, c.PeerTLSInfo.AllowedHostnames = p.CertName, []string{p.CertName}
	c.PeerTLSInfo.SkipClientSANVerify = true
	c.PeerTLSInfo.MinVersion = tls.VersionTLS13
	c.TlsMinVersion = "TLS1.3"
	c.InitialCluster = c.Name + "=" + c.AdvertisePeerUrls[0].String()
	if len(p.Initial) > 0 {
		var all []string
		for _, name := range slices.Sorted(maps.Keys(p.Initial)) {
			u := peerURL(p.Initial[name])
			all = append(all, name+"="+u.String())
		}
		c.InitialCluster = strings.Join(all, ",")
	}
	if p.Join {
		c.ClusterState = embed.ClusterStateFlagExisting
	}
	c.ForceNewCluster = p.ForgetOthers
}

// settle makes a member that starts what it should be: known under the address
// that it advertises now, and with a vote once it has caught up.
func (m *member) settle(ctx context.Context, cfg Config) error {
	s := m.etcd.Server
	want := peerURL(cfg.Peers.Advertise)
	for {
		me := s.Cluster().Member(s.MemberID())
		if me == nil {
			return startFailure(cfg, etcderrors.ErrStopped)
		}
		var err error
		switch {
		case !slices.Equal(me.PeerURLs, []string{want.String()}):
			_, err = s.UpdateMember(ctx, membership.Member{ID: me.ID, RaftAttributes: membership.RaftAttributes{
				PeerURLs: []string{want.String()}, IsLearner: me.IsLearner}})
		case me.IsLearner:
			_, err = s.PromoteMember(ctx, uint64(me.ID))
		default:
			return nil
		}
		if err != nil {
			if sleep(ctx, firstPause) != nil {
				return startFailure(cfg, errors.Join(err, ctx.Err()))
			}
		}
	}
}

// settleLate is settle for a member that went on without a majority, once there is one.
func (s *Store) settleLate() {
	for s.life.Err() == nil {
		ctx, cancel := s.bound(s.life)
		err := s.member.settle(ctx, s.cfg)
		cancel()
		if err == nil {
			return
		}
		s.cfg.Log.Warn("the member is not settled; trying again", "error", err)
		select {
		case <-s.Stopped():
			return
		case <-time.After(mostPause):
		case <-s.life.Done():
		}
	}
}

// startFailure says what stands in a member's way, and what helps.
func startFailure(cfg Config, err error) error {
	e := &api.Error{Code: api.CodeUnavailable, Field: "store", Err: err,
		Message: fmt.Sprintf("the embedded store in %s does not start: %v", cfg.Dir, err),
		Remedy:  "look at the error; the directory is as it was"}
	text := err.Error()
	switch {
	case strings.Contains(text, "removed from the cluster"), strings.Contains(text, "permanently removed"):
		e.Message = fmt.Sprintf("the member in %s was removed from its cluster", cfg.Dir)
		e.Remedy = "to have it back, move its state away and join again with a new token"
	case strings.Contains(text, "cluster ID mismatch"), strings.Contains(text, "unmatched"), strings.Contains(text, "mismatch"):
		e.Message = fmt.Sprintf("the store in %s belongs to another cluster than its peers: %v", cfg.Dir, err)
		e.Remedy = "check the peers' addresses, or join anew with an empty state directory"
	case cfg.Peers != nil && (errors.Is(err, context.DeadlineExceeded) || errors.Is(err, etcderrors.ErrTimeout)):
		e.Message = fmt.Sprintf("the store in %s found no majority of its members", cfg.Dir)
		e.Remedy = "start the other coordinators and check that -peer-advertise of each can be reached; " +
			"if most are lost for good, see -peer-forget-others"
	}
	return e
}

// Member is one member of the store.
type Member struct {
	Name    string `json:"name"` // "" until it has started once
	ID      uint64 `json:"id"`
	Address string `json:"address"` // host:port for members; "" where it is alone
	Learner bool   `json:"learner"` // it has no vote yet
	Leader  bool   `json:"leader"`
}

// Members reads the members as the majority has them.
func (s *Store) Members(ctx context.Context) ([]Member, error) {
	ctx, cancel := s.bound(ctx)
	defer cancel()
	res, err := s.client.MemberList(ctx)
	if err != nil {
		return nil, failure("list the members", err)
	}
	var all []Member
	for _, m := range res.Members {
		at := ""
		if len(m.PeerURLs) > 0 {
			at = strings.TrimPrefix(m.PeerURLs[0], "https://")
		}
		all = append(all, Member{Name: m.Name, ID: m.ID, Address: at, Learner: m.IsLearner,
			Leader: s.member != nil && uint64(s.member.etcd.Server.Leader()) == m.ID})
	}
	return all, nil
}

// AddMember makes room for a member called name that advertises addr, and
// returns what it starts with as Peers.Initial. It has no vote before it has
// caught up, so that one that never starts costs no majority. An attempt that
// was broken off may be repeated with the same address.
func (s *Store) AddMember(ctx context.Context, name, addr string) (map[string]string, error) {
	if s.member == nil || s.cfg.Peers == nil {
		return nil, &api.Error{Code: api.CodeUnavailable, Field: "peer-listen", Message: "this coordinator's store takes no other members",
			Remedy: "restart it with -peer-listen and -peer-advertise"}
	}
	if err := checkPeerAddress(addr); err != nil {
		return nil, err
	}
	members, err := s.Members(ctx)
	if err != nil {
		return nil, err
	}
	initial := map[string]string{name: addr}
	for _, m := range members {
		switch {
		case m.Name == name:
			return nil, &api.Error{Code: api.CodeConflict, Field: "id", Message: "the store has a member " + name + " already",
				Remedy: "choose another -id, or remove the lost one first: faasd-sec coordinator remove " + name}
		case m.Address == addr && m.Name == "":
			if err := s.removeMember(ctx, m.ID); err != nil {
				return nil, err
			}
			continue
		case m.Address == addr:
			return nil, &api.Error{Code: api.CodeConflict, Field: "peer-advertise", Message: addr + " is the address of member " + m.Name,
				Remedy: "give each coordinator an address of its own"}
		case m.Learner:
			return nil, &api.Error{Code: api.CodeConflict, Field: "id", Message: "another coordinator is joining at " + m.Address,
				Remedy: "let it finish, or remove it: faasd-sec coordinator remove " + m.Address}
		}
		known := m.Name
		if known == "" {
			known = fmt.Sprintf("member-%x", m.ID)
		}
		initial[known] = m.Address
	}
	return initial, s.addLearner(ctx, addr)
}

// addPatience is how long a member may take to count as connected: etcd adds
// none while another has been connected for less than five seconds.
const addPatience = 15 * time.Second

func (s *Store) addLearner(ctx context.Context, addr string) error {
	ctx, cancel := context.WithTimeout(ctx, addPatience)
	defer cancel()
	u := peerURL(addr)
	for {
		actx, done := s.bound(ctx)
		_, err := s.client.MemberAddAsLearner(actx, []string{u.String()})
		done()
		if !errors.Is(err, rpctypes.ErrUnhealthy) || sleep(ctx, 10*firstPause) != nil {
			return failure("add a member", err)
		}
	}
}

// RemoveMember takes the member of that name or address out, for good: what
// runs there stops. Its machine may join again as a new member.
func (s *Store) RemoveMember(ctx context.Context, nameOrAddress string) error {
	members, err := s.Members(ctx)
	if err != nil {
		return err
	}
	for _, m := range members {
		if m.Name != nameOrAddress && m.Address != nameOrAddress {
			continue
		}
		if len(members) == 1 {
			return &api.Error{Code: api.CodeConflict, Field: "id", Message: m.Name + " is the only member", Remedy: "nothing would be left; stop it instead"}
		}
		return s.removeMember(ctx, m.ID)
	}
	return notFound("member " + nameOrAddress)
}

func (s *Store) removeMember(ctx context.Context, id uint64) error {
	ctx, cancel := s.bound(ctx)
	defer cancel()
	_, err := s.client.MemberRemove(ctx, id)
	return failure("remove a member", err)
}

// Majority reports whether this member knows of a majority, without asking it; of an
// etcd elsewhere, whether it answered some seconds ago. Without one nothing can be
// written or read anew.
func (s *Store) Majority() error {
	if s.member == nil {
		if away := s.away.Load(); away != nil {
			return away
		}
		return nil
	}
	if uint64(s.member.etcd.Server.Leader()) != raft.None {
		return nil
	}
	return &api.Error{Code: api.CodeUnavailable, Field: "store", Message: "the store has no majority of its members",
		Remedy: "start the other coordinators; functions that are known here are invoked meanwhile"}
}

// Stopped is closed when the embedded member has stopped by itself, as one
// does that was removed; nil where etcd is elsewhere.
func (s *Store) Stopped() <-chan struct{} {
	if s.member == nil {
		return nil
	}
	return s.member.etcd.Server.StopNotify()
}
