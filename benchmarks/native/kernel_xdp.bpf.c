/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* The kernel's own XDP, one program a job: what no socket can outdo. */
#include <linux/bpf.h>
#include <linux/if_ether.h>

#include <bpf/bpf_helpers.h> /* needs the types of those above */

struct counters {
	__u64 received;
	__u64 sent;
	__u64 bytes;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct counters);
} counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} out SEC(".maps");

static __always_inline struct counters *count(struct xdp_md *ctx)
{
	__u32 zero = 0;
	struct counters *counts = bpf_map_lookup_elem(&counters, &zero);

	if (counts) {
		counts->received++;
		counts->bytes += ctx->data_end - ctx->data;
	}
	return counts;
}

SEC("xdp")
int drop(struct xdp_md *ctx)
{
	count(ctx);
	return XDP_DROP;
}

SEC("xdp")
int forward(struct xdp_md *ctx)
{
	struct counters *counts = count(ctx);
	long verdict = bpf_redirect_map(&out, 0, XDP_DROP);

	if (counts && verdict == XDP_REDIRECT)
		counts->sent++;
	return verdict;
}

SEC("xdp")
int reflect(struct xdp_md *ctx)
{
	struct counters *counts = count(ctx);
	struct ethhdr *eth = (void *)(long)ctx->data;
	__u8 dst[ETH_ALEN];

	if ((void *)(eth + 1) > (void *)(long)ctx->data_end)
		return XDP_DROP;
	__builtin_memcpy(dst, eth->h_dest, ETH_ALEN);
	__builtin_memcpy(eth->h_dest, eth->h_source, ETH_ALEN);
	__builtin_memcpy(eth->h_source, dst, ETH_ALEN);
	if (counts)
		counts->sent++;
	return XDP_TX;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
