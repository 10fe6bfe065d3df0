// SPDX-License-Identifier: GPL-2.0-only OR BSD-3-Clause
/* Packets to sockets, as they are. */
#include "redirect.h"

SEC("xdp")
int afxdp_redirect(struct xdp_md *ctx)
{
	return redirect(ctx);
}

char _license[] SEC("license") = "Dual BSD/GPL";
