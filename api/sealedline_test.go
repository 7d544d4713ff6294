package api_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/faasd-sec/faasd-sec/api"
)

func TestSealedLinesAreFoundInWhatClientsPrint(t *testing.T) {
	record := bytes.Repeat([]byte{0, 0xfb, 0xff, 7}, 100)
	line := api.SealedLine("hello.openfaas-fn", record)
	if strings.ContainsAny(line, "\n\r\"\\") || !strings.Contains(line, "faasd-sec logs hello --from") {
		t.Errorf("%q", line)
	}
	for _, format := range []string{"%s", "2026-01-02T15:04:05Z hello (s-1) %s", `{"name":"hello","text":"%s"}`, "%s\r"} {
		if got, found, err := api.ParseSealedLine(fmt.Appendf(nil, format, line)); !found || err != nil || !bytes.Equal(got, record) {
			t.Errorf("%q: %x, %v, %v", format, got, found, err)
		}
	}
	if _, found, err := api.ParseSealedLine([]byte("2026/01/02 Forking fprocess.")); found || err != nil {
		t.Errorf("%v, %v", found, err)
	}
	if _, found, err := api.ParseSealedLine([]byte("fsl1.AAAAA")); !found || api.CodeOf(err) != api.CodeInvalid {
		t.Errorf("one that is cut off: %v, %v", found, err)
	}
}
