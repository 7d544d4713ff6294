package client_test

import (
	"archive/tar"
	"io"
	"strings"
	"testing"
)

func tarNames(t *testing.T, r io.Reader) string {
	t.Helper()
	var names []string
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if err == io.EOF {
			return strings.Join(names, " ")
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, h.Name)
	}
}
