/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/*
 * The sink of test traffic: counts the test packets that reach a link, and drops them. Everything else is counted
 * as foreign and passed on. A test packet is IPv4/UDP to TEST_PORT.
 *
 * sink_verify looks at every byte (lengths, IP header sum, magic, UDP checksum) and knows each flow's past in a
 * window of WINDOW_BITS sequence numbers, so that lost, late and duplicate packets are told apart. sink_count only
 * counts.
 *
 * Invariant of a flow: `unique` sequence numbers of [base, top) were seen, each once; those seen within the window
 * behind `top` have their bit set. A packet that arrives older than the window cannot be judged: it is `stale`.
 */
#include "test_packet.h"

#define FLOWS 256
#define WORDS 1024
#define WINDOW_BITS ((WORDS - 1) * 64) /* the word being entered is cleared whole */

/* last_ns is that of the last packet whose place on its CPU is a multiple of 64. */
struct sink_total { __u64 packets, bytes, corrupt, foreign, first_ns, last_ns; };

struct sink_flow {
	struct bpf_spin_lock lock; /* guards the flow and its window: a flow may arrive on several queues */
	__u32 started;
	__u64 base, top, unique, duplicate, reordered, stale;
};

struct sink_window { __u64 words[WORDS]; };

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct sink_total);
} sink_total SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, FLOWS);
	__type(key, __u32);
	__type(value, struct sink_flow);
} sink_flow SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, FLOWS);
	__type(key, __u32);
	__type(value, struct sink_window);
} sink_window SEC(".maps");

static __always_inline struct sink_total *count(struct xdp_md *ctx, bool test)
{
	__u32 zero = 0;
	struct sink_total *total = bpf_map_lookup_elem(&sink_total, &zero);

	if (!total)
		return NULL;
	if (!test) {
		total->foreign++;
		return NULL;
	}
	if (!(total->packets & 63)) { /* reading the clock costs more than all the rest of the count */
		total->last_ns = bpf_ktime_get_ns();
		if (!total->packets)
			total->first_ns = total->last_ns;
	}
	total->packets++;
	total->bytes += ctx->data_end - ctx->data;
	return total;
}

/* Places one sequence number in its flow's past. The caller holds the flow's lock, so no helper may be called. */
static __always_inline void place(struct sink_flow *flow, struct sink_window *window, __u64 seq)
{
	__u64 bit = 1ULL << (seq & 63), *word = &window->words[(seq >> 6) & (WORDS - 1)];

	if (!flow->started) {
		flow->started = 1;
		flow->base = flow->top = seq;
	}
	if (seq >= flow->top) {
		/* Words entered for the first time hold bits of a window ago. */
		__u64 now = flow->top ? (flow->top - 1) >> 6 : 0, entered = (seq >> 6) - now;

		for (__u32 i = 0; i < WORDS; i++) {
			if (i >= entered)
				break;
			window->words[((seq >> 6) - i) & (WORDS - 1)] = 0;
		}
		flow->top = seq + 1;
	} else if (flow->top - seq > WINDOW_BITS) {
		flow->stale++;
		return;
	} else if (*word & bit) {
		flow->duplicate++;
		return;
	} else {
		flow->reordered++;
		if (seq < flow->base)
			flow->base = seq;
	}
	*word |= bit;
	flow->unique++;
}

SEC("xdp")
int sink_verify(struct xdp_md *ctx)
{
	void *end = (void *)(long)ctx->data_end;
	struct test_packet *packet = (void *)(long)ctx->data;
	struct sink_window *window;
	struct sink_total *total;
	struct sink_flow *flow;
	__u32 index;
	__u64 seq;

	total = count(ctx, is_test(packet, end));
	if (!total || (void *)(packet + 1) > end)
		return XDP_PASS;
	index = bpf_ntohl(packet->flow);
	seq = bpf_be64_to_cpu(packet->seq);
	flow = bpf_map_lookup_elem(&sink_flow, &index);
	window = bpf_map_lookup_elem(&sink_window, &index);
	if (!flow || !window || !intact(packet, end)) {
		total->corrupt++;
		return XDP_DROP;
	}
	bpf_spin_lock(&flow->lock);
	place(flow, window, seq);
	bpf_spin_unlock(&flow->lock);
	return XDP_DROP;
}

SEC("xdp")
int sink_count(struct xdp_md *ctx)
{
	return count(ctx, is_test((void *)(long)ctx->data, (void *)(long)ctx->data_end)) ? XDP_DROP : XDP_PASS;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
