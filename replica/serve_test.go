package replica

import (
	"bytes"
	"crypto/tls"
	"net"
	"net/http"

	"github.com/faasd-sec/faasd-sec/pki"
)

func tlsListener(ln net.Listener, id *pki.Identity) net.Listener {
	return tls.NewListener(ln, pki.ServerConfig(id, pki.RoleCoordinator))
}

// recorder is what a registry answers.
type recorder struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (r *recorder) Header() http.Header         { return r.header }
func (r *recorder) WriteHeader(status int)      { r.status = status }
func (r *recorder) Write(b []byte) (int, error) { return r.body.Write(b) }
