/* SPDX-License-Identifier: BSD-3-Clause */
/* What the files of the peer share: the options, which nothing changes once they are parsed, the ports and
 * the free frames. */
#ifndef PEER_H
#define PEER_H

#include <linux/types.h>
#include <net/ethernet.h>
#include <signal.h>
#include <stdbool.h>
#include <xdp/xsk.h>

enum mode { DROP, FORWARD, REFLECT, TX };

extern const char *const mode_names[];

extern struct options {
	enum mode mode;
	const char *in, *out;
	__u32 queue, batch, frames, frame_size, fill, ring, size, tx_budget, spin;
	double duration;
	__u16 bind_flags;
	__u32 xdp_flags;
	bool poll, verbose;
	struct ether_addr dst;
	__u8 template[4096];
	__u32 template_len;
} opt;

struct port {
	const char *name;
	struct xsk_socket *xsk;
	int fd;
	struct xsk_ring_prod fill, tx;
	struct xsk_ring_cons comp, rx;
	__u32 in_tx;
	bool zero_copy;
};

extern struct port in_port, out_port; /* out_port is open in mode forward only */
extern char *area;
extern __u64 *stack; /* addresses of the free frames, the one used last on top */
extern __u32 n_free, in_fill;
extern __u32 granted_budget; /* packets a sendto; 0: the kernel's default */
extern volatile sig_atomic_t stop;

void parse_options(int argc, char **argv);

/* Open what the mode needs and stock the fill ring; 0, or a negative errno with the reason on stderr. */
int open_all(void);
/* Close all and detach the program. Harmless when little or nothing is open. */
void close_all(void);
void refill(void);
void report_port(const struct port *port);

/* Build the packet that mode tx sends; 0, or -1 with the reason on stderr. */
int build_packet(__u8 *packet);

__attribute__((format(printf, 1, 2))) void complain(const char *format, ...);

#endif
