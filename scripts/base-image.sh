#!/bin/bash
# Makes a small root file system out of Debian packages and what they depend
# on, for functions that need more than a static binary:
#
#   scripts/base-image.sh [--arch ARCH] OUT.tar PACKAGE...
#   scripts/base-image.sh python.tar python3-minimal
#
# It uses this machine's apt sources and trusts what apt trusts. Packages are
# unpacked, not installed: their maintainer scripts do not run. What is there
# only for installing (dpkg, debconf, perl-base, ...) is left out unless named,
# and so are documentation and translations; licences stay. Python's modules
# are compiled beforehand, as a read-only file system keeps no compiled ones.
#
# The same packages give the same bytes. Downloads and results are kept in
# ${XDG_CACHE_HOME:-~/.cache}/faasd-sec. Needs Debian or a derivative; root, or
# user namespaces to run the image's own python3 once.
set -euo pipefail
export LC_ALL=C
umask 022

fail() {
	echo "base-image: $1" >&2
	[ $# -lt 2 ] || echo "  fix: $2" >&2
	exit 1
}

# Dependencies that only installing needs.
skip=" debconf dpkg init-system-helpers install-info libdebconfclient0 perl-base sensible-utils tar ucf "

host_arch=$(dpkg --print-architecture 2>/dev/null) || fail "dpkg is missing" "run it on Debian or a derivative"
if [ "${1:-}" = --arch ]; then
	[ "${2:-}" = "$host_arch" ] || fail "this machine's packages are for $host_arch, not '${2:-}'" "build on a machine of that architecture"
	shift 2
fi
[ $# -ge 2 ] || fail "usage: base-image.sh [--arch ARCH] OUT.tar PACKAGE..."
out=$(realpath -m -- "$1")
shift
for tool in apt-get apt-cache dpkg-deb tar sha256sum flock; do
	command -v "$tool" >/dev/null || fail "$tool is missing" "run it on Debian or a derivative"
done
for p in "$@"; do
	[[ $p =~ ^[a-z0-9][a-z0-9+.-]+$ ]] || fail "'$p' is not a package name"
done

cache=${XDG_CACHE_HOME:-$HOME/.cache}/faasd-sec
mkdir -p "$cache/debs" "$cache/bases"
exec 9>"$cache/lock"
flock 9
work=$(mktemp -d "$cache/work.XXXXXX")
trap 'rm -rf -- "$work"' EXIT

# apt builds its index anew on each call where it may not keep one.
mkdir -p "$cache/apt"
# Nor does it look at what is installed here, whose versions it would prefer.
lists=(-o "Dir::Cache::pkgcache=$cache/apt/pkgcache.bin" -o "Dir::Cache::srcpkgcache=$cache/apt/srcpkgcache.bin" -o Dir::State::status=/dev/null)

# The packages, then what these depend on, until nothing new turns up. Of
# alternatives the first is taken, as apt does.
depends() {
	apt-cache "${lists[@]}" depends --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces --no-enhances -- "$@" |
		awk '
			/^ [ |](Pre)?Depends: / {
				bar = substr($0, 2, 1) == "|"
				if (!taken) { taken = 1; if ($2 ~ /^</) provider = 1; else print $2 }
				if (!bar) taken = 0
				next
			}
			/^    / { if (provider) { print $1; provider = 0 } next }
			{ provider = 0 }'
}
declare -A chosen=()
new=("$@")
while [ ${#new[@]} -gt 0 ]; do
	for p in "${new[@]}"; do chosen[$p]=1; done
	found=$(depends "${new[@]}" 2>"$work/err") ||
		fail "$(head -n1 "$work/err") (${new[*]})" "check the names, and run apt-get update"
	new=()
	for p in $(sort -u <<<"$found"); do
		p=${p%%:*}
		[[ -n ${chosen[$p]:-} || $skip == *" $p "* ]] || new+=("$p")
	done
done
mapfile -t packages < <(printf '%s\n' "${!chosen[@]}" | sort)

# Names and hashes come out of apt's signed lists.
apt=(apt-get "${lists[@]}" -q -o APT::Sandbox::User= -o Acquire::Retries=3)
"${apt[@]}" download --print-uris -- "${packages[@]}" >"$work/uris" 2>"$work/err" ||
	fail "$(grep '^E:' "$work/err" | head -n3)" "check the names, and run apt-get update"
sed -n "s/^'[^']*' \([^ ]*\) [0-9]* SHA256:\([0-9a-f]\{64\}\)$/\2  \1/p" "$work/uris" | sort -k2 >"$work/sums"
[ "$(wc -l <"$work/sums")" = ${#packages[@]} ] || fail "apt gave no SHA256 for some of: ${packages[*]}" "run apt-get update"

key=$(cat "$0" "$work/sums" | sha256sum | cut -d' ' -f1)
base=$cache/bases/$key.tar
if [ ! -e "$base" ]; then
	cd "$cache/debs"
	if ! sha256sum --quiet --strict -c "$work/sums" >/dev/null 2>&1; then
		"${apt[@]}" download -- "${packages[@]}" >"$work/log" 2>&1 ||
			fail "$(grep '^E:' "$work/log" | head -n3)" "check the network, and run apt-get update"
		sha256sum --quiet --strict -c "$work/sums" || fail "a package has another hash than apt's lists say" "run apt-get update"
	fi

	root=$work/root
	mkdir -p "$root/usr/bin" "$root/usr/sbin" "$root/usr/lib"
	ln -s usr/bin usr/sbin usr/lib "$root/"
	if [ "$host_arch" = amd64 ]; then
		mkdir "$root/usr/lib64"
		ln -s usr/lib64 "$root/"
	fi
	while read -r _ deb; do
		dpkg-deb --fsys-tarfile "$deb" | tar -x --keep-directory-symlink --no-same-owner -C "$root"
	done <"$work/sums"
	# What is in it, for who lists an image's parts: as distroless images have it.
	rm -rf "$root/var/lib/dpkg"
	mkdir -p "$root/var/lib/dpkg/status.d"
	while read -r _ deb; do
		dpkg-deb --field "$deb" >"$root/var/lib/dpkg/status.d/$(dpkg-deb --field "$deb" Package)"
	done <"$work/sums"

	cd "$root/usr/share"
	rm -rf man info locale lintian bash-completion bug doc-base menu pixmaps applications gcc gdb
	[ ! -d doc ] || find doc -mindepth 2 ! -type d ! -name copyright -delete
	[ ! -d doc ] || find doc -type d -empty -delete
	cd "$root"
	rm -rf var/cache var/log etc/cron.* etc/init.d
	find . -type f -perm /6000 -exec chmod a-s {} +

	mkdir -p dev proc sys run root etc tmp var/tmp
	chmod 1777 tmp var/tmp
	chmod 700 root
	printf '%s\n' 'root:x:0:0:root:/root:/bin/sh' 'app:x:10001:10001:app:/tmp:/bin/sh' >etc/passwd
	printf '%s\n' 'root:x:0:' 'app:x:10001:' >etc/group
	printf '%s\n' 'passwd: files' 'group: files' 'hosts: files dns' >etc/nsswitch.conf

	inside() { # runs a program of the image; nothing of this machine's environment reaches it
		local as=()
		[ "$(id -u)" = 0 ] || as=(unshare --user --map-root-user)
		"${as[@]}" env -i PATH=/usr/bin:/usr/sbin LC_ALL=C.UTF-8 PYTHONHASHSEED=0 chroot "$root" "$@"
	}
	if [ -x usr/bin/busybox ]; then
		inside /usr/bin/busybox --list | while read -r applet; do
			[ -e "usr/bin/$applet" ] || [ -L "usr/bin/$applet" ] || [ -e "usr/sbin/$applet" ] || ln -s busybox "usr/bin/$applet"
		done
	fi
	for shell in dash bash busybox; do # the link is made by a maintainer script otherwise
		if [ ! -L usr/bin/sh ] && [ -x "usr/bin/$shell" ]; then ln -s "$shell" usr/bin/sh; fi
	done
	for python in usr/bin/python3.[0-9]*; do
		[[ $python =~ ^usr/bin/python3\.[0-9]+$ && -x $python ]] || continue
		# Unchecked: the interpreter takes them whatever the time stamp of the
		# source is. A stale one would be compiled anew at every start.
		inside "/$python" -I -S -c '
import os, py_compile, sys
lib = "/usr/lib/python3." + str(sys.version_info[1])
for top in (lib, "/usr/lib/python3"):
    for at, dirs, files in os.walk(top):
        dirs.sort()
        for f in sorted(files):
            if f.endswith(".py"):
                py_compile.compile(os.path.join(at, f), quiet=2, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
' || fail "the image's $python does not run" "name the packages it needs"
	done

	tar --sort=name --format=posix --pax-option=delete=atime,delete=ctime --mtime=@0 --owner=0 --group=0 --numeric-owner \
		-C "$root" -cf "$work/base.tar" .
	mv "$work/base.tar" "$base"
fi
cp --reflink=auto -- "$base" "$out"
