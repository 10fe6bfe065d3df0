/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/*
 * The source of test traffic. It never receives anything: user space runs it with BPF_PROG_RUN and
 * BPF_F_TEST_XDP_LIVE_FRAMES, and each run makes it one frame, which it numbers and redirects out of a link.
 *
 * Invariant: frame n of a run of `flows` flows carries flow n % flows and sequence number n / flows.
 */
#include "test_packet.h"

/* Written by user space before a run. */
struct source_config {
	__u64 head[HEAD_WORDS]; /* template, with source port, checksum, flow and seq zero */
	__u32 base_sum;         /* ones' complement sum of the template's datagram and pseudo header */
	__u32 ifindex;          /* of the link to redirect out of, in the namespace of the run */
	__u32 flows;            /* 1 or more */
	__u32 source_port;      /* of flow 0; flow f has source_port + f */
};

/* Written by the program, except that user space sets where to begin. */
struct source_state {
	__u64 sent; /* frames made and handed to the redirect */
	__u64 seq;  /* of the next frame */
	__u32 flow; /* of the next frame */
	__u32 short_frames; /* frames too short to hold the head; dropped */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct source_config);
} source_config SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct source_state);
} source_state SEC(".maps");

SEC("xdp")
int traffic_source(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	void *data_end = (void *)(long)ctx->data_end;
	struct source_config *config;
	struct source_state *state;
	__u32 zero = 0, flow;
	__u64 seq;

	config = bpf_map_lookup_elem(&source_config, &zero);
	state = bpf_map_lookup_elem(&source_state, &zero);
	if (!config || !state)
		return XDP_ABORTED;
	if (data + sizeof(config->head) > data_end) {
		state->short_frames++;
		return XDP_DROP;
	}

	/* Only one run at a time uses these maps, so plain additions are exact. */
	flow = state->flow;
	seq = state->seq;
	if (flow + 1 >= config->flows) {
		state->flow = 0;
		state->seq = seq + 1;
	} else {
		state->flow = flow + 1;
	}
	state->sent++;

	write_head(data, config->head, config->base_sum, config->source_port + flow, flow, seq);
	return bpf_redirect(config->ifindex, 0);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
