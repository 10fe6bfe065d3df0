/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/*
 * The source of test traffic. It never receives anything: user space runs it with BPF_PROG_RUN and
 * BPF_F_TEST_XDP_LIVE_FRAMES, and each run makes it one frame, which it numbers and redirects out of a link.
 *
 * The kernel writes the packet given to BPF_PROG_RUN only once into each page, and recycles the page as whoever
 * received it left it. So the whole head (Ethernet to the test header) is written anew for every frame; only the
 * constant fill behind it is relied upon.
 *
 * Invariant: frame n of a run of `flows` flows carries flow n % flows and sequence number n / flows.
 */
#include "test_packet.h"

#define HEAD_WORDS 8 /* 64 bytes: the test packet's headers and the first bytes of its fill */

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
	struct test_packet *packet = data;
	struct source_config *config;
	struct source_state *state;
	__u32 zero = 0, flow, sum;
	__u16 check, port;
	__u64 *words = data;
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

	port = config->source_port + flow;
	sum = config->base_sum + port;
	sum += (flow >> 16) + (flow & 0xffff);
	sum += (seq >> 48) + ((seq >> 32) & 0xffff) + ((seq >> 16) & 0xffff) + (seq & 0xffff);
	check = ~fold(sum);

#pragma unroll
	for (int i = 0; i < HEAD_WORDS; i++)
		words[i] = config->head[i];
	packet->udp.source = bpf_htons(port);
	packet->udp.check = check ? bpf_htons(check) : 0xffff; /* 0 would say "no checksum" (RFC 768) */
	packet->flow = bpf_htonl(flow);
	packet->seq = bpf_cpu_to_be64(seq);
	return bpf_redirect(config->ifindex, 0);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
