/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* The filter: which packets the engine wants.
 *
 * A rule is a value and a mask over `struct key`, the few header fields parsed here. A packet that lacks a field
 * (ports of a fragment, addresses of ARP) lacks its bit in `present`, which the mask covers as any other word.
 * afxdp_pool/filters.py packs the same structures.
 */
#pragma once
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define MAX_RULES 16
#define MAX_VLAN_TAGS 2
#define IPV4_FRAGMENT 0x3fff /* offset or "more follow": even the first one goes where the others go */

enum { HAS_IPV4 = 1, HAS_IPV6 = 2, HAS_PORTS = 4, HAS_PROTOCOL = 8 };

struct vlan_tag {
	__be16 tci;
	__be16 next;
};

struct ports {
	__be16 source;
	__be16 dest;
};

struct key {
	union {
		struct {
			__u32 present;
			__be16 ethertype;
			__u8 protocol;
			__u8 unused;
			struct ports ports;
			__be32 source[4]; /* IPv4: the first word */
			__be32 dest[4];
		};
		__u32 words[11];
	};
};

struct rules {
	__u32 count;
	struct {
		struct key value;
		struct key mask;
	} rule[MAX_RULES];
};

struct rule_set {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct rules);
} rule_set SEC(".maps");

/* One more hop, so that a whole new set of rules takes effect between two packets. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct rule_set);
} active_rules SEC(".maps") = { .values = { &rule_set } };

/* Whether there may be rules. Without any, which is the common case, a packet costs one load here. */
volatile __u32 filtering;

static __always_inline void parse(void *at, void *end, struct key *key)
{
	struct ethhdr *eth = at;
	if ((void *)(eth + 1) > end)
		return;
	key->ethertype = eth->h_proto;
	at = eth + 1;
	for (int i = 0; i < MAX_VLAN_TAGS; i++) {
		struct vlan_tag *tag = at;
		if (key->ethertype != bpf_htons(ETH_P_8021Q) && key->ethertype != bpf_htons(ETH_P_8021AD))
			break;
		if ((void *)(tag + 1) > end)
			return;
		key->ethertype = tag->next;
		at = tag + 1;
	}

	if (key->ethertype == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = at;
		if ((void *)(ip + 1) > end || ip->ihl < 5)
			return;
		key->present = HAS_IPV4 | HAS_PROTOCOL;
		key->protocol = ip->protocol;
		key->source[0] = ip->saddr;
		key->dest[0] = ip->daddr;
		if (ip->frag_off & bpf_htons(IPV4_FRAGMENT))
			return;
		at += ip->ihl * 4;
	} else if (key->ethertype == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip = at;
		if ((void *)(ip + 1) > end)
			return;
		key->present = HAS_IPV6 | HAS_PROTOCOL;
		key->protocol = ip->nexthdr;
		__builtin_memcpy(key->source, &ip->saddr, 16);
		__builtin_memcpy(key->dest, &ip->daddr, 16);
		at = ip + 1;
		if (key->protocol == IPPROTO_HOPOPTS) {
			struct ipv6_opt_hdr *options = at;
			if ((void *)(options + 1) > end)
				return;
			key->protocol = options->nexthdr;
			at += (options->hdrlen + 1) * 8;
		}
	} else {
		return;
	}

	struct ports *ports = at;
	if ((key->protocol == IPPROTO_UDP || key->protocol == IPPROTO_TCP) && (void *)(ports + 1) <= end) {
		key->ports = *ports;
		key->present |= HAS_PORTS;
	}
}

static __always_inline int wanted(struct xdp_md *ctx)
{
	__u32 zero = 0;

	if (!filtering)
		return 1;
	void *set = bpf_map_lookup_elem(&active_rules, &zero);
	struct rules *rules = set ? bpf_map_lookup_elem(set, &zero) : NULL;
	if (!rules || !rules->count)
		return 1;

	struct key key = {};
	parse((void *)(long)ctx->data, (void *)(long)ctx->data_end, &key);
	for (__u32 i = 0; i < MAX_RULES && i < rules->count; i++) {
		__u32 differs = 0;
#pragma unroll
		for (int w = 0; w < 11; w++)
			differs |= (key.words[w] ^ rules->rule[i].value.words[w]) & rules->rule[i].mask.words[w];
		if (!differs)
			return 1;
	}
	return 0;
}
