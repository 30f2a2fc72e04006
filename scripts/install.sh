#!/usr/bin/env bash
# Installs the Debian packages that are missing: those that Carrel stands on, and with the argument `test` or `bench` those
# that its tests or benchmarks use besides, with `node` npm alone. Needs root and Debian 12.
set -euo pipefail

packages=(
	postgresql-15 # the binaries; Carrel runs its own server
	mmdebstrap    # images from Debian packages
	xfsprogs      # the pool that clones files
	e2fsprogs     # home directories
	erofs-utils   # fsck.erofs, for tests
	nftables      # nft, to look at the rules
	iproute2      # ip, for tests
	protobuf-compiler libprotobuf-dev # make generate
	ca-certificates git
)
clients=( # real clients, for tests
	openssh-client rsync sshfs ssh-audit
	chromium fonts-dejavu-core # the browser that walks through the pages
	python3-ipykernel python3-nbformat # a kernel, and the judge of notebooks that are written
	jupyter-server python3-jupyter-client python3-requests python3-websocket # the real Jupyter server, and clients of ours
)
servers=( # what benchmarks compare with
	nginx-light openssh-server
)
case ${1:-} in
node) packages=(npm) ;; # to fetch a newer Node.js with
test) packages+=("${clients[@]}") ;;
bench) packages+=("${clients[@]}" "${servers[@]}") ;;
esac

missing=()
for package in "${packages[@]}"; do
	[ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0

if [ "$(id -u)" != 0 ]; then
	echo "these Debian packages are missing: ${missing[*]}. Run this as root, or install them." >&2
	exit 1
fi
echo "installing Debian packages: ${missing[*]}"
# Debian's package would make and start a server of its own.
mkdir -p /etc/postgresql-common/createcluster.d
echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.d/carrel.conf
# Debian starts servers when they are installed, and at every boot. Benchmarks start those that they want by themselves.
services=()
for package in "${missing[@]}"; do
	case $package in
	openssh-server) services+=(ssh) ;;
	nginx-light) services+=(nginx) ;;
	esac
done
log=$(mktemp)
policy=/usr/sbin/policy-rc.d
trap 'rm -f "$log"' EXIT
if [ ${#services[@]} -gt 0 ] && [ ! -e "$policy" ]; then
	trap 'rm -f "$log" "$policy"' EXIT
	printf '#!/bin/sh\nexit 101\n' >"$policy"
	chmod +x "$policy"
fi
# What apt says about its progress, in steps of ten in a hundred: "dlstatus:1:42.0:…" while it downloads, "pmstatus:git:42.0:…" after that.
progress() {
	local kind percent last=
	while IFS=: read -r kind _ percent _; do
		case $kind in
		dlstatus) kind="downloaded" ;;
		pmstatus) kind="installed" ;;
		*) continue ;;
		esac
		percent=$((${percent%%.*} / 10 * 10))
		[ "$kind $percent" = "$last" ] || echo "  $percent% $kind"
		last="$kind $percent"
	done
}
if ! { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends -o APT::Status-Fd=3 "${missing[@]}"; } 3> >(progress >&2) >"$log" 2>&1; then
	tail -n 20 "$log" >&2
	echo "the packages could not be installed; the lines above say why" >&2
	exit 1
fi
for service in "${services[@]}"; do
	update-rc.d "$service" disable
done
