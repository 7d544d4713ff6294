package coordinator

import (
	"bytes"
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/pb33f/libopenapi"
	validator "github.com/pb33f/libopenapi-validator"
	"go.yaml.in/yaml/v3"

	"github.com/faasd-sec/faasd-sec/api"
)

const openAPIFile = "../docs/openapi.yaml"

// openAPI is the part of the document that these tests go by.
type openAPI struct {
	Paths      map[string]map[string]yaml.Node `yaml:"paths"`
	Components struct {
		Schemas map[string]struct {
			Required   []string             `yaml:"required"`
			Properties map[string]yaml.Node `yaml:"properties"`
		} `yaml:"schemas"`
	} `yaml:"components"`
	validate validator.Validator
}

func loadOpenAPI(t *testing.T) *openAPI {
	t.Helper()
	b, err := os.ReadFile(openAPIFile)
	if err != nil {
		t.Fatal(err)
	}
	doc := &openAPI{}
	if err := yaml.Unmarshal(b, doc); err != nil {
		t.Fatal(err)
	}
	parsed, err := libopenapi.NewDocument(b)
	if err != nil {
		t.Fatal(err)
	}
	v, errs := validator.NewValidator(parsed)
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	doc.validate = v
	return doc
}

var openAPIMethods = []string{"get", "post", "put", "patch", "delete"}

// at puts something into a path's parameters.
func at(path string) string {
	return strings.NewReplacer("{name}", "f.ns", "{id}", "0a1b2c").Replace(path)
}

func TestTheOpenAPIDocumentIsValid(t *testing.T) {
	if ok, errs := loadOpenAPI(t).validate.ValidateDocument(); !ok {
		for _, e := range errs {
			t.Error(e.Error())
		}
	}
}

func TestTheOpenAPIDocumentHasEveryRouteAndNoOther(t *testing.T) {
	doc := loadOpenAPI(t)
	w := newWorld(t, 1)
	for path, operations := range doc.Paths {
		for _, method := range openAPIMethods {
			if path == api.GatewayPathInvoke+"{name}" && method != "post" {
				continue // methods of plain functions are theirs
			}
			_, documented := operations[method]
			a := w.do(strings.ToUpper(method), at(path), "", nil)
			refused := strings.Contains(string(a.body), "is not served here") || a.status == http.StatusMethodNotAllowed
			if !documented { // what looks like a name below another path, and what is off here whatever the method
				refused = refused || a.status == http.StatusBadRequest || strings.Contains(string(a.body), "takes no asynchronous invocations")
			}
			if documented == refused {
				t.Errorf("%s %s: documented %v, but the answer is %d %s; mend docs/openapi.yaml", method, path, documented, a.status, a.body)
			}
		}
	}
	served := slices.Collect(maps.Keys(doc.Paths))
	for _, path := range gatewayPaths(t) {
		if !slices.ContainsFunc(served, func(s string) bool { return s == path || strings.HasPrefix(s, strings.TrimSuffix(path, "/")+"/") }) {
			t.Errorf("%s is not in docs/openapi.yaml", path)
		}
	}
}

// gatewayPaths are the paths that package api names as the gateway's.
func gatewayPaths(t *testing.T) (paths []string) {
	t.Helper()
	files, err := filepath.Glob("../api/*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			v, ok := n.(*ast.ValueSpec)
			if !ok || !strings.HasPrefix(v.Names[0].Name, "GatewayPath") {
				return true
			}
			s, err := strconv.Unquote(v.Values[0].(*ast.BasicLit).Value)
			if err != nil {
				t.Fatal(err)
			}
			// Joining, renewal and what coordinators ask each other are on the cluster's listener, and images are another's API.
			if !slices.Contains([]string{api.GatewayPathJoin, api.GatewayPathRenew, api.GatewayPathRegistry, api.GatewayPathJoinCoordinator, api.GatewayPathReplicate, api.GatewayPathWaits, api.GatewayPathDemand}, s) {
				paths = append(paths, s)
			}
			return true
		})
	}
	if len(paths) < 8 {
		t.Fatalf("only %v were found", paths)
	}
	return paths
}

