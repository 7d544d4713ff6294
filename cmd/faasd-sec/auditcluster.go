package main

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/faasd-sec/faasd-sec/anomaly"
	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/pki"
)

// showCluster prints the events of all logs of a cluster.
func (a *app) showCluster(ctx context.Context, f anomaly.Filter, follow bool) error {
	c, err := a.anonymous()
	if err != nil {
		return err
	}
	defer c.Close()
	q := f.Query()
	if follow {
		q.Set(api.QueryFollow, "1")
	} else {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Minute)
		defer cancel()
	}
	missing := 0
	err = c.Anomalies(ctx, q, func(line []byte) error {
		var e clusterEvent
		if err := json.Unmarshal(line, &e); err != nil {
			a.notef("warning: a line that is no event: %s", one(err.Error()))
			return nil
		}
		if e.Error != "" {
			missing++
			a.notef("warning: the log of %s could not be read: %s", one(e.Log), one(e.Error))
			return nil
		}
		text := e.text()
		if a.json() {
			text = string(line)
		}
		if _, err := fmt.Fprintln(a.stdout, one(text)); err != nil {
			return fmt.Errorf("write the log: %w", err)
		}
		return nil
	})
	if follow && errors.Is(err, context.Canceled) {
		return nil // interrupted by who watched
	}
	if err == nil && missing > 0 {
		err = api.Errorf(api.CodeUnavailable, "%d logs could not be read", missing)
	}
	return err
}

// clusterEvent is a line of the gateway's.
type clusterEvent struct {
	Log      string           `json:"log"` // whose it is
	Error    string           `json:"error"`
	Seq      uint64           `json:"seq"`
	Time     string           `json:"time"`
	Node     string           `json:"node"`
	Kind     string           `json:"kind"`
	Code     string           `json:"code"`
	Function string           `json:"function"`
	Revision string           `json:"revision"`
	Sandbox  string           `json:"sandbox"`
	Numbers  map[string]int64 `json:"numbers"`
}

func (e *clusterEvent) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s  %s:%d  %-19s %s", e.Time, e.Log, e.Seq, e.Kind, e.Node)
	for _, s := range []string{e.Code, api.FunctionName(e.Function).Short(), e.Sandbox} {
		if s != "" {
			b.WriteString("  " + s)
		}
	}
	for _, n := range slices.Sorted(maps.Keys(e.Numbers)) {
		fmt.Fprintf(&b, "  %s=%d", n, e.Numbers[n])
	}
	return b.String()
}

// auditKeys tells which keys sign the logs of a cluster.
func (a *app) auditKeys() *cobra.Command {
	var ca string
	cmd := &cobra.Command{Use: "keys", Short: "List the keys that sign the cluster's anomaly logs",
		Long: "List the fingerprints for audit verify --key. With --ca, the certificate of the cluster's authority (ca.crt in the\n" +
			"coordinator's state), each is verified: the member's certificate is the cluster's, and its key vouches for the\n" +
			"log's. Without it they are what the gateway says.",
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var root *x509.Certificate
			if ca != "" {
				var err error
				if root, err = readCertificate(ca); err != nil {
					return err
				}
			}
			c, err := a.anonymous()
			if err != nil {
				return err
			}
			defer c.Close()
			list, err := c.NodeDetails(cmd.Context(), false)
			if err != nil {
				return err
			}
			var keys []*api.LogKey
			if list.Coordinator != nil {
				keys = append(keys, list.Coordinator)
			}
			for _, d := range list.Nodes {
				switch {
				case d.Status == nil:
					a.notef("warning: %s does not answer: %s", one(d.View.Meta.ID), one(d.Error))
				case d.Status.LogKey != nil && d.Status.LogKey.Member == d.View.Meta.ID:
					keys = append(keys, d.Status.LogKey)
				}
			}
			if a.json() && root == nil {
				return a.printJSON(keys)
			}
			t := newTable("MEMBER", "KEY", "VOUCHED FOR")
			var bad error
			for _, k := range keys {
				says := "not verified"
				if root != nil {
					if says, err = "by its certificate, "+ago(time.UnixMilli(k.AtMs), time.Now())+" ago", checkLogKey(k, root); err != nil {
						says, bad = "NO: "+err.Error(), err
					}
				}
				t.row(k.Member, k.Fingerprint, says)
			}
			if a.json() {
				if bad == nil {
					return a.printJSON(keys)
				}
				return bad
			}
			return errors.Join(t.print(a.stdout), bad)
		}}
	cmd.Flags().StringVar(&ca, "ca", "", "`file` with the certificate of the cluster's authority")
	a.jsonFlag(cmd)
	return cmd
}

func readCertificate(path string) (*x509.Certificate, error) {
	b, err := readAtMost(path, 1<<20)
	if err != nil {
		return nil, api.Invalid("--ca", "name a PEM file with one certificate", err.Error())
	}
	block, _ := pem.Decode(b)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, api.Invalid("--ca", "name a PEM file with one certificate", path+" holds none")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, api.Invalid("--ca", "name a PEM file with one certificate", err.Error())
	}
	return cert, nil
}

// checkLogKey verifies that the member's certificate is of the cluster, and that
// its key vouches for the log's.
func checkLogKey(k *api.LogKey, root *x509.Certificate) error {
	_, err := anomaly.CheckBinding(k, func(der []byte) (string, crypto.PublicKey, error) {
		leaf, err := x509.ParseCertificate(der)
		if err != nil {
			return "", nil, api.Errorf(api.CodeUnauthorized, "the certificate does not parse")
		}
		p, err := pki.VerifyChain(leaf, root, time.Now())
		if err != nil {
			return "", nil, err
		}
		return p.ID, leaf.PublicKey, nil
	})
	return err
}
