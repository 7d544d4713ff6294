package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/enrol"
	"github.com/faasd-sec/faasd-sec/pki"
	"github.com/faasd-sec/faasd-sec/sealed"
)

// newInitCommand makes a cluster: authority, keys, first join token.
func newInitCommand(stdout io.Writer) *cobra.Command {
	var state, broker string
	var owners []string
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Make a new cluster: certificate authority, gossip key, first join token",
		Long: `Writes a coordinator's state directory with the cluster's certificate authority
and gossip key, a certificate for the key broker, and prints a token with which
machines join. Afterwards start coordinator and keybroker on this directory.`,
		Example: "  faasd-sec init --state /var/lib/faasd-sec/coordinator --owner 5f1c…\n" +
			"  faasd-sec init --keybroker /var/lib/faasd-sec/keybroker --owner any",
		Args: usageArgs(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			if len(owners) == 0 {
				return api.Invalid("owner", "name the fingerprints of keys that may deploy (faasd-sec key list shows yours), or any", "none given")
			}
			for _, o := range owners {
				if _, err := sealed.ParseFingerprint(o); err != nil && o != "any" {
					return api.Invalid("owner", "give 64 hex digits as faasd-sec key list shows them, or any", fmt.Sprintf("%q is not a fingerprint", o))
				}
			}
			// Before the cluster is made: what fails later cannot be repeated.
			tls := filepath.Join(broker, "tls.pem")
			if err := brokerRoom(broker, tls); err != nil {
				return err
			}
			token, err := enrol.Init(state, owners, rand.Reader)
			if api.CodeOf(err) == api.CodeInternal {
				return &api.Error{Code: api.CodeInvalid, Field: "--state", Err: err, Message: "cannot make the cluster", Remedy: "name an empty directory that may be written, or one to be made"}
			} else if err != nil {
				return err
			}
			ca, err := pki.Load(filepath.Join(state, enrol.CADir))
			if err != nil {
				return err
			}
			keyPEM, certPEM, err := ca.Issue(pki.RoleKeyBroker, "keybroker", pki.MaxTTL)
			if err != nil {
				return err
			}
			if err := pki.SaveIdentity(tls, keyPEM, certPEM, ca.CertificatePEM()); err != nil {
				return err
			}
			fmt.Fprintf(stdout, "cluster      %s\ncoordinator  coordinator -state %s\nkey broker   keybroker --state-dir %s   (%s may move to another machine)\n"+
				"join token   %s\n             good for 24 hours; make more with faasd-sec node token --state %s\n",
				ca.ClusterID(), state, broker, tls, token, state)
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&state, "state", "/var/lib/faasd-sec/coordinator", "the coordinator's state directory")
	f.StringVar(&broker, "keybroker", "/var/lib/faasd-sec/keybroker", "the key broker's state directory")
	f.StringArrayVar(&owners, "owner", nil, "fingerprint of a key that may deploy, or any; repeat")
	return cmd
}

// brokerRoom makes the key broker's directory and refuses one that has a certificate:
// a broker that runs would take up the new cluster's and be lost to its own.
func brokerRoom(dir, tls string) error {
	const remedy = "name another directory with --keybroker, and move it to where the key broker runs"
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return &api.Error{Code: api.CodeInvalid, Field: "--keybroker", Err: err, Message: "cannot make the key broker's directory", Remedy: remedy}
	}
	if _, err := os.Lstat(tls); err == nil {
		return &api.Error{Code: api.CodeConflict, Field: "--keybroker", Message: tls + " is there: a key broker of another cluster uses it", Remedy: remedy}
	}
	f, err := os.CreateTemp(dir, ".init-") // it can be written to
	if err == nil {
		err = errors.Join(f.Close(), os.Remove(f.Name()))
	}
	if err != nil {
		return &api.Error{Code: api.CodeInvalid, Field: "--keybroker", Err: err, Message: "cannot write into the key broker's directory", Remedy: remedy}
	}
	return nil
}

// addEnrolment adds what makes nodes to the `node` command.
func addEnrolment(node *cobra.Command, stdout io.Writer) {
	var state, coordinator, token, id string
	join := &cobra.Command{
		Use:   "join",
		Short: "Make this machine a node of a cluster",
		Long: `Asks the coordinator for a certificate with a join token and writes what the
node daemon needs into its state directory. The machine's key never leaves it, and
the token pins the cluster's certificate authority.`,
		Example: "  sudo faasd-sec node join --coordinator 10.0.0.1:7443 --token fsj1.… --id rack1-a",
		Args:    usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, f := range []struct{ name, value, remedy string }{
				{"coordinator", coordinator, "give its cluster address, host:7443"},
				{"token", token, "make one on the coordinator: faasd-sec node token"},
				{"id", id, "name this machine: a-z, 0-9, '.' and '-'"},
			} {
				if f.value == "" {
					return api.Invalid(f.name, f.remedy, "it is missing")
				}
			}
			n, err := enrol.Join(cmd.Context(), coordinator, token, id, state)
			if err != nil {
				return err
			}
			fmt.Fprintf(stdout, "joined       cluster %s as %s\nstart with   node -state %s -advertise THIS-HOST:7480 -gossip-advertise THIS-HOST:7946\n", n.Cluster, n.ID, state)
			return nil
		},
	}
	join.Flags().StringVar(&state, "state", "/var/lib/faasd-sec/node", "the node's state directory")
	join.Flags().StringVar(&coordinator, "coordinator", "", "cluster address of a coordinator, host:port")
	join.Flags().StringVar(&token, "token", "", "join token")
	join.Flags().StringVar(&id, "id", "", "the node's name")

	var cstate string
	var uses int
	var ttl time.Duration
	make := &cobra.Command{
		Use:   "token",
		Short: "Make a join token, on the coordinator's machine",
		Args:  usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			t, err := enrol.RequestToken(cmd.Context(), cstate, pki.RoleNode, uses, ttl)
			if err != nil {
				return err
			}
			fmt.Fprintln(stdout, t)
			return nil
		},
	}
	make.Flags().StringVar(&cstate, "state", "/var/lib/faasd-sec/coordinator", "the running coordinator's state directory")
	make.Flags().IntVar(&uses, "uses", 1, "how many nodes may use it")
	make.Flags().DurationVar(&ttl, "ttl", time.Hour, "how long it is good")
	node.AddCommand(join, make, drainCommand(stdout, true), drainCommand(stdout, false))
}
