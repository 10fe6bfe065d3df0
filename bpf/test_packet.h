/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/*
 * The test packet: Ethernet, IPv4 without options, UDP to TEST_PORT, and a payload of magic, flow, sequence number
 * (network order) and a fill. The UDP checksum is always filled in, so it proves every byte behind the IP header.
 * afxdp_pool/testing/packets.py builds the same packet.
 */
#pragma once
#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define HEAD_WORDS 8 /* 64 bytes: the test packet's headers and the first bytes of its fill */
#define TEST_MAGIC 0xafd9f00d
#define TEST_PORT 9 /* discard (RFC 863) */

struct test_packet {
	struct ethhdr eth;
	struct iphdr ip;
	struct udphdr udp;
	__be32 magic;
	__be32 flow;
	__be64 seq;
} __attribute__((packed));

/* Ones' complement sum of up to 2^32 - 1, folded to 16 bits. */
static __always_inline __u16 fold(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

/* Writes the whole head of a live frame: the kernel wrote the packet given to BPF_PROG_RUN only once into each page, and
 * recycles the page as whoever received it left it. Only the constant fill behind the head is relied upon. `head` is a
 * template with source port, checksum, flow and seq zero, `base_sum` the ones' complement sum of its datagram and pseudo
 * header. The caller has shown that the frame is as long. */
static __always_inline void write_head(struct test_packet *packet, const __u64 *head, __u32 base_sum, __u16 port, __u32 flow,
				       __u64 seq)
{
	__u64 *words = (void *)packet;
	__u32 sum = base_sum + port;
	__u16 check;

	sum += (flow >> 16) + (flow & 0xffff);
	sum += (seq >> 48) + ((seq >> 32) & 0xffff) + ((seq >> 16) & 0xffff) + (seq & 0xffff);
	check = ~fold(sum);
#pragma unroll
	for (int i = 0; i < HEAD_WORDS; i++)
		words[i] = head[i];
	packet->udp.source = bpf_htons(port);
	packet->udp.check = check ? bpf_htons(check) : 0xffff; /* 0 would say "no checksum" (RFC 768) */
	packet->flow = bpf_htonl(flow);
	packet->seq = bpf_cpu_to_be64(seq);
}

/* Whether the headers are there and say test packet; their contents are not yet proven. */
static __always_inline bool is_test(struct test_packet *packet, void *end)
{
	return (void *)(packet + 1) <= end && packet->eth.h_proto == bpf_htons(ETH_P_IP) &&
	       packet->ip.version == 4 && packet->ip.ihl == 5 && packet->ip.protocol == IPPROTO_UDP &&
	       packet->udp.dest == bpf_htons(TEST_PORT);
}

/* Adds the 32-bit words of n bytes at `at`, if the length has that power of two in it. Each n is a constant, because
 * the verifier wants a fixed size to be in front of data_end. */
#define ADD_HELPER(n) \
	do { if (left & (n)) { if (at + (n) > end) return 0; \
		sum += (__u32)bpf_csum_diff(NULL, 0, at, (n), 0); at += (n); } } while (0)
#define ADD_WORDS(n) \
	do { if (left & (n)) { if (at + (n) > end) return 0; \
		_Pragma("unroll") for (int i = 0; i < (n) / 4; i++) sum += ((__u32 *)at)[i]; at += (n); } } while (0)

/* The datagram's and pseudo header's folded sum: 0xffff when the checksum is right. */
static __always_inline __u32 datagram_sum(struct test_packet *packet, void *end, __u32 left)
{
	__u64 sum = (__u64)packet->ip.saddr + packet->ip.daddr + bpf_htons(IPPROTO_UDP) + packet->udp.len;
	void *at = &packet->udp;

	for (int i = 0; i < 8 && left >= 512; i++, left -= 512, at += 512) {
		if (at + 512 > end)
			return 0;
		sum += (__u32)bpf_csum_diff(NULL, 0, at, 512, 0);
	}
	ADD_HELPER(256);
	ADD_HELPER(128);
	ADD_HELPER(64);
	ADD_WORDS(32);
	ADD_WORDS(16);
	ADD_WORDS(8);
	ADD_WORDS(4);
	if (left & 2) {
		if (at + 2 > end)
			return 0;
		sum += *(__u16 *)at;
		at += 2;
	}
	if (left & 1) {
		if (at + 1 > end)
			return 0;
		sum += *(__u8 *)at;
	}
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + ((sum >> 16) & 0xffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

/* Whether lengths, IP header sum, magic and UDP checksum are all as they were sent. */
static __always_inline bool intact(struct test_packet *packet, void *end)
{
	__u32 length = bpf_ntohs(packet->udp.len), head = 0;
	__u16 *ip = (void *)&packet->ip;

	for (int i = 0; i < 10; i++)
		head += ip[i];
	head = (head & 0xffff) + (head >> 16);
	if ((head & 0xffff) + (head >> 16) != 0xffff || packet->magic != bpf_htonl(TEST_MAGIC))
		return false;
	if (bpf_ntohs(packet->ip.tot_len) != length + sizeof(packet->ip) || (void *)&packet->udp + length != end)
		return false;
	return packet->udp.check && datagram_sum(packet, end, length) == 0xffff;
}
