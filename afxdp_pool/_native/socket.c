/* SPDX-License-Identifier: BSD-3-Clause */
/* A port's socket: made and bound through libxdp, kicked, asked for its statistics, closed. See port.h. */
#include "port.h"
#include "release.h"
#include "requests.h"

#include <errno.h>
#include <net/if.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#ifndef SO_PREFER_BUSY_POLL /* Linux 5.11 */
#define SO_PREFER_BUSY_POLL 69
#define SO_BUSY_POLL_BUDGET 70
#endif

/* How long close() waits for a zero-copy driver. It takes milliseconds; a NIC that resets its link, tens of them. */
#define RELEASED_WITHIN_MS 10000

/* Kicks ----------------------------------------------------------------------------------------------------------------- */

int afp_port_kick(struct afp_port *port)
{
	return port->live ? afp_live_kick(port) : afp_socket_kick(port);
}

int afp_socket_kick(struct afp_port *port)
{
	if (port->fd < 0 || !port->tx.ring || !ring_pending(&port->tx))
		return 0;
	/* Under busy polling the call is what runs the driver, whether it asked to be woken or not. */
	if (!port->busy_poll && !xsk_ring_prod__needs_wakeup(&port->tx))
		return 0;
	bump(&port->stat[P_KICKS], 1);
	if (likely(sendto(port->fd, NULL, 0, MSG_DONTWAIT, NULL, 0) >= 0))
		return 0;
	switch (errno) {
	case EAGAIN: /* budget spent, completion ring full, or the device's queue stopped: what is left stays in the ring */
		bump(&port->stat[P_AGAIN], 1);
		return 0;
	case EBUSY: /* the device dropped a packet (counted there) or zero-copy is busy */
	case ENOBUFS:
	case EINTR:
		bump(&port->stat[P_BUSY], 1);
		return 0;
	default: /* ENETDOWN, ENXIO: the netdev is down or gone */
		bump(&port->stat[P_ERRORS], 1);
		port->error = errno;
		return -errno;
	}
}

void afp_port_wake_rx(struct afp_port *port)
{
	if (port->fd < 0 || !port->rx.ring || !(port->busy_poll || xsk_ring_prod__needs_wakeup(&port->fill)))
		return;
	bump(&port->stat[P_RX_KICKS], 1);
	(void)!recvfrom(port->fd, NULL, 0, MSG_DONTWAIT, NULL, NULL);
}

int afp_port_ask(struct afp_port *port)
{
	if (port->fd < 0 || !port->rx.ring || xsk_cons_nb_avail(&port->rx, 1))
		return 0;
	bump(&port->stat[P_RX_KICKS], 1);
	/* xsk_recvmsg() wakes or polls a driver that wants it. A device that is only down may come up again. */
	return recvfrom(port->fd, NULL, 0, MSG_DONTWAIT, NULL, NULL) < 0 && errno == ENXIO ? ENXIO : 0;
}

/* Life of a port ------------------------------------------------------------------------------------------------------- */

struct afp_port *afp_port_new(struct afp_table *t, struct afp_pool *pool, uint32_t fill_level)
{
	struct afp_port *port = calloc(1, sizeof(*port));

	if (!port)
		return NULL;
	port->table = t;
	port->by_packet = t->block_frames != 0;
	port->max_frames = 1;
	port->pool = pool;
	port->pool_serial = pool ? pool->serial : 0;
	port->fill_level = fill_level;
	port->fd = -1;
	port->waiter = -1;
	pthread_mutex_lock(&t->lock);
	for (uint32_t id = 1; id < AFP_SEVERAL; id++) {
		if (!t->ports[id]) {
			t->ports[id] = port;
			port->id = id;
			break;
		}
	}
	pthread_mutex_unlock(&t->lock);
	if (!port->id) {
		free(port);
		errno = EMFILE;
		return NULL;
	}
	return port;
}

/* The sockets and the mappings of the rings. */
static void let_go(struct afp_port *port)
{
	if (port->xsk)
		xsk_socket__delete(port->xsk);
	else
		afp_lease_close(port); /* one that was made elsewhere, if there is one */
	if (port->umem)
		xsk_umem__delete(port->umem);
	port->xsk = NULL;
	port->umem = NULL;
	port->fd = -1;
}

