#!/bin/sh
# A hundred million remote returns under ThreadSanitizer, with 1, 2, 4 and 8 returners; one JSON line each.
set -eu
cd "$(dirname "$0")"
frames=${1:-100000000}
mkdir -p build
sources=$(ls ../../afxdp_pool/_native/*.c | grep -v -e bpf_glue.c -e calls.c -e _ffi.c)
# shellcheck disable=SC2046,SC2086  # lists of words
gcc -std=gnu11 -D_GNU_SOURCE -g -O2 -fsanitize=thread -fno-builtin -I../../afxdp_pool/_native $(pkg-config --cflags libxdp libbpf) \
	-o build/stress stress.c $sources $(pkg-config --libs libxdp libbpf) -pthread
for returners in 1 2 4 8; do
	build/stress "$returners" "$frames"
done
