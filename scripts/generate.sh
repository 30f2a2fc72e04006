#!/usr/bin/env bash
# Makes every generated file from its source. `make generate-check` fails when the result differs
# from what is committed.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.tools/bin:$PATH"

protos=$(cd api && find carrel -name '*.proto' | sort)
includes=(-I api -I third_party/googleapis -I /usr/include)
# shellcheck disable=SC2086
protoc "${includes[@]}" --go_out=api --go_opt=module=carrel.dev/carrel/api \
	--connect-go_out=api --connect-go_opt=module=carrel.dev/carrel/api $protos

# Queries, checked against the migrations.
sqlc generate -f internal/store/sqlc.yaml

# One OpenAPI document for the REST routes of all public services, the gateway's included.
openapi=$(mktemp -d)
trap 'rm -rf "$openapi"' EXIT
public=$(cd api && find carrel/v1 -name '*.proto' | sort)
# shellcheck disable=SC2086
protoc "${includes[@]}" --openapiv3_out="$openapi" $public
go run ./internal/control/openapigen "$openapi/carrel/v1" internal/control/openapi.json

# The web UI's client of the public services.
if [ ! -x web/node_modules/.bin/protoc-gen-es ]; then
	echo "web/node_modules is missing: run make web-modules" >&2
	exit 1
fi
rm -rf web/src/gen
mkdir -p web/src/gen
# shellcheck disable=SC2086
scripts/node.sh protoc "${includes[@]}" --plugin=protoc-gen-es=web/node_modules/.bin/protoc-gen-es --es_out=web/src/gen --es_opt=target=ts \
	$public google/api/annotations.proto google/api/http.proto

# docs/states.md, from the transition table.
go test ./internal/carrel -run TestStatesDoc -count=1 -update
