#!/bin/sh
# Brings a fresh Debian or Ubuntu machine to where `make test` and `make demo` can run: system packages, a virtual
# environment in .venv, the build. Says what is missing where it may not install it. Arguments: the extras to install.
set -eu
cd "$(dirname "$0")/.."
extras=${1:-test}

python_ok() {
	python3 - 2>/dev/null <<'PY'
import ensurepip, os, sys, sysconfig, venv
assert sys.version_info >= (3, 11)
assert os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h"))
PY
}

missing=""
command -v gcc >/dev/null || missing="$missing gcc libc6-dev"
command -v clang >/dev/null || missing="$missing clang"
command -v ip >/dev/null || missing="$missing iproute2"
command -v pkg-config >/dev/null || missing="$missing pkg-config"
pkg-config --exists libxdp 2>/dev/null || missing="$missing libxdp-dev"
pkg-config --exists libbpf 2>/dev/null || missing="$missing libbpf-dev"
python_ok || missing="$missing python3 python3-venv python3-dev"
# The tests' own tools: a model checker, a fuzzer, a counter of instructions, a maker of clean roots, hosts' programs. Without
# them their tests are skipped, and say so.
tools=""
if [ "${extras%%,*}" = dev ]; then
	command -v spin >/dev/null || tools="$tools spin"
	[ -n "$(find "$(clang -print-runtime-dir 2>/dev/null || echo /none)" -name '*fuzzer*' 2>/dev/null)" ] || tools="$tools libclang-rt-dev"
	command -v valgrind >/dev/null || tools="$tools valgrind"
	command -v debootstrap >/dev/null || tools="$tools debootstrap"
	command -v setpriv >/dev/null || tools="$tools util-linux"
	command -v ping >/dev/null || tools="$tools iputils-ping"
	command -v dig >/dev/null || tools="$tools bind9-dnsutils"
fi
if [ -n "$tools" ] && { [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; }; then
	echo "Not installed, so some tests will be skipped:$tools" >&2
	tools=""
fi
missing="$missing$tools"

if [ -n "$missing" ]; then
	if ! command -v apt-get >/dev/null; then
		echo "These Debian packages, or what your distribution calls them, are missing:$missing" >&2
		echo "  Fedora/RHEL: dnf install gcc clang iproute pkgconf libxdp-devel libbpf-devel python3-devel" >&2
		exit 1
	fi
	sudo=""
	if [ "$(id -u)" != 0 ]; then
		if ! command -v sudo >/dev/null || ! { sudo -n true 2>/dev/null || [ -t 0 ]; }; then
			echo "These packages are missing, and installing them needs root:$missing" >&2
			echo "  As root: apt-get install$missing" >&2
			exit 1
		fi
		echo "Installing needs root:$missing" >&2
		sudo=sudo
	fi
	$sudo apt-get update -qq
	# shellcheck disable=SC2086  # a list of words
	DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends $missing >/dev/null
	if ! python_ok; then
		echo "Python 3.11 or newer is needed, with venv and headers; this is $(python3 --version)." >&2
		exit 1
	fi
fi

[ -x .venv/bin/python ] || python3 -m venv .venv
# Built anew when a source is newer than the last build.
stamp=".venv/.built-$(echo "$extras" | tr , -)"
if [ ! -e "$stamp" ] || [ -n "$(find afxdp_pool/_native bpf pyproject.toml setup.py scripts/prepare.sh \
	\( -name '*.[ch]' -o -name '*.py' -o -name '*.toml' -o -name '*.sh' \) ! -name _ffi.c -newer "$stamp")" ] ||
	! ls afxdp_pool/_native/_ffi*.so >/dev/null 2>&1; then
	# PINNED=1: the versions that the tests were last run with.
	.venv/bin/pip install --quiet --disable-pip-version-check ${PINNED:+--constraint scripts/constraints.txt} \
		--editable ".[$extras]"
	touch "$stamp"
fi
