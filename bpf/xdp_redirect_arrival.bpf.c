// SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause
/* Packets to sockets, each with the time at which this program saw it. That takes nothing of the device, so it goes everywhere
 * the plain program goes.
 */
#include "redirect.h"
#include "rx_metadata.h"

SEC("xdp")
int afxdp_redirect(struct xdp_md *ctx)
{
	struct rx_metadata known = {
		.arrival = bpf_ktime_get_tai_ns(),
		.present = RX_ARRIVAL,
		.magic = RX_METADATA_MAGIC,
	};
	long verdict = redirect(ctx);

	if (verdict == XDP_REDIRECT)
		write_metadata(ctx, &known);
	return verdict;
}

char _license[] SEC("license") = "Dual BSD/GPL";
