package control_test

import (
	"encoding/json"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"carrel.dev/carrel/internal/auth"
)

// methods calls f for every method of the services of these packages.
func methods(f func(method string, d protoreflect.MethodDescriptor), packages ...protoreflect.FullName) {
	for _, name := range packages {
		protoregistry.GlobalFiles.RangeFilesByPackage(name, func(file protoreflect.FileDescriptor) bool {
			for i := range file.Services().Len() {
				service := file.Services().Get(i)
				for j := range service.Methods().Len() {
					m := service.Methods().Get(j)
					f("/"+string(service.FullName())+"/"+string(m.Name()), m)
				}
			}
			return true
		})
	}
}

func TestEveryMethodHasAPolicyRow(t *testing.T) {
	count := 0
	methods(func(method string, _ protoreflect.MethodDescriptor) {
		count++
		_, ok := auth.RuleOf(method)
		require.True(t, ok, "%s has no row in the policy table (internal/auth/policy.go): without one nobody may call it, and with a wrong one "+
			"anybody may. Say there which role it needs, then run go test ./internal/auth -update and read what changed in the matrix", method)
	}, "carrel.v1", "carrel.link.v1")
	require.Greater(t, count, 50)
}

// route is a REST route of a method.
type route struct{ method, verb, path string }

func restRoutes() []route {
	var out []route
	methods(func(method string, d protoreflect.MethodDescriptor) {
		rule, _ := proto.GetExtension(d.Options(), annotations.E_Http).(*annotations.HttpRule)
		if rule == nil {
			return
		}
		for _, r := range append([]*annotations.HttpRule{rule}, rule.GetAdditionalBindings()...) {
			for verb, path := range map[string]string{"GET": r.GetGet(), "POST": r.GetPost(), "PUT": r.GetPut(), "PATCH": r.GetPatch(), "DELETE": r.GetDelete()} {
				if path != "" {
					out = append(out, route{method, verb, path})
				}
			}
		}
	}, "carrel.v1")
	return out
}

func TestOpenAPIHasEveryRoute(t *testing.T) {
	data, err := os.ReadFile("openapi.json")
	require.NoError(t, err)
	var doc struct {
		OpenAPI string `json:"openapi"`
		Info    struct {
			Title string `json:"title"`
		} `json:"info"`
		Paths      map[string]map[string]any `json:"paths"`
		Security   []map[string]any          `json:"security"`
		Components struct {
			Schemas         map[string]any            `json:"schemas"`
			SecuritySchemes map[string]map[string]any `json:"securitySchemes"`
		} `json:"components"`
	}
	require.NoError(t, json.Unmarshal(data, &doc))
	require.Regexp(t, `^3\.1\.\d+$`, doc.OpenAPI)
	require.Equal(t, "Carrel", doc.Info.Title)
	require.Equal(t, "bearer", doc.Components.SecuritySchemes["bearer"]["scheme"])
	require.Contains(t, doc.Security[0], "bearer")
	routes := restRoutes()
	require.Greater(t, len(routes), 50)
	for _, r := range routes {
		require.Contains(t, doc.Paths[r.path], strings.ToLower(r.verb), "%s %s (%s): run make generate", r.verb, r.path, r.method)
	}
	require.Contains(t, doc.Paths, "/v1/boxes/{box}/processes", "the gateway's are in it too")
	require.Contains(t, doc.Paths, "/v1/boxes:watch")
	for _, ref := range regexp.MustCompile(`"#/components/schemas/([^"]+)"`).FindAllSubmatch(data, -1) {
		require.Contains(t, doc.Components.Schemas, string(ref[1]))
	}
}

func TestEveryRouteLeadsToItsMethod(t *testing.T) {
	r := newReplica(t)
	nobody := r.as("")
	for _, route := range restRoutes() {
		if regexp.MustCompile(`\.(Process|File|Port|Notebook)Service\b`).MatchString(route.method) {
			continue // the gateway's
		}
		path := strings.ReplaceAll(route.path, "{port}", "1")
		path = regexp.MustCompile(`\{\w+\}`).ReplaceAllString(path, "x")
		body := ""
		if route.verb != "GET" && route.verb != "DELETE" {
			body = "{}"
		}
		status, _, answer := nobody.rest(route.verb, path, body)
		require.Equal(t, 401, status, "%s %s: %v", route.verb, path, answer)
		require.EqualValues(t, 16, answer["code"])
	}
}
