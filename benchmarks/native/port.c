/* SPDX-License-Identifier: BSD-3-Clause */
/* Opening and closing the UMEM and its sockets, and asking the kernel about them. */
#include "peer.h"

#include <bpf/libbpf.h>
#include <errno.h>
#include <linux/if_link.h>
#include <net/if.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <xdp/libxdp.h>

#ifndef XDP_MAX_TX_SKB_BUDGET /* Linux 6.18, include/uapi/linux/if_xdp.h */
#define XDP_MAX_TX_SKB_BUDGET 9
#endif

#define BIND_TRIES 100 /* of 10 ms: the kernel releases a queue some time after its last user exited */

static struct xsk_umem *umem;
__u32 granted_budget;

static int open_umem(void)
{
	struct xsk_umem_config config = {
	    .fill_size = 2 * peer.ring,
	    .comp_size = peer.ring,
	    .frame_size = peer.frame_size,
	};

	/* libxdp takes it that rings start as zeros; after a failed try they would not. */
	memset(&in_port, 0, sizeof(in_port));
	memset(&out_port, 0, sizeof(out_port));
	n_free = peer.frames;
	for (__u32 i = 0; i < peer.frames; i++) /* the lowest address on top */
		stack[i] = (__u64)(peer.frames - 1 - i) * peer.frame_size;
	in_fill = 0;
	return xsk_umem__create(&umem, area, (__u64)peer.frames * peer.frame_size, &in_port.fill,
				&in_port.comp, &config);
}

static int open_port(struct port *port, const char *name, bool rx, bool tx)
{
	struct xsk_socket_config config = {
	    .rx_size = peer.ring,
	    .tx_size = peer.ring,
	    .xdp_flags = peer.xdp_flags,
	    .bind_flags = peer.bind_flags,
	};
	struct xdp_options granted = {};
	socklen_t len = sizeof(granted);
	int err;

	/* A socket that only sends needs no program, but drivers want one before they do zero-copy. */
	if (!rx && !(peer.bind_flags & XDP_ZEROCOPY))
		config.libxdp_flags = XSK_LIBXDP_FLAGS__INHIBIT_PROG_LOAD;
	port->name = name;
	err = xsk_socket__create_shared(&port->xsk, name, opt.queue, umem, rx ? &port->rx : NULL,
					tx ? &port->tx : NULL, &port->fill, &port->comp, &config);
	if (err)
		return err;
	port->fd = xsk_socket__fd(port->xsk);
	if (!getsockopt(port->fd, SOL_XDP, XDP_OPTIONS, &granted, &len))
		port->zero_copy = granted.flags & XDP_OPTIONS_ZEROCOPY;
	/* An older kernel has no such option and carries 32 packets a sendto: slower, not wrong. */
	if (tx && peer.tx_budget &&
	    !setsockopt(port->fd, SOL_XDP, XDP_MAX_TX_SKB_BUDGET, &peer.tx_budget, sizeof(peer.tx_budget)))
		granted_budget = peer.tx_budget;
	return 0;
}

void close_all(void)
{
	xsk_socket__delete(out_port.xsk); /* NULL is allowed; the last socket of a program detaches it */
	xsk_socket__delete(in_port.xsk);
	out_port.xsk = in_port.xsk = NULL;
	xsk_umem__delete(umem);
	umem = NULL;
}

static int try_open(const char **subject)
{
	bool rx = opt.job != TX, both = opt.job == REFLECT;
	int err;

	*subject = "umem";
	err = open_umem();
	if (err)
		return err;
	if (rx)
		refill(); /* before the bind, for zero-copy drivers that look at it only then */
	*subject = opt.in;
	err = open_port(&in_port, opt.in, rx, both || !rx);
	if (!err && opt.job == FORWARD) {
		*subject = opt.out;
		err = open_port(&out_port, opt.out, false, true);
	}
	return err;
}

int open_all(void)
{
	const struct timespec pause = {.tv_nsec = 10 * 1000 * 1000};
	const char *subject = NULL;
	int err = -EINTR;

	if (!opt.verbose) {
		libbpf_set_print(NULL);
		libxdp_set_print(NULL);
	}
	for (int i = 0; i < BIND_TRIES && !stop; i++) {
		err = try_open(&subject);
		if (!err)
			return 0;
		close_all();
		if (err != -EBUSY)
			break;
		nanosleep(&pause, NULL);
	}
	if (!stop)
		complain("%s, queue %u: cannot open: %s", subject, opt.queue, strerror(-err));
	return err;
}

static const char *xdp_mode(const char *name)
{
	LIBBPF_OPTS(bpf_xdp_query_opts, query);

	if (bpf_xdp_query(if_nametoindex(name), 0, &query))
		return "unknown";
	switch (query.attach_mode) {
	case XDP_ATTACHED_DRV:
		return "native";
	case XDP_ATTACHED_SKB:
		return "generic";
	case XDP_ATTACHED_NONE:
		return "none";
	default:
		return "other";
	}
}

struct xdp_statistics statistics(const struct port *port)
{
	struct xdp_statistics stats = {};
	socklen_t len = sizeof(stats);

	getsockopt(port->fd, SOL_XDP, XDP_STATISTICS, &stats, &len);
	return stats;
}

void report_port(const struct port *port)
{
	struct xdp_statistics stats = statistics(port);

	printf("{\"interface\": \"%s\", \"queue\": %u, \"xdp\": \"%s\", \"zero_copy\": %s, "
	       "\"rx_dropped\": %llu, \"rx_invalid_descs\": %llu, \"tx_invalid_descs\": %llu, "
	       "\"rx_ring_full\": %llu, "
	       "\"rx_fill_ring_empty_descs\": %llu, \"tx_ring_empty_descs\": %llu}",
	       port->name, opt.queue, xdp_mode(port->name), port->zero_copy ? "true" : "false",
	       stats.rx_dropped, stats.rx_invalid_descs, stats.tx_invalid_descs, stats.rx_ring_full,
	       stats.rx_fill_ring_empty_descs, stats.tx_ring_empty_descs);
}
