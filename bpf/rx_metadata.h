/* SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause */
/* What is known of a packet beside its bytes, in front of them: a record of one form, whatever is asked for and known.
 *
 * It lies right before the packet, where the kernel copies it along into the frame (Documentation/networking/
 * xdp-rx-metadata.rst). afxdp_pool/include/afxdp_pool.h has the same structure. 32 bytes: no kernel takes less.
 */
#pragma once
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#define RX_METADATA_MAGIC 0x316d7278 /* "xrm1": of this form */

/* What is asked for, and what a record has. */
enum { RX_HASH = 1, RX_TIMESTAMP = 2, RX_VLAN = 4, RX_ARRIVAL = 8 };

struct rx_metadata {
	__u64 timestamp; /* the device's clock, ns */
	__u64 arrival;   /* CLOCK_TAI, ns: when this program saw it */
	__u32 hash;
	__u16 hash_type; /* enum xdp_rss_hash_type */
	__u16 vlan_tci;
	__u16 vlan_proto; /* in the machine's byte order */
	__u16 present;
	__u32 magic;
};

/* Exactly this much room in front of the packet: another program may have left some of its own there. */
static __always_inline void write_metadata(struct xdp_md *ctx, const struct rx_metadata *from)
{
	int before = (int)(ctx->data - ctx->data_meta);
	struct rx_metadata *to;

	if (bpf_xdp_adjust_meta(ctx, before - (int)sizeof(*from)))
		return;
	to = (void *)(long)ctx->data_meta;
	if ((void *)(to + 1) <= (void *)(long)ctx->data)
		*to = *from;
}
