// SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause
/* Packets to sockets, each with what its device knows of it. The kernel ties such a program to one device, and the calls to that
 * device's driver; it takes them in no program that is not tied.
 */
#include "redirect.h"
#include "rx_metadata.h"

/* What the port asked for: the last of the read-only data. What it did not is no part of the program that is loaded. */
const volatile __u32 wanted_metadata;

enum xdp_rss_hash_type { XDP_RSS_TYPE_NONE };

/* include/net/xdp.h, XDP_METADATA_KFUNC_xxx. Weak: older kernels have not all of them, and are not asked for those. */
extern int bpf_xdp_metadata_rx_timestamp(const struct xdp_md *ctx, __u64 *timestamp) __ksym __weak;
extern int bpf_xdp_metadata_rx_hash(const struct xdp_md *ctx, __u32 *hash, enum xdp_rss_hash_type *type) __ksym __weak;
extern int bpf_xdp_metadata_rx_vlan_tag(const struct xdp_md *ctx, __be16 *proto, __u16 *tci) __ksym __weak;

SEC("xdp")
int afxdp_redirect(struct xdp_md *ctx)
{
	struct rx_metadata known = {.magic = RX_METADATA_MAGIC};
	long verdict = redirect(ctx);

	if (verdict != XDP_REDIRECT)
		return verdict;
	if (wanted_metadata & RX_TIMESTAMP) {
		__u64 timestamp = 0;

		/* A driver that says yes, and 0, had none: veth of a packet that no NIC received. */
		if (!bpf_xdp_metadata_rx_timestamp(ctx, &timestamp) && timestamp) {
			known.timestamp = timestamp;
			known.present |= RX_TIMESTAMP;
		}
	}
	if (wanted_metadata & RX_HASH) {
		enum xdp_rss_hash_type type = XDP_RSS_TYPE_NONE;
		__u32 hash = 0;

		if (!bpf_xdp_metadata_rx_hash(ctx, &hash, &type)) {
			known.hash = hash;
			known.hash_type = (__u16)type;
			known.present |= RX_HASH;
		}
	}
	if (wanted_metadata & RX_VLAN) {
		__be16 proto = 0;
		__u16 tci = 0;

		if (!bpf_xdp_metadata_rx_vlan_tag(ctx, &proto, &tci)) {
			known.vlan_proto = bpf_ntohs(proto);
			known.vlan_tci = tci;
			known.present |= RX_VLAN;
		}
	}
	if (wanted_metadata & RX_ARRIVAL) {
		known.arrival = bpf_ktime_get_tai_ns();
		known.present |= RX_ARRIVAL;
	}
	write_metadata(ctx, &known);
	return verdict;
}

char _license[] SEC("license") = "Dual BSD/GPL";
