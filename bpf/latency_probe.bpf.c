/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/*
 * The two ends of a latency measurement: latency_source stamps a test packet with the time and sends it as a live frame,
 * latency_sink at the far end subtracts that from its own time and counts the difference in a histogram. Both read
 * CLOCK_MONOTONIC, which is one clock for all CPUs and namespaces. The stamp is in the packet's sequence number (0: none, since
 * at millions a second reading the clock is a load of its own), the number of the measurement in its flow, so that what an
 * earlier measurement left under way is not counted.
 *
 * The source paces itself: it waits, in its run, until a packet is due. Waiting in user space would add the cost of a
 * BPF_PROG_RUN, microseconds, and its scatter to every gap. User space keeps the wait short: softirqs of this CPU wait too.
 *
 * Invariant: packets of a burst leave together and no burst before it is due. A burst that comes more than an interval
 * late is counted, and the schedule begins anew with it: lost time is not made up for by a crowd.
 */
#include "test_packet.h"

#define SUB_BITS 5 /* 32 buckets for each power of two: at most 3 % wide */
#define TOP_BIT 36 /* 137 s and more share the last bucket */
#define BUCKETS ((TOP_BIT - SUB_BITS + 2) << SUB_BITS)
#define MAX_SPINS (1 << 22)

/* Written by user space before a run. */
struct probe_config {
	__u64 head[HEAD_WORDS];
	__u64 interval_ns; /* from burst to burst; 0 = never wait */
	__u32 base_sum;
	__u32 ifindex; /* of the link to redirect out of, in the namespace of the run */
	__u32 number;  /* of this measurement */
	__u32 burst;   /* packets, 1 or more */
	__u32 stamp_every; /* packets; 1 = each has a stamp */
	__u32 source_port;
};

/* Written by the source, and zeroed by user space. */
struct probe_state {
	__u64 sent;
	__u64 due_ns; /* of the next burst; 0 = at once */
	__u64 late;   /* bursts */
	__u32 in_burst; /* packets of this burst still to be sent */
	__u32 unstamped; /* packets since the last stamp */
};

struct probe_seen {
	__u64 packets, stamped, sum_ns, min_ns, max_ns;
	__u64 bucket[BUCKETS];
};

#define ONE(kind, name) struct { __uint(type, kind); __uint(max_entries, 1); __type(key, __u32); \
	__type(value, struct name); } name SEC(".maps")
ONE(BPF_MAP_TYPE_ARRAY, probe_config);
ONE(BPF_MAP_TYPE_ARRAY, probe_state);
ONE(BPF_MAP_TYPE_PERCPU_ARRAY, probe_seen);

struct wait { __u64 until, now; };

static long wait_until(__u32 index, struct wait *wait)
{
	(void)index;
	wait->now = bpf_ktime_get_ns();
	return wait->now >= wait->until;
}

SEC("xdp")
int latency_source(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *data_end = (void *)(long)ctx->data_end;
	struct probe_config *config;
	struct probe_state *state;
	__u64 stamp = 0;
	__u32 zero = 0;

	config = bpf_map_lookup_elem(&probe_config, &zero);
	state = bpf_map_lookup_elem(&probe_state, &zero);
	if (!config || !state)
		return XDP_ABORTED;
	if (data + sizeof(config->head) > data_end)
		return XDP_DROP; /* not counted as sent */
	if (!state->in_burst) {
		struct wait wait = {.until = state->due_ns};

		bpf_loop(MAX_SPINS, wait_until, &wait, 0);
		if (wait.now > state->due_ns + config->interval_ns) {
			state->late += state->due_ns && config->interval_ns;
			state->due_ns = wait.now;
		}
		state->due_ns += config->interval_ns;
		state->in_burst = config->burst;
	}
	state->in_burst--;
	state->sent++;
	if (++state->unstamped >= config->stamp_every) {
		state->unstamped = 0;
		stamp = bpf_ktime_get_ns();
	}
	write_head(data, config->head, config->base_sum, config->source_port, config->number, stamp);
	return bpf_redirect(config->ifindex, 0);
}

/* 0 to 63 each have a bucket; above, the top SUB_BITS + 1 bits of the value choose it. */
static __always_inline __u32 bucket_of(__u64 value)
{
	__u64 rest = value >> (SUB_BITS + 1);
	__u32 shift = 0, bucket;

#pragma unroll
	for (__u32 half = 32; half; half >>= 1)
		if (rest >> half) {
			shift += half;
			rest >>= half;
		}
	shift += rest > 0;
	bucket = (shift << SUB_BITS) + (value >> shift);
	return bucket < BUCKETS ? bucket : BUCKETS - 1;
}

SEC("xdp")
int latency_sink(struct xdp_md *ctx)
{
	struct test_packet *packet = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	struct probe_config *config;
	struct probe_seen *seen;
	__u32 zero = 0;
	__u64 took;

	if (!is_test(packet, end) || (void *)(packet + 1) > end)
		return XDP_PASS;
	config = bpf_map_lookup_elem(&probe_config, &zero);
	seen = bpf_map_lookup_elem(&probe_seen, &zero);
	if (!config || !seen || packet->magic != bpf_htonl(TEST_MAGIC) || packet->flow != bpf_htonl(config->number))
		return XDP_DROP;
	seen->packets++;
	if (!packet->seq)
		return XDP_DROP;
	took = bpf_ktime_get_ns() - bpf_be64_to_cpu(packet->seq);
	if (!seen->stamped || took < seen->min_ns)
		seen->min_ns = took;
	if (took > seen->max_ns)
		seen->max_ns = took;
	seen->stamped++;
	seen->sum_ns += took;
	seen->bucket[bucket_of(took)]++;
	return XDP_DROP;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