/* The kernel's side of a port ends here: sockets, rings, and what it had of ours. */
static void close_socket(struct afp_port *port)
{
	let_go(port);
	if (port->waiter >= 0)
		afp_waiter_wait(port->waiter, port->ifindex, port->queue, RELEASED_WITHIN_MS);
	port->waiter = -1;
	for (int i = 0; i < 4; i++) {
		free(port->mock[i].entries);
		port->mock[i].entries = NULL;
	}
	memset(&port->fill, 0, sizeof(port->fill));
	memset(&port->comp, 0, sizeof(port->comp));
	memset(&port->rx, 0, sizeof(port->rx));
	memset(&port->tx, 0, sizeof(port->tx));
	afp_port_reclaim(port);
}

/* Let the socket's calls run the driver's NAPI (Documentation/networking/af_xdp.rst, napi.rst). 0 or a negative errno.
 * The calls here never wait, so `us` above 0 only turns it on: each polls once, up to `budget` packets. */
static int set_busy_poll(int fd, int us, int budget)
{
	const struct { int name, value; } options[] = {
		{SO_PREFER_BUSY_POLL, 1}, {SO_BUSY_POLL, us}, {SO_BUSY_POLL_BUDGET, budget},
	};

	for (size_t i = 0; i < sizeof(options) / sizeof(options[0]); i++)
		if (setsockopt(fd, SOL_SOCKET, options[i].name, &options[i].value, sizeof(int)))
			return -errno;
	return 0;
}

int afp_socket_tune(int fd, const struct afp_port_config *c, int *stage)
{
	if (c->tx_budget) {
		/* Not on older kernels; then a kick handles 32 descriptors, as it always did. */
		uint32_t budget = c->tx_budget < c->tx_size ? c->tx_budget : c->tx_size;
		(void)!setsockopt(fd, SOL_XDP, XDP_MAX_TX_SKB_BUDGET, &budget, sizeof(budget));
	}
	if (!c->busy_poll_us)
		return 0;
	*stage = AFP_STAGE_BUSY_POLL;
	return set_busy_poll(fd, c->busy_poll_us, c->busy_poll_budget);
}

struct xsk_socket_config afp_socket_config(const struct afp_port_config *c)
{
	return (struct xsk_socket_config){
		.rx_size = c->rx_size,
		.tx_size = c->tx_size,
		.libxdp_flags = XSK_LIBXDP_FLAGS__INHIBIT_PROG_LOAD,
		.bind_flags = (uint16_t)c->bind_flags,
	};
}

int afp_port_open(struct afp_port *port, const struct afp_port_config *c, int *stage)
{
	struct afp_table *t = port->table;
	struct xsk_umem_config umem = {
		.fill_size = c->fill_size,
		.comp_size = c->comp_size,
		.frame_size = t->frame_size,
		.frame_headroom = t->headroom,
		.flags = t->block_frames ? XDP_UMEM_UNALIGNED_CHUNK_FLAG : 0,
	};
	struct xsk_socket_config sock = afp_socket_config(c);
	int err;

	/* Every port registers the same memory for itself: its own mode, and closing in any order. */
	*stage = AFP_STAGE_UMEM;
	if (c->umem_flags) {
		int fd = afp_socket_register(t->area, t->size, t->frame_size, t->headroom, umem.flags, c);

		err = fd < 0 ? fd : afp_port_map(port, fd, c);
	} else {
		err = xsk_umem__create(&port->umem, t->area, t->size, &port->fill, &port->comp, &umem);
	}
	if (err) {
		close_socket(port);
		return err;
	}
	/* FILL is stocked before the bind: a zero-copy driver takes its first frames while it binds. */
	*stage = AFP_STAGE_TABLE;
	err = afp_port_fill(port, port->fill_level);
	if (err < 0) {
		close_socket(port);
		return err;
	}
	*stage = AFP_STAGE_BIND;
	if (c->umem_flags)
		err = afp_socket_bind(port->fd, c);
	else
		err = xsk_socket__create(&port->xsk, c->netdev, c->queue, port->umem, c->rx_size ? &port->rx : NULL,
					 c->tx_size ? &port->tx : NULL, &sock);
	if (err) {
		if (!c->umem_flags)
			port->xsk = NULL; /* libxdp freed what it had made */
		close_socket(port);
		return err;
	}
	if (port->xsk)
		port->fd = xsk_socket__fd(port->xsk);
	if (afp_port_zero_copy(port) == 1) {
		port->ifindex = if_nametoindex(c->netdev);
		port->queue = c->queue;
		err = afp_waiter_open();
		port->waiter = err < 0 ? -1 : err;
	}
	if (err >= 0)
		err = afp_socket_tune(port->fd, c, stage);
	if (err) {
		close_socket(port);
		return err;
	}
	port->busy_poll = c->busy_poll_us > 0;
	*stage = AFP_STAGE_NONE;
	return 0;
}

