package store

import (
	"reflect"
	"testing"

	"github.com/faasd-sec/faasd-sec/api"
)

func TestNamespacesAreKeptWithWhatTheyWereGiven(t *testing.T) {
	s := testStore(t)
	ctx := t.Context()
	want := Namespace{Name: "team-a", Labels: map[string]string{"a": "b"}, Annotations: map[string]string{"c": "d"}, CreatedAt: 7}
	version, err := s.PutNamespace(ctx, want, Absent)
	if err != nil {
		t.Fatal(err)
	}
	want.Version = version
	got, err := s.GetNamespace(ctx, "team-a")
	if err != nil || !reflect.DeepEqual(*got, want) {
		t.Fatalf("%+v, %v", got, err)
	}
	_, err = s.PutNamespace(ctx, want, Absent)
	wantCode(t, err, api.CodeConflict)
	_, err = s.PutNamespace(ctx, Namespace{Name: "A"}, Absent)
	wantCode(t, err, api.CodeInvalid)
	if all, err := s.ListNamespaces(ctx); err != nil || len(all) != 1 || all[0].Name != "team-a" {
		t.Fatalf("%v, %v", all, err)
	}
	wantCode(t, s.DeleteNamespace(ctx, "team-a", version+1), api.CodeConflict)
	if err := s.DeleteNamespace(ctx, "team-a", version); err != nil {
		t.Fatal(err)
	}
	_, err = s.GetNamespace(ctx, "team-a")
	wantCode(t, err, api.CodeNotFound)
}

func TestADamagedNamespaceIsAnError(t *testing.T) {
	s := testStore(t)
	if _, err := s.client.Put(t.Context(), s.namespacePrefix()+"a", `{"name":"b"}`); err != nil {
		t.Fatal(err)
	}
	_, err := s.ListNamespaces(t.Context())
	wantCode(t, err, api.CodeInternal)
}
