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
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>

#define DRAIN_SECONDS 0.2
#define POLL_MS 100

struct port in_port, out_port;
char *area;
__u64 *stack;
__u32 n_free, in_fill;
volatile sig_atomic_t stop;

static __u64 received, received_bytes, sent, completed;
static __u64 kicks, kick_busy, kick_again, kick_nobufs, polls;

static int exit_status;

static void on_signal(int signum)
{
	(void)signum;
	stop = 1;
}

static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec + ts.tv_nsec * 1e-9;
}

/* ---- the data path ---- */

void refill(void)
{
	__u32 n = opt.fill - in_fill, idx;

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
	n = xsk_ring_cons__peek(&port->comp, opt.ring, &idx);
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
	return xsk_prod_nb_free(&port->tx, opt.ring) < opt.ring;
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
static void idle(__u32 *rounds)
{
	struct pollfd pfd = {.fd = in_port.fd, .events = POLLIN};

	if (!opt.poll || ++*rounds < opt.spin || !in_fill)
		return;
	polls++;
	poll(&pfd, 1, POLL_MS);
}

static void swap_macs(__u8 *packet)
{
	struct ether_addr *mac = (struct ether_addr *)packet, dst = mac[0];

	mac[0] = mac[1];
	mac[1] = dst;
}

static void drop_loop(double *first, double *last)
{
	__u32 idx, n, rounds = 0;
	bool busy = false;
	__u64 bytes = 0;

	while (!stop) {
		refill();
		n = xsk_ring_cons__peek(&in_port.rx, opt.batch, &idx);
		if (!n) {
			if (busy)
				*last = now();
			busy = false;
			wake_rx();
			idle(&rounds);
			continue;
		}
		if (!received)
			*first = now();
		busy = true;
		rounds = 0;
		for (__u32 i = 0; i < n; i++) {
			const struct xdp_desc *desc = xsk_ring_cons__rx_desc(&in_port.rx, idx + i);

			bytes += desc->len;
			stack[n_free++] = desc->addr;
		}
		xsk_ring_cons__release(&in_port.rx, n);
		received += n;
		in_fill -= n;
	}
	if (busy)
		*last = now();
	received_bytes = bytes;
}

/* Forward and reflect differ in the port that sends, and in that the packet is touched. */
static void forward_loop(struct port *to, bool reflect, double *first, double *last)
{
	__u32 rx_idx, tx_idx = 0, n, room, rounds = 0;
	bool busy = false;
	__u64 bytes = 0;

	while (!stop) {
		reap(to);
		refill();
		/* What cannot be sent stays in the RX ring, so that the kernel counts what is lost. */
		room = xsk_prod_nb_free(&to->tx, opt.batch);
		n = xsk_ring_cons__peek(&in_port.rx, room < opt.batch ? room : opt.batch, &rx_idx);
		if (!n) {
			if (busy)
				*last = now();
			busy = false;
			wake_rx();
			kick(to);
			if (room && !tx_pending(to))
				idle(&rounds);
			continue;
		}
		if (!received)
			*first = now();
		busy = true;
		rounds = 0;
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
		sent += n;
		in_fill -= n;
		to->in_tx += n;
		kick(to);
	}
	if (busy)
		*last = now();
	received_bytes = bytes;
}

static void tx_loop(struct port *port)
{
	__u32 idx, n;

	while (!stop) {
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
	}
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
	for (__u32 i = 1; i < opt.frames; i++)
		memcpy(area + (size_t)i * opt.frame_size, area, opt.size);
	return 0;
}

/* ---- the report ---- */

static double seconds_of(struct timeval after, struct timeval before)
{
	return (after.tv_sec - before.tv_sec) + (after.tv_usec - before.tv_usec) * 1e-6;
}

static void report(double seconds, double active, const struct rusage *before, const struct rusage *after)
{
	__u64 packets = opt.mode == TX ? completed : received;

	printf(
	    "{\"engine\": \"peer\", \"mode\": \"%s\", \"received\": %llu, \"received_bytes\": %llu, "
	    "\"sent\": %llu, \"completed\": %llu, \"seconds\": %.6f, \"pps\": %.1f, "
	    "\"active_seconds\": %.6f, \"active_pps\": %.1f, \"user_seconds\": %.6f, \"sys_seconds\": %.6f, ",
	    mode_names[opt.mode], received, received_bytes, sent, completed, seconds, packets / seconds,
	    active, active > 0 ? packets / active : 0, seconds_of(after->ru_utime, before->ru_utime),
	    seconds_of(after->ru_stime, before->ru_stime));
	printf("\"kicks\": %llu, \"kick_busy\": %llu, \"kick_again\": %llu, \"kick_nobufs\": %llu, "
	       "\"polls\": %llu, \"batch\": %u, \"frames\": %u, \"frame_size\": %u, \"fill\": %u, "
	       "\"ring\": %u, \"tx_budget\": %u, \"ports\": [",
	       kicks, kick_busy, kick_again, kick_nobufs, polls, opt.batch, opt.frames, opt.frame_size,
	       opt.fill, opt.ring, granted_budget);
	report_port(&in_port);
	if (opt.mode == FORWARD) {
		printf(", ");
		report_port(&out_port);
	}
	printf("]}\n");
	fflush(stdout);
}

static void catch_signals(void)
{
	const struct sigaction action = {.sa_handler = on_signal};

	sigaction(SIGINT, &action, NULL);
	sigaction(SIGTERM, &action, NULL);
	sigaction(SIGHUP, &action, NULL);
	sigaction(SIGALRM, &action, NULL);
	signal(SIGPIPE, SIG_IGN); /* a reader that went away must not keep us from detaching */
}

static void set_alarm(double seconds)
{
	struct itimerval timer = {};

	timer.it_value.tv_sec = (time_t)seconds;
	timer.it_value.tv_usec = (suseconds_t)((seconds - (time_t)seconds) * 1e6);
	/* A signal for the end of the run: the loop reads no clock. */
	setitimer(ITIMER_REAL, &timer, NULL);
}

static void run(void)
{
	struct port *sender = opt.mode == FORWARD ? &out_port : &in_port;
	double start, end, first = 0, last = 0;
	struct rusage before, after;

	fputs("ready\n", stderr);
	set_alarm(opt.duration);
	getrusage(RUSAGE_SELF, &before);
	start = now();
	if (opt.mode == DROP)
		drop_loop(&first, &last);
	else if (opt.mode == TX)
		tx_loop(sender);
	else
		forward_loop(sender, opt.mode == REFLECT, &first, &last);
	end = now();
	getrusage(RUSAGE_SELF, &after);
	drain(sender);
	report(end - start, opt.mode == TX ? end - start : last - first, &before, &after);
}

int main(int argc, char **argv)
{
	parse_options(argc, argv);
	catch_signals();
	stack = calloc(opt.frames, sizeof(*stack));
	area = mmap(NULL, (size_t)opt.frames * opt.frame_size, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (!stack || area == MAP_FAILED) {
		complain("no memory for %u frames", opt.frames);
		return 1;
	}
	if (opt.mode == TX && fill_frames())
		return 1;
	if (open_all())
		return 1;
	run();
	close_all();
	return exit_status;
}