int afp_mock_ring(struct afp_port *port, int which, uint32_t size)
{
	const size_t width = which < 2 ? sizeof(uint64_t) : sizeof(struct xdp_desc);
	/* The four ring structs of libxdp are one layout under two names. */
	void *rings[4] = {&port->fill, &port->comp, &port->rx, &port->tx};
	struct afp_mock_ring *m = &port->mock[which];
	struct xsk_ring_prod view = {.mask = size - 1, .size = size};

	m->entries = calloc(size ? size : 1, width);
	if (!m->entries)
		return -ENOMEM;
	m->producer = m->consumer = m->flags = 0;
	m->size = size;
	view.producer = &m->producer;
	view.consumer = &m->consumer;
	view.flags = &m->flags;
	view.ring = size ? m->entries : NULL;
	if (which == 0 || which == 3)
		view.cached_cons = size; /* producer rings keep it one size ahead */
	memcpy(rings[which], &view, sizeof(view));
	return 0;
}

int afp_port_mock(struct afp_port *port, uint32_t fill_size, uint32_t comp_size, uint32_t rx_size, uint32_t tx_size)
{
	const uint32_t sizes[4] = {fill_size, comp_size, rx_size, tx_size};

	for (int i = 0; i < 4; i++)
		if (afp_mock_ring(port, i, sizes[i]))
			return -ENOMEM;
	return 0;
}

void afp_port_close(struct afp_port *port)
{
	if (!port->fill.ring && !port->comp.ring)
		return;
	/* Completions that are there already are worth more than a reclaim: they are counted as sent. */
	while (afp_port_complete(port, AFP_REFILL))
		;
	if (port->live)
		afp_live_forget(port->live);
	close_socket(port);
}

void afp_port_end(struct afp_port *port)
{
	struct afp_table *t = port->table;

	if (!port->id)
		return;
	afp_port_close(port);
	pthread_mutex_lock(&t->lock);
	t->ports[port->id] = NULL;
	pthread_mutex_unlock(&t->lock);
	free(port->sent_clones);
	free(port->sent_parts);
	port->sent_clones = port->sent_parts = NULL;
	afp_port_forget_requests(port);
	port->pool = NULL; /* they may be gone before the struct is */
	port->live = NULL;
	port->id = 0;
}

void afp_port_free(struct afp_port *port)
{
	afp_port_end(port);
	free(port);
}

void afp_port_abandon(struct afp_port *port)
{
	if (port->waiter >= 0)
		close(port->waiter);
	port->waiter = -1;
	let_go(port);
}

void afp_port_forget(struct afp_port *port)
{
	if (!port->id)
		free(port);
}

void afp_port_read_stats(const struct afp_port *port, struct afp_port_stats *out)
{
	uint64_t *field = &out->fill_submitted;

	for (int i = 0; i < AFP_PORT_STATS; i++)
		field[i] = port_count(port, (enum afp_port_stat)i);
	if (!port->by_packet)
		return;
	out->rx_packets = port_count(port, P_RX_PACKETS);
	out->tx_packets = port_count(port, P_TX_PACKETS);
	out->tx_completed = port_count(port, P_COMPLETED_PACKETS);
}

static uint32_t ring_level(const void *ring)
{
	const struct xsk_ring_prod *r = ring; /* the structs of both directions are one layout */

	return r->ring ? __atomic_load_n(r->producer, __ATOMIC_RELAXED) - __atomic_load_n(r->consumer, __ATOMIC_RELAXED) : 0;
}

void afp_port_ring_levels(struct afp_port *port, uint32_t *out)
{
	out[0] = ring_level(&port->fill);
	out[1] = ring_level(&port->comp);
	out[2] = ring_level(&port->rx);
	out[3] = ring_level(&port->tx) + (port->live ? live_staged(port->live) : 0);
}

int afp_port_zero_copy(const struct afp_port *port)
{
	struct xdp_options options = {0};
	socklen_t size = sizeof(options);

	if (port->fd < 0)
		return -EBADF;
	if (getsockopt(port->fd, SOL_XDP, XDP_OPTIONS, &options, &size))
		return -errno;
	return !!(options.flags & XDP_OPTIONS_ZEROCOPY);
}

int afp_port_kernel_stats(const struct afp_port *port, uint64_t *out)
{
	struct xdp_statistics stats = {0};
	socklen_t size = sizeof(stats);

	if (port->fd < 0)
		return -EBADF;
	if (getsockopt(port->fd, SOL_XDP, XDP_STATISTICS, &stats, &size))
		return -errno;
	memcpy(out, &stats, sizeof(stats)); /* six 64-bit counters, those of an older kernel zero */
	return 0;
}
