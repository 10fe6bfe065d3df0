// SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause
/* What programs do to packets before a socket gets them. Only IPv4 is touched: the test packets. */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, 64);
	__type(key, __u32);
	__type(value, __u32);
} xsks SEC(".maps");

struct {
	__u64 seen;
	__s64 refused; /* the last error of a helper, negative */
} told = {};
const volatile __s32 adjust = 0;

static __always_inline int is_test(struct xdp_md *ctx)
{
	struct ethhdr *eth = (void *)(long)ctx->data;

	return (void *)(eth + 1) <= (void *)(long)ctx->data_end && eth->h_proto == bpf_htons(ETH_P_IP);
}

static __always_inline int to_socket(struct xdp_md *ctx)
{
	return bpf_redirect_map(&xsks, ctx->rx_queue_index, XDP_PASS);
}

SEC("xdp.frags")
int drop_half(struct xdp_md *ctx)
{
	if (!is_test(ctx))
		return XDP_PASS;
	return __sync_fetch_and_add(&told.seen, 1) % 2 ? XDP_DROP : to_socket(ctx);
}

SEC("xdp.frags")
int count_before(struct xdp_md *ctx)
{
	__u64 *count;

	if (!is_test(ctx))
		return XDP_PASS;
	told.refused = bpf_xdp_adjust_meta(ctx, -(int)sizeof(*count));
	if (told.refused)
		return XDP_DROP;
	count = (void *)(long)ctx->data_meta;
	if ((void *)(count + 1) > (void *)(long)ctx->data)
		return XDP_DROP;
	*count = __sync_fetch_and_add(&told.seen, 1);
	return to_socket(ctx);
}

SEC("xdp.frags")
int move_tail(struct xdp_md *ctx)
{
	if (!is_test(ctx))
		return XDP_PASS;
	told.refused = bpf_xdp_adjust_tail(ctx, adjust);
	if (told.refused)
		return XDP_DROP;
	return to_socket(ctx);
}

char _license[] SEC("license") = "Dual BSD/GPL";
