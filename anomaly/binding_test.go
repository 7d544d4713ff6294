package anomaly_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"testing"
	"time"

	"github.com/faasd-sec/faasd-sec/anomaly"
	"github.com/faasd-sec/faasd-sec/api"
)

func TestALogsKeyIsBoundToItsMember(t *testing.T) {
	log, fingerprint := newKey(t)
	tls, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	good, err := anomaly.BindKey("node-1", log.Public(), tls, [][]byte{[]byte("leaf")}, rand.Reader, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	whose := func(member string, key crypto.PublicKey) func([]byte) (string, crypto.PublicKey, error) {
		return func(leaf []byte) (string, crypto.PublicKey, error) {
			if string(leaf) != "leaf" {
				return "", nil, errors.New("not of this cluster")
			}
			return member, key, nil
		}
	}
	if f, err := anomaly.CheckBinding(good, whose("node-1", tls.Public())); err != nil || f != fingerprint {
		t.Fatalf("%v, %v", f, err)
	}
	other, otherPrint := newKey(t)
	bound, err := anomaly.BindKey("node-1", other.Public(), tls, good.Chain, rand.Reader, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for what, change := range map[string]func(k *api.LogKey) func([]byte) (string, crypto.PublicKey, error){
		"another key": func(k *api.LogKey) func([]byte) (string, crypto.PublicKey, error) {
			k.Public, k.Fingerprint = bound.Public, otherPrint.String()
			return nil
		},
		"another fingerprint": func(k *api.LogKey) func([]byte) (string, crypto.PublicKey, error) {
			k.Fingerprint = otherPrint.String()
			return nil
		},
		"another time":   func(k *api.LogKey) func([]byte) (string, crypto.PublicKey, error) { k.AtMs++; return nil },
		"another member": func(k *api.LogKey) func([]byte) (string, crypto.PublicKey, error) { k.Member = "node-2"; return nil },
		"no chain":       func(k *api.LogKey) func([]byte) (string, crypto.PublicKey, error) { k.Chain = nil; return nil },
		"another cluster": func(k *api.LogKey) func([]byte) (string, crypto.PublicKey, error) {
			k.Chain = [][]byte{{1}}
			return nil
		},
		"another's certificate": func(k *api.LogKey) func([]byte) (string, crypto.PublicKey, error) {
			return whose("node-2", tls.Public())
		},
		"another signer": func(k *api.LogKey) func([]byte) (string, crypto.PublicKey, error) {
			return whose("node-1", stranger.Public())
		},
		"no signature": func(k *api.LogKey) func([]byte) (string, crypto.PublicKey, error) { k.Signature = nil; return nil },
	} {
		k := *good
		verify := change(&k)
		if verify == nil {
			verify = whose("node-1", tls.Public())
		}
		if _, err := anomaly.CheckBinding(&k, verify); err == nil {
			t.Errorf("%s is taken", what)
		}
	}
}

func TestAFilterSurvivesAQuery(t *testing.T) {
	want := anomaly.Filter{Since: time.UnixMilli(1000), Until: time.UnixMilli(2000), Kinds: []anomaly.Kind{anomaly.OOM, anomaly.Drained},
		Function: "hello.openfaas-fn", Node: "node-1"}
	got, err := anomaly.ParseQuery(want.Query())
	if err != nil || !got.Since.Equal(want.Since) || !got.Until.Equal(want.Until) || len(got.Kinds) != 2 || got.Function != want.Function || got.Node != want.Node {
		t.Errorf("%+v, %v", got, err)
	}
	if none, err := anomaly.ParseQuery(new(anomaly.Filter).Query()); err != nil || !none.Since.IsZero() || len(none.Kinds) != 0 {
		t.Errorf("%+v, %v", none, err)
	}
}
