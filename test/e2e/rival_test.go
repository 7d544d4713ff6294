package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/api"
	"github.com/faasd-sec/faasd-sec/enrol"
	"github.com/faasd-sec/faasd-sec/pki"
)

// rival is a second coordinator that takes slots on nodes.
type rival struct{ http *http.Client }

func (m *machines) otherCoordinator(t *testing.T) *rival {
	t.Helper()
	ca, err := pki.Load(filepath.Join(m.state, "coordinator", enrol.CADir))
	if err != nil {
		t.Fatal(err)
	}
	key, cert, err := ca.Issue(pki.RoleCoordinator, "coordinator-2", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	id, err := pki.NewIdentity(key, cert, ca.CertificatePEM())
	if err != nil {
		t.Fatal(err)
	}
	tr := &http.Transport{DialContext: m.net.dialer(0), TLSClientConfig: pki.ClientConfig(id, pki.RoleNode, pki.AnyID)}
	t.Cleanup(tr.CloseIdleConnections)
	return &rival{&http.Client{Transport: tr, Timeout: 10 * time.Second}}
}

// take holds one slot of a function on x for some seconds.
func (r *rival) take(ctx context.Context, x *machine, st api.FunctionStatus) (ticket string, err error) {
	b, err := r.post(ctx, x, api.NodePathAdmit, st, "", nil)
	if err != nil {
		return "", err
	}
	var t api.Ticket
	err = json.Unmarshal(b, &t)
	return t.Ticket, err
}

// giveBack uses the slot up with a message that is none.
func (r *rival) giveBack(ctx context.Context, x *machine, st api.FunctionStatus, ticket string) {
	_, _ = r.post(ctx, x, api.NodePathInvoke, st, ticket, strings.NewReader("not a message")) // refused, which is all
}

func (r *rival) post(ctx context.Context, x *machine, path string, st api.FunctionStatus, ticket string, body io.Reader) ([]byte, error) {
	url := fmt.Sprintf("https://%s:7480%s%s?rev=%s&seq=%d", x.ip, path, st.Name, st.Revision, st.Sequence)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, body)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", api.ContentTypeSealed)
	if ticket != "" {
		req.Header.Set(api.HeaderTicket, ticket)
	}
	resp, err := r.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, b)
	}
	return b, err
}
