/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * peer: a small AF_XDP engine in plain C, against which afxdp_pool is measured.
 *
 * It is what a C programmer would write on libxdp for one job and no more: one thread, one queue, one UMEM,
 * and a stack of free frame addresses with no checks, no owners and no reference counts. So the difference
 * between its figures and the library's is the price of what the library adds. It has the best settings we
 * know of for a socket: the frames used last are used next (they are in cache), one sendto carries a whole
 * batch, and a busy loop unless -p asks for poll.
 *
 * Invariant: every frame is in exactly one place: the stack, the fill ring (in_fill), or a port's TX side
 * (in_tx). Only completions and dropped packets put frames back on the stack.
 */
#include "peer.h"

#include <errno.h>
#include <linux/if_link.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>

struct peer_options peer = {
    .frames = 8192,
    .frame_size = 4096,
    .fill = 4096,
    .ring = XSK_RING_PROD__DEFAULT_NUM_DESCS,
    .tx_budget = 256,
    .bind_flags = XDP_USE_NEED_WAKEUP,
};

struct port in_port, out_port;
char *area;
__u64 *stack;
__u32 n_free, in_fill;

static __u64 received, received_bytes, sent, completed;
static __u64 kicks, kick_busy, kick_again, kick_nobufs, polls;
static __u32 empty_rounds;

/* ---- the data path ---- */

void refill(void)
{
	__u32 n = peer.fill - in_fill, idx;

	if (n > n_free)
		n = n_free;
	if (!n || xsk_ring_prod__reserve(&in_port.fill, n, &idx) != n)
		return;
	for (__u32 i = 0; i < n; i++)
		*xsk_ring_prod__fill_addr(&in_port.fill, idx + i) = stack[--n_free];
	xsk_ring_prod__submit(&in_port.fill, n);
	in_fill += n;
}

static void reap(struct port *port)
{
	__u32 idx, n;

	if (!port->in_tx)
		return;
	n = xsk_ring_cons__peek(&port->comp, peer.ring, &idx);
	if (!n)
		return;
	for (__u32 i = 0; i < n; i++)
		stack[n_free++] = *xsk_ring_cons__comp_addr(&port->comp, idx + i);
	xsk_ring_cons__release(&port->comp, n);
	port->in_tx -= n;
	completed += n;
}

static bool tx_pending(struct port *port)
{
	return xsk_prod_nb_free(&port->tx, peer.ring) < peer.ring;
}

static void kick(struct port *port)
{
	if (!port->in_tx || !xsk_ring_prod__needs_wakeup(&port->tx))
		return;
	/* In copy mode sendto works on the ring and nothing else; in zero-copy drivers complete in it, too.
	 */
	if (!port->zero_copy && !tx_pending(port))
		return;
	kicks++;
	if (sendto(port->fd, NULL, 0, MSG_DONTWAIT, NULL, 0) >= 0)
		return;
	switch (errno) {
	case EAGAIN: /* the budget is used up, or the device is full and has taken nothing */
		kick_again++;
		break;
	case EBUSY: /* the device dropped a packet; its frame completes */
		kick_busy++;
		break;
	case ENOBUFS:
		kick_nobufs++;
		break;
	case EINTR:
	case ENETDOWN:
		break;
	default:
		complain("%s: sendto: %s", port->name, strerror(errno));
		exit_status = 1;
		stop = 1;
	}
}

static void wake_rx(void)
{
	if (xsk_ring_prod__needs_wakeup(&in_port.fill))
		recvfrom(in_port.fd, NULL, 0, MSG_DONTWAIT, NULL, NULL);
}

/* With -p: sleep once the ring was empty `spin` times in a row. */
static void idle(void)
{
	struct pollfd pfd = {.fd = in_port.fd, .events = POLLIN};

	if (!opt.poll || ++empty_rounds < opt.spin || !in_fill || stop)
		return;
	polls++;
	poll(&pfd, 1, POLL_MS);
}

