package coordinator

import (
	"context"
	"encoding/json"
	"strings"
	"testing"

	"github.com/faasd-sec/faasd-sec/api"
)

// fixedImages resolves every name to one digest, "gone" to none.
type fixedImages struct{ digest string }

func (f *fixedImages) Resolve(_ context.Context, ref string) (string, string, error) {
	if ref == "gone" {
		return "", "", api.Invalid("image", "push it", "there is no image "+ref)
	}
	return "docker.io/library/" + ref, f.digest, nil
}

func (f *fixedImages) ResolveOwn(_ context.Context, ref string) (string, string, error) {
	return ref, f.digest, nil
}

func TestAPlainFunctionIsStoredChangedAndRemoved(t *testing.T) {
	images := &fixedImages{digest: "sha256:" + strings.Repeat("a", 64)}
	w := newWorld(t, 0)
	w.c.dep.Resolver = images
	ctx := t.Context()
	p := api.Plain{Image: "alpine:3", Env: map[string]string{"a": "1"}}
	for i, want := range []bool{true, false} {
		if created, err := w.c.PutPlain(ctx, "p.openfaas-fn", p); err != nil || created != want {
			t.Fatalf("%d: %v, %v", i, created, err)
		}
	}
	first := w.state.Get("p.openfaas-fn")
	if first.Plain == nil || first.ImageDigest != images.digest || first.Owner != "" || first.Version != w.state.version {
		t.Fatalf("%+v", first)
	}
	images.digest = "sha256:" + strings.Repeat("b", 64) // the tag has moved
	if _, err := w.c.PutPlain(ctx, "p.openfaas-fn", p); err != nil {
		t.Fatal(err)
	}
	second := w.state.Get("p.openfaas-fn")
	if second.Revision == first.Revision || second.Sequence <= first.Sequence || second.CreatedAt != first.CreatedAt {
		t.Errorf("%+v after %+v", second, first)
	}
	r, err := w.c.routeOf("p.openfaas-fn")
	if err != nil || r.plain == nil || r.hex != second.Revision {
		t.Fatalf("%+v, %v", r, err)
	}
	for want, p := range map[api.Code]api.Plain{api.CodeInvalid: {Image: "gone"}, api.CodeUnavailable: {Image: "a", Secrets: []string{"s"}}} {
		if _, err := w.c.PutPlain(ctx, "q.openfaas-fn", p); api.CodeOf(err) != want {
			t.Errorf("%+v: %v, want %s", p, err, want)
		}
	}
	resp, err := w.http.Get(w.url + api.GatewayPathFunctions + "/p?brief=1")
	if err != nil {
		t.Fatal(err)
	}
	var st api.FunctionStatus
	err = json.NewDecoder(resp.Body).Decode(&st)
	resp.Body.Close()
	if err != nil || st.Sealed || st.Mode != api.ModePlain || st.Plain == nil || st.Plain.Env["a"] != "1" {
		t.Errorf("%+v, %v", st, err)
	}
	if err := w.c.DeletePlain(ctx, "p.openfaas-fn"); err != nil {
		t.Fatal(err)
	}
	if err := w.c.DeletePlain(ctx, "p.openfaas-fn"); api.CodeOf(err) != api.CodeNotFound {
		t.Errorf("removed twice: %v", err)
	}
}

func TestASealedFunctionsNameIsNotTakenByAPlainOne(t *testing.T) {
	w := newWorld(t, 0)
	w.c.dep.Resolver = &fixedImages{digest: "sha256:" + strings.Repeat("a", 64)}
	if _, err := w.c.PutPlain(t.Context(), "f.ns", api.Plain{Image: "a"}); api.CodeOf(err) != api.CodeConflict {
		t.Errorf("put: %v", err)
	}
	if err := w.c.DeletePlain(t.Context(), "f.ns"); api.CodeOf(err) != api.CodeConflict {
		t.Errorf("delete: %v", err)
	}
	if a := w.do("GET", api.GatewayPathFunctions+"/f.ns?brief=1", "", nil); a.status != 200 {
		t.Errorf("%+v", a)
	}
}
