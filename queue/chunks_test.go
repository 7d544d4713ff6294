package queue

import (
	"errors"
	"io"
	"net"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/faasd-sec/faasd-sec/store/storetest"
)

// A body that was cut is refused, also where its reader tells so with its last bytes.
func TestChunksRefuseABodyThatWasCut(t *testing.T) {
	etcd, prefix := etcdOf(t, t.TempDir())
	m := open(t, etcd, prefix, "a")
	c := m.NewChunks(t.Context(), 1<<30, 1<<30)
	for name, r := range map[string]io.Reader{
		"after": io.MultiReader(strings.NewReader("the first half"), iotest.ErrReader(io.ErrUnexpectedEOF)),
		"with":  iotest.DataErrReader(io.MultiReader(strings.NewReader("the first half"), iotest.ErrReader(io.ErrUnexpectedEOF))),
	} {
		if got, size, _, err := c.Put(r); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%s: %q, %d bytes: %v", name, got, size, err)
		}
		if err := c.Take(t.Context(), strings.Repeat("a", 64), r); err == nil {
			t.Errorf("%s: taken over", name)
		}
	}
}

// A member of an etcd elsewhere that is away keeps no large body out.
func TestLargeBodiesWhileOneMemberIsAway(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0") // stays: nobody takes what comes
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dir := t.TempDir()
	there := url.URL{Scheme: "unix", Path: filepath.Join(dir, "etcd")}
	storetest.Serve(t, there, transport.TLSInfo{})
	etcd, err := clientv3.New(clientv3.Config{Endpoints: []string{"http://" + l.Addr().String(), there.String()}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = etcd.Close() })
	m := open(t, etcd, "/x/", "a")
	if _, size, _, err := m.NewChunks(t.Context(), 1<<30, 1<<30).Put(strings.NewReader("a body")); err != nil || size != 6 {
		t.Fatal(size, err)
	}
}
