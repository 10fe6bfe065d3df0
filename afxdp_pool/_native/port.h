/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A port: one AF_XDP socket on (netdev, queue) and its four rings.
 *
 * A frame handed to FILL or TX belongs to the kernel until RX or COMPLETION returns it. What the kernel has is therefore
 * submitted minus returned, never ring arithmetic: the kernel takes entries out of a ring long before it is done with the
 * frame, and may park a frame inside (net/xdp/xsk_buff_pool.c, xp_free()).
 *
 * Every address that comes back is checked against the frame's word: it must have been given to this port and not have
 * come back yet. Anything else is counted and ignored; it never touches memory outside the Umem.
 *
 * Concurrency: one thread at a time. fill() takes frames from the port's pool, so that thread is the pool's owner.
 */
#ifndef AFXDP_POOL_PORT_H
#define AFXDP_POOL_PORT_H

#include "live.h"
#include "pool.h"
#include "ring.h"
#include "tap.h"

struct afp_port_stats {
	uint64_t fill_submitted; /* frames given to the kernel for receiving */
	uint64_t rx_packets, rx_bytes;
	uint64_t rx_bad;         /* RX descriptors refused: not a frame this port had filled */
	uint64_t tx_packets, tx_bytes;
	uint64_t tx_completed;
	uint64_t completion_bad; /* completions refused: not a frame this port had sent */
	uint64_t tx_kicks;       /* sendto() calls */
	uint64_t tx_again;       /* of them: the kernel said "not all yet" (EAGAIN) */
	uint64_t tx_busy;        /* of them: a packet was dropped by the device (EBUSY, ENOBUFS) */
	uint64_t tx_errors;      /* of them: any other error */
	uint64_t rx_kicks;
	uint64_t fill_reclaimed; /* frames taken back from the kernel when the port closed, filled ... */
	uint64_t tx_reclaimed;   /* ... and sent but not completed */
	uint64_t rx_parts;       /* frames that brought no packet of their own: more of one, or of one that was refused */
	uint64_t tx_parts;       /* frames sent that were more of a packet ... */
	uint64_t tx_completed_parts; /* ... and those completed */
};
#define AFP_PORT_STATS 18

enum afp_port_stat {
	P_FILL, P_RX, P_RX_BYTES, P_RX_BAD, P_TX, P_TX_BYTES, P_COMPLETED, P_COMP_BAD,
	P_KICKS, P_AGAIN, P_BUSY, P_ERRORS, P_RX_KICKS, P_FILL_RECLAIMED, P_TX_RECLAIMED,
	P_RX_PARTS, P_TX_PARTS, P_COMPLETED_PARTS,
	/* Packets, of ports that go by packet: there P_RX, P_TX and P_COMPLETED count frames. */
	P_RX_PACKETS, P_TX_PACKETS, P_COMPLETED_PACKETS,
	AFP_PORT_COUNTERS,
};

struct afp_mapping {
	void *at; /* NULL: none */
	size_t size;
};

struct afp_port {
	struct afp_table *table;
	struct afp_pool *pool; /* frames for FILL; NULL when this port never fills */
	uint32_t pool_serial;  /* of that pool: its struct may serve another, once it is closed */
	uint32_t id;
	uint32_t fill_level; /* frames to keep with the kernel */
	int fd;              /* -1: rings in plain memory */
	int error;           /* errno of the last kick that failed for good */
	bool busy_poll;      /* the socket's calls run the driver's NAPI: they are made in every round */
	bool wants_metadata; /* of the packets it receives: metadata.h */
	bool sends_requests; /* packets may come with requests to the device: requests.h */
	bool multi_buffer;   /* packets of several frames come and go: multi.h */
	bool by_packet;      /* they do, or frames are no power of two: by the functions of multi.h */
	bool rx_refusing;    /* of one without end, the rest is refused too */
	uint32_t max_frames; /* of a packet to be sent */
	uint32_t rx_next;    /* frames of the packet that the last receive had no room for; 0: none waits */
	struct xsk_ring_prod fill, tx;
	struct xsk_ring_cons rx, comp;
	struct afp_live *live; /* NULL: everything goes by the socket */
	struct afp_stamps *stamps; /* NULL: nobody asks for timestamps */
	struct afp_tap *tap, *tapping; /* who copies its packets, NULL: nobody; which of them is at work */
	uint8_t *sent_clones; /* [nframes] transmissions of frames with several references, made when first needed */
	uint8_t *sent_parts; /* [nframes] the same, of frames that are more of a packet */
	_Atomic uint64_t stat[AFP_PORT_COUNTERS];