func TestTheOpenAPIDocumentHasEveryFieldAndNoOther(t *testing.T) {
	doc := loadOpenAPI(t)
	seen := map[string]bool{}
	for _, v := range []any{api.FunctionStatus{}, api.Revision{}, api.Problem{}, api.NodeView{}, api.NodeList{}, api.TaskList{}, api.WaitingTask{},
		api.Placement{}, api.BrokerInfo{}, api.ManifestKeys{}, api.AsyncCall{}, api.Schedule{}, api.CallbackKeys{}, api.SetReplicas{}, api.Rollback{}, api.Traffic{}} {
		compareFields(t, doc, reflect.TypeOf(v), seen)
	}
	for name := range doc.Components.Schemas {
		if !seen[name] {
			t.Errorf("the schema %s is of no message", name)
		}
	}
}

func compareFields(t *testing.T, doc *openAPI, typ reflect.Type, seen map[string]bool) {
	switch typ.Kind() {
	case reflect.Pointer, reflect.Slice, reflect.Map:
		compareFields(t, doc, typ.Elem(), seen)
	case reflect.Struct:
		if seen[typ.Name()] {
			return
		}
		seen[typ.Name()] = true
		schema := doc.Components.Schemas[typ.Name()]
		var fields []string
		for f := range typ.Fields() {
			name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
			if name == "" {
				name = f.Name
			}
			fields = append(fields, name)
			if required := !strings.Contains(options, "omitempty"); required != slices.Contains(schema.Required, name) {
				t.Errorf("%s.%s: required in the document: %v", typ.Name(), name, !required)
			}
			compareFields(t, doc, f.Type, seen)
		}
		slices.Sort(fields)
		if has := slices.Sorted(maps.Keys(schema.Properties)); !slices.Equal(has, fields) {
			t.Errorf("%s has %v, in docs/openapi.yaml %v", typ.Name(), fields, has)
		}
	}
}

func TestRepliesAndExamplesAreAsTheOpenAPIDocumentSays(t *testing.T) {
	doc := loadOpenAPI(t)
	w := newWorld(t, 1)
	check := func(what, method, path string, status int, contentType string, body []byte) {
		t.Helper()
		req, err := http.NewRequest(method, "http://127.0.0.1:8080"+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp := &http.Response{StatusCode: status, Header: http.Header{"Content-Type": {contentType}}, Body: io.NopCloser(bytes.NewReader(body)), Request: req}
		if ok, errs := doc.validate.ValidateHttpResponse(req, resp); !ok {
			for _, e := range errs {
				t.Errorf("%s: %s %s: %s", what, method, path, e.Error())
				for _, s := range e.SchemaValidationErrors {
					t.Errorf("  %s at %s", s.Reason, s.FieldPath)
				}
			}
		}
	}
	for path, operations := range doc.Paths {
		for method, node := range operations {
			var op struct {
				Responses map[string]struct {
					Content map[string]struct {
						Example yaml.Node `yaml:"example"`
					} `yaml:"content"`
				} `yaml:"responses"`
			}
			if !slices.Contains(openAPIMethods, method) {
				continue
			}
			if err := node.Decode(&op); err != nil {
				t.Fatal(err)
			}
			for code, r := range op.Responses {
				for contentType, content := range r.Content {
					var v any
					if content.Example.IsZero() {
						continue
					}
					if err := content.Example.Decode(&v); err != nil {
						t.Fatal(err)
					}
					b, err := json.Marshal(v)
					if err != nil {
						t.Fatal(err)
					}
					status, err := strconv.Atoi(code)
					if err != nil {
						t.Fatal(err)
					}
					check("example", strings.ToUpper(method), at(path), status, contentType, b)
				}
			}
			if method == "get" && path != api.GatewayPathAnomalies {
				a := w.do("GET", at(path), "", nil)
				check("reply", "GET", at(path), a.status, a.header.Get("Content-Type"), a.body)
			}
		}
	}
	for _, path := range []string{"/v1/nodes?detail=1&history=1", "/v1/functions/none", "/v1/functions/f.ns?brief=1", "/v1/tasks?function=f.ns"} {
		a := w.do("GET", path, "", nil)
		check("reply", "GET", path, a.status, a.header.Get("Content-Type"), a.body)
	}
}