static __u32 drop_round(void)
{
	__u64 bytes = 0;
	__u32 idx, n;

	refill();
	n = xsk_ring_cons__peek(&in_port.rx, opt.batch, &idx);
	if (!n) {
		wake_rx();
		idle();
		return 0;
	}
	empty_rounds = 0;
	for (__u32 i = 0; i < n; i++) {
		const struct xdp_desc *desc = xsk_ring_cons__rx_desc(&in_port.rx, idx + i);

		bytes += desc->len;
		stack[n_free++] = desc->addr;
	}
	xsk_ring_cons__release(&in_port.rx, n);
	received += n;
	received_bytes += bytes;
	in_fill -= n;
	return n;
}

/* Forward and reflect differ in the port that sends, and in that the packet is touched. */
static inline __attribute__((always_inline)) __u32 send_round(struct port *to, bool reflect)
{
	__u32 rx_idx, tx_idx = 0, n, room;
	__u64 bytes = 0;

	reap(to);
	refill();
	/* What cannot be sent stays in the RX ring, so that the kernel counts what is lost. */
	room = xsk_prod_nb_free(&to->tx, opt.batch);
	n = xsk_ring_cons__peek(&in_port.rx, room < opt.batch ? room : opt.batch, &rx_idx);
	if (!n) {
		wake_rx();
		kick(to);
		if (room && !tx_pending(to))
			idle();
		return 0;
	}
	empty_rounds = 0;
	xsk_ring_prod__reserve(&to->tx, n, &tx_idx);
	for (__u32 i = 0; i < n; i++) {
		const struct xdp_desc *rx = xsk_ring_cons__rx_desc(&in_port.rx, rx_idx + i);
		struct xdp_desc *tx = xsk_ring_prod__tx_desc(&to->tx, tx_idx + i);

		if (reflect)
			swap_macs(xsk_umem__get_data(area, rx->addr));
		tx->addr = rx->addr;
		tx->len = rx->len;
		tx->options = 0;
		bytes += rx->len;
	}
	xsk_ring_cons__release(&in_port.rx, n);
	xsk_ring_prod__submit(&to->tx, n);
	received += n;
	received_bytes += bytes;
	sent += n;
	in_fill -= n;
	to->in_tx += n;
	kick(to);
	return n;
}

static __u32 forward_round(void)
{
	return send_round(&out_port, false);
}

static __u32 reflect_round(void)
{
	return send_round(&in_port, true);
}

static __u32 tx_round(void)
{
	struct port *port = &in_port;
	__u32 idx, n;

	reap(port);
	n = n_free < opt.batch ? n_free : opt.batch;
	if (n && xsk_ring_prod__reserve(&port->tx, n, &idx) == n) {
		for (__u32 i = 0; i < n; i++) {
			struct xdp_desc *desc = xsk_ring_prod__tx_desc(&port->tx, idx + i);

			desc->addr = stack[--n_free];
			desc->len = opt.size;
			desc->options = 0;
		}
		xsk_ring_prod__submit(&port->tx, n);
		sent += n;
		port->in_tx += n;
	}
	kick(port);
	return 0;
}

static void drain(struct port *port)
{
	double deadline = now() + DRAIN_SECONDS;

	while (port->in_tx && !exit_status && now() < deadline) {
		kick(port);
		reap(port);
	}
}

static int fill_frames(void)
{
	if (build_packet((__u8 *)area))
		return -1;
	for (__u32 i = 1; i < peer.frames; i++)
		memcpy(area + (size_t)i * peer.frame_size, area, opt.size);
	return 0;
}

/* ---- the command line and the report ---- */

static const char usage[] =
    "  -n, --frames N       frames of the UMEM (8192)\n"
    "  -f, --frame-size N   bytes, 2048 or 4096 (4096)\n"
    "  -F, --fill N         frames kept in the fill ring, at most twice the ring size (4096)\n"
    "  -r, --ring N         descriptors of the RX, TX and completion ring; the fill ring has twice that "
    "(2048)\n"
    "  -B, --tx-budget N    packets a sendto, 0 = leave the kernel's default of 32 (256)\n"
    "  -c, --copy           force copy mode\n"
    "  -z, --zero-copy      force zero-copy mode\n"
    "  -S, --skb            generic XDP instead of native\n";