	struct xsk_umem *umem;
	struct xsk_socket *xsk;
	int waiter;              /* zero-copy: what waits until the driver is done with the frames (release.h); or -1 */
	uint32_t ifindex, queue; /* where it waits */
	struct afp_mock_ring mock[4]; /* fill, comp, rx, tx */
	struct afp_mapping mapped[4]; /* the same, of a socket that another process made */
	bool leased;                  /* the port has such a socket */
};

struct afp_port_config {
	const char *netdev;
	uint32_t queue;
	uint32_t fill_size, comp_size, rx_size, tx_size; /* rx_size or tx_size 0: no such ring */
	uint32_t bind_flags;                             /* XDP_COPY, XDP_ZEROCOPY, XDP_USE_NEED_WAKEUP, XDP_USE_SG */
	uint32_t umem_flags;                             /* of XDP_UMEM_REG, with room for requests (requests.h); 0: no such room */
	uint32_t tx_budget;                              /* descriptors a sendto() may handle in copy mode; 0 = kernel's 32 */
	int busy_poll_us, busy_poll_budget;              /* us 0: no busy polling */
};

/* What afp_port_open() was doing when it failed. */
enum afp_stage { AFP_STAGE_NONE, AFP_STAGE_TABLE, AFP_STAGE_UMEM, AFP_STAGE_BIND, AFP_STAGE_BUSY_POLL };

struct afp_port *afp_port_new(struct afp_table *t, struct afp_pool *pool, uint32_t fill_level);
int afp_port_open(struct afp_port *port, const struct afp_port_config *config, int *stage);
int afp_port_mock(struct afp_port *port, uint32_t fill_size, uint32_t comp_size, uint32_t rx_size, uint32_t tx_size);
/* One of the four: fill, comp, rx, tx. 0, or -ENOMEM. */
int afp_mock_ring(struct afp_port *port, int which, uint32_t size);
/* Closes the socket, then takes back every frame the kernel had. Idempotent; the struct stays until afp_port_free(). */
void afp_port_close(struct afp_port *port);
/* Closes for good: the table forgets the port. Idempotent; its counters can still be read. */
void afp_port_end(struct afp_port *port);
void afp_port_free(struct afp_port *port);
/* In a forked child: its descriptors and mappings go. The rings are its parent's, and stay as they are. Locks are not taken. */
void afp_port_abandon(struct afp_port *port);
/* Nobody looks at the struct any more: it goes, if the port has ended. Its table may be gone. */
void afp_port_forget(struct afp_port *port);
void afp_port_read_stats(const struct afp_port *port, struct afp_port_stats *out);
/* Entries now in FILL, COMPLETION, RX, TX: what waits for the kernel, for us, for us, for the kernel. Any thread. */
void afp_port_ring_levels(struct afp_port *port, uint32_t *out);
/* What was granted: 1 zero-copy, 0 copy (XDP_OPTIONS), or a negative errno. */
int afp_port_zero_copy(const struct afp_port *port);
/* XDP_STATISTICS, its six counters; 0 or a negative errno. */
int afp_port_kernel_stats(const struct afp_port *port, uint64_t *out);

/* All return how many frames moved; a full or empty ring is a smaller number. fill: or AFP_WRONG_THREAD. A port with
 * packets of several frames moves whole ones. */
int afp_port_fill(struct afp_port *port, uint32_t n);
uint32_t afp_port_receive(struct afp_port *port, struct afp_desc *out, uint32_t n);
uint32_t afp_port_transmit(struct afp_port *port, const struct afp_desc *descs, uint32_t n, struct afp_refusals *refused);
/* The same; *done becomes what is returned, as of afp_put_noted(). */
uint32_t afp_port_transmit_noted(struct afp_port *port, const struct afp_desc *descs, uint32_t n, struct afp_refusals *refused,
				 uint32_t *done);
uint32_t afp_port_complete(struct afp_port *port, uint32_t n);
/* Tell the kernel that there is something to send. 0, or a negative errno that will not go away by trying again. */
int afp_port_kick(struct afp_port *port);
/* The same for what is in the TX ring, and in COMPLETION. */
int afp_socket_kick(struct afp_port *port);
uint32_t afp_socket_complete(struct afp_port *port, uint32_t n);
/* Frames this port had sent come home, their addresses first in the entries of a ring; how many did. Fewer: no memory to post. */
uint32_t afp_port_come_home(struct afp_port *port, const struct xdp_desc *ring, uint32_t mask, uint32_t index, uint32_t n);
void afp_port_wake_rx(struct afp_port *port);
/* The same, with nothing to receive and about to sleep: is the device there? poll() does not tell. 0 or ENXIO. */
int afp_port_ask(struct afp_port *port);

