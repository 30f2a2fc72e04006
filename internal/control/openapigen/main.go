// Command openapigen merges the OpenAPI files that protoc makes, one for each proto file, into the one document that
// control serves, and adds what the protos do not say: the title, the bearer token, and the event stream. It
// must not know of any single method but that one.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

type object = map[string]any

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: openapigen DIRECTORY FILE")
		os.Exit(2)
	}
	if err := merge(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "openapigen:", err)
		os.Exit(1)
	}
}

func merge(dir, out string) error {
	files, err := filepath.Glob(filepath.Join(dir, "*.openapi.json"))
	if err != nil {
		return err
	}
	if len(files) == 0 {
		return fmt.Errorf("there is no *.openapi.json in %s", dir)
	}
	slices.Sort(files)
	paths, schemas := object{}, object{}
	var tags []any
	version := ""
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		var doc struct {
			OpenAPI    string                   `json:"openapi"`
			Paths      map[string]object        `json:"paths"`
			Components struct{ Schemas object } `json:"components"`
			Tags       []any                    `json:"tags"`
		}
		if err := json.Unmarshal(data, &doc); err != nil {
			return fmt.Errorf("read %s: %w", file, err)
		}
		version = doc.OpenAPI
		tags = append(tags, doc.Tags...)
		for path, methods := range doc.Paths {
			known, _ := paths[path].(object)
			if known == nil {
				known = object{}
				paths[path] = known
			}
			for method, operation := range methods {
				if _, twice := known[method]; twice {
					return fmt.Errorf("%s %s is in two files", method, path)
				}
				known[method] = operation
			}
		}
		for name, schema := range doc.Components.Schemas {
			schemas[name] = schema
		}
	}
	paths["/v1/boxes:watch"] = object{"get": watch()}
	doc := object{
		"openapi": version,
		"info": object{
			"title":       "Carrel",
			"version":     "v1",
			"description": "Isolated Linux machines that can be created, used, paused with their memory, resumed, stopped and started. The same methods are there over gRPC and Connect.",
		},
		"servers":  []any{object{"url": "/"}},
		"security": []any{object{"bearer": []any{}}},
		"tags":     tags,
		"paths":    paths,
		"components": object{
			"schemas": schemas,
			"securitySchemes": object{
				"bearer": object{"type": "http", "scheme": "bearer", "description": "An API token; a ticket for the methods of ProcessService."},
			},
		},
	}
	data, err := json.MarshalIndent(doc, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(out, append(data, '\n'), 0o644) //nolint:gosec // the document is public
}

// watch describes the one route that is not transcoded from a proto.
func watch() object {
	query := func(name, description string) object {
		return object{"name": name, "in": "query", "description": description, "schema": object{"type": "string"}}
	}
	return object{
		"tags":        []any{"BoxService"},
		"operationId": "BoxService_WatchBoxes",
		"description": "WatchBoxes as server-sent events: an event \"box\" with a carrel.v1.Box for each box that is there and for each change, and \"synced\" when all that were there have been sent.",
		"parameters": []any{
			query("org", "Id or name; empty: every organisation of the caller."),
			query("id", "Only this box."),
			object{"name": "Last-Event-ID", "in": "header", "description": "Go on where an earlier stream ended.", "schema": object{"type": "string"}},
		},
		"responses": object{
			"200": object{"description": "The stream.", "content": object{"text/event-stream": object{"schema": object{"type": "string"}}}},
			"default": object{"description": "An unexpected error response.", "content": object{
				"application/json": object{"schema": object{"$ref": "#/components/schemas/google.rpc.Status"}}}},
		},
	}
}