static const struct extra extras[] = {
    {"frames", 'n', true},     {"frame-size", 'f', true}, {"fill", 'F', true},
    {"ring", 'r', true},       {"tx-budget", 'B', true},  {"copy", 'c', false},
    {"zero-copy", 'z', false}, {"skb", 'S', false},       {},
};

static bool set(int letter, const char *value)
{
	switch (letter) {
	case 'n':
		return parse_number(value, &peer.frames);
	case 'f':
		return parse_number(value, &peer.frame_size);
	case 'F':
		return parse_number(value, &peer.fill);
	case 'r':
		return parse_number(value, &peer.ring);
	case 'B':
		return parse_number(value, &peer.tx_budget);
	case 'c':
		peer.bind_flags |= XDP_COPY;
		return true;
	case 'z':
		peer.bind_flags |= XDP_ZEROCOPY;
		return true;
	case 'S':
		peer.xdp_flags = XDP_FLAGS_SKB_MODE;
		return true;
	default:
		return false;
	}
}

static const char *objection(void)
{
	if (!peer.ring || peer.ring & (peer.ring - 1) || peer.ring > 1 << 20)
		return "--ring is a power of two, at most 1048576";
	if (peer.frame_size != 2048 && peer.frame_size != 4096)
		return "--frame-size is 2048 or 4096";
	if (opt.batch > peer.ring || opt.batch > peer.frames)
		return "--batch is at most the ring size and the number of frames";
	if (peer.frames > 1 << 22)
		return "--frames is at most 4194304";
	if (!peer.fill || peer.fill > 2 * peer.ring)
		return "--fill is from 1 to twice the ring size";
	if (opt.size > peer.frame_size)
		return "--size is at most the frame size";
	if ((peer.bind_flags & XDP_COPY) && (peer.bind_flags & XDP_ZEROCOPY))
		return "-c and -z exclude each other";
	if (peer.tx_budget > peer.ring) /* the kernel refuses more */
		peer.tx_budget = peer.ring;
	return NULL;
}

static const struct engine engine = {"peer", usage, extras, set, objection};

static void report_more(void)
{
	printf(", \"received_bytes\": %llu, \"completed\": %llu, \"kicks\": %llu, \"kick_busy\": %llu, "
	       "\"kick_again\": %llu, \"kick_nobufs\": %llu, \"polls\": %llu, \"frames\": %u, "
	       "\"frame_size\": %u, \"fill\": %u, \"ring\": %u, \"tx_budget\": %u, \"ports\": [",
	       received_bytes, completed, kicks, kick_busy, kick_again, kick_nobufs, polls, peer.frames,
	       peer.frame_size, peer.fill, peer.ring, granted_budget);
	report_port(&in_port);
	if (opt.job == FORWARD) {
		printf(", ");
		report_port(&out_port);
	}
	putchar(']');
}

static void report_all(void)
{
	struct xdp_statistics stats = statistics(&in_port);

	report(&engine,
	       &(struct counts){received, sent, stats.rx_dropped, stats.rx_ring_full,
				stats.rx_dropped + stats.rx_ring_full},
	       report_more);
}

int main(int argc, char **argv)
{
	static __u32 (*const rounds[])(void) = {drop_round, forward_round, reflect_round, tx_round};

	parse_options(argc, argv, &engine);
	catch_signals();
	stack = calloc(peer.frames, sizeof(*stack));
	area = mmap(NULL, (size_t)peer.frames * peer.frame_size, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (!stack || area == MAP_FAILED) {
		complain("no memory for %u frames", peer.frames);
		return 1;
	}
	if (opt.job == TX && fill_frames())
		return 1;
	if (open_all())
		return 1;
	run(rounds[opt.job]);
	drain(opt.job == FORWARD ? &out_port : &in_port);
	report_all();
	close_all();
	return exit_status;
}