/* What a turn of an application's own loop found; see afp_port_recycle(). */
struct afp_turn {
	uint32_t completed; /* frames that came home */
	uint32_t waiting;   /* packets in RX */
	uint32_t in_tx;     /* frames not completed yet: of these no event may tell */
	uint32_t missing;   /* frames FILL should have and could not get: without any, no packet will tell either */
	int error;          /* the device is gone (ENXIO), or refused a kick: errno */
};
/* All that the rings need besides receiving and sending: completions taken, FILL topped up, what is in TX kicked, the driver
 * woken if it asks, or if the port busy-polls. 0, AFP_WRONG_THREAD or AFP_CLOSED: then only FILL was left out. */
int afp_port_recycle(struct afp_port *port, struct afp_turn *out);
/* One reference of the caller's goes to TX, whoever else has some; and comes back, before the kernel has seen it. */
enum afp_reason afp_port_lend(struct afp_port *port, const struct afp_desc *desc);
void afp_port_unlend(struct afp_port *port, const struct afp_desc *desc);
/* The next n entries of the TX ring, filled in for these, are the kernel's. n. */
uint32_t afp_port_submit(struct afp_port *port, const struct afp_desc *descs, uint32_t n, uint64_t bytes);
/* The socket is gone: every frame the kernel had from this port comes home. */
void afp_port_reclaim(struct afp_port *port);

/* What a socket is made and bound with; then its budget and busy polling: 0 or a negative errno. */
struct xsk_socket_config afp_socket_config(const struct afp_port_config *c);
int afp_socket_tune(int fd, const struct afp_port_config *c, int *stage);

/* A socket made by one process, the broker, and used by another. See lease.c. */

/* The broker's side. `area` is mapped here; FILL gets the n addresses of `stock`. The descriptor of a bound socket, which is
 * the caller's, or a negative errno. The memory stays registered as long as the socket lives, mapped here or not. */
int afp_lease_make(void *area, uint64_t size, uint32_t frame_size, uint32_t headroom, const uint64_t *stock, uint32_t n,
		   const struct afp_port_config *config, int *stage);
/* The user's side. First choose what FILL will hold, `most` addresses or the fill level, in mock[0]: how many, or
 * AFP_WRONG_THREAD, or -ENOMEM. */
int afp_lease_stock(struct afp_port *port, uint32_t fill_size, uint32_t most);
/* Then use the socket that was made so: the port owns `fd` whatever comes back, 0 or a negative errno. */
int afp_lease_take(struct afp_port *port, int fd, const struct afp_port_config *config);
/* Use the rings of a socket that libxdp did not make: the port owns `fd` whatever comes back, 0 or a negative errno. */
int afp_port_map(struct afp_port *port, int fd, const struct afp_port_config *config);
void afp_lease_close(struct afp_port *port);

static inline uint64_t port_count(const struct afp_port *port, enum afp_port_stat which)
{
	return atomic_load_explicit(&port->stat[which], memory_order_relaxed);
}
static inline bool port_tapped(const struct afp_port *port)
{
	return __atomic_load_n(&port->tap, __ATOMIC_RELAXED);
}
/* Frames the kernel has from this port. */
static inline uint32_t port_in_fill(const struct afp_port *port)
{
	return (uint32_t)(port_count(port, P_FILL) - port_count(port, P_RX) - port_count(port, P_FILL_RECLAIMED));
}
static inline uint32_t port_in_tx(const struct afp_port *port)
{
	return (uint32_t)(port_count(port, P_TX) - port_count(port, P_COMPLETED) - port_count(port, P_TX_RECLAIMED));
}
static inline uint32_t port_tx_room(struct afp_port *port, uint32_t n)
{
	uint32_t room = port->live ? live_room(port->live) : xsk_prod_nb_free(&port->tx, n);

	return room < n ? room : n;
}
/* Packets that wait for a kick, or for the kernel. */
static inline uint32_t port_pending(const struct afp_port *port)
{
	return ring_pending(&port->tx) + (port->live ? live_staged(port->live) : 0);
}
/* This thread owns the port's pool from here: 0, AFP_WRONG_THREAD, or AFP_CLOSED when another pool has its place. */
static inline int port_bind_pool(struct afp_port *port)
{
	return likely(port->pool->serial == port->pool_serial) ? afp_pool_bind(port->pool) : AFP_CLOSED;
}
/* How many more frames FILL should get: none while it is nearly full, so that it is topped up in bulk. */
static inline uint32_t port_fill_want(const struct afp_port *port)
{
	uint32_t in = port_in_fill(port);

	if (in >= port->fill_level)
		return 0;
	return port->fill_level - in >= AFP_REFILL || in <= port->fill_level / 2 ? port->fill_level - in : 0;
}

#endif
