/* SPDX-License-Identifier: BSD-3-Clause */
/* What the two files of the peer share: its own options, the ports and the free frames. */
#ifndef PEER_H
#define PEER_H

#include "engine.h"

#include <xdp/xsk.h>

extern struct peer_options {
	__u32 frames, frame_size, fill, ring, tx_budget;
	__u16 bind_flags;
	__u32 xdp_flags;
} peer;

struct port {
	const char *name;
	struct xsk_socket *xsk;
	int fd;
	struct xsk_ring_prod fill, tx;
	struct xsk_ring_cons comp, rx;
	__u32 in_tx;
	bool zero_copy;
};

extern struct port in_port, out_port; /* out_port is open in job forward only */
extern char *area;
extern __u64 *stack; /* addresses of the free frames, the one used last on top */
extern __u32 n_free, in_fill;
extern __u32 granted_budget; /* packets a sendto; 0: the kernel's default */

/* Open what the job needs and stock the fill ring; 0, or a negative errno with the reason on stderr. */
int open_all(void);
/* Close all and detach the program. Harmless when little or nothing is open. */
void close_all(void);
void refill(void);
struct xdp_statistics statistics(const struct port *port);
void report_port(const struct port *port); /* as a JSON object */

#endif
