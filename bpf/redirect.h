// SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause
/* Gives packets to the AF_XDP socket of the queue they came in on, if a rule wants them; everything else
 * goes on to the kernel's stack, so that a machine reached through this interface stays reachable.
 *
 * What the programs xdp_redirect*.bpf.c have in common.
 */
#pragma once
#include "filter.h"

/* Who loaded this program: read back through the program's maps to tell a left-over from a program in use. */
const volatile struct {
	__u64 magic;
	__u64 start_time;
	__u32 pid;
	__u32 pid_namespace;
} owner = {};

struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, 64); /* set when the object is opened */
	__type(key, __u32);
	__type(value, __u32);
} xsks SEC(".maps");

struct counters {
	__u64 redirected;
	__u64 passed_filter;
	__u64 passed_no_socket;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct counters);
} counters SEC(".maps");

static __always_inline int redirect(struct xdp_md *ctx)
{
	__u32 zero = 0;
	struct counters *count = bpf_map_lookup_elem(&counters, &zero);
	if (!count)
		return XDP_PASS;
	if (!wanted(ctx)) {
		count->passed_filter++;
		return XDP_PASS;
	}
	/* Also when the queue number is beyond the map. */
	long verdict = bpf_redirect_map(&xsks, ctx->rx_queue_index, XDP_PASS);
	if (verdict == XDP_REDIRECT)
		count->redirected++;
	else
		count->passed_no_socket++;
	return verdict;
}
