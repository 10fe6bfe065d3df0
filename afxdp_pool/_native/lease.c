/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A socket that one process makes and another uses.
 *
 * The broker's half: it has the user's memory mapped, registers it, stocks FILL with the addresses the user chose, binds, and
 * keeps nothing but a descriptor to pass on. The user's half: the rings of a socket that is bound already, mapped by their
 * offsets; libxdp has no call for that, as its own sockets are bound by it.
 */
#include "requests.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

/* The same with room for requests, which takes a socket of one's own. */
static int make_with_requests(void *area, uint64_t size, uint32_t frame_size, uint32_t headroom, const uint64_t *stock, uint32_t n,
			      const struct afp_port_config *c, int *stage)
{
	struct afp_port port = {.fd = -1}; /* whose FILL is mapped for a moment */
	int fd = afp_socket_register(area, size, frame_size, headroom, 0, c), err;
	uint32_t index;

	if (fd < 0)
		return fd;
	err = afp_port_map(&port, fd, c);
	if (!err && xsk_ring_prod__reserve(&port.fill, n, &index) == n) {
		for (uint32_t i = 0; i < n; i++)
			*xsk_ring_prod__fill_addr(&port.fill, index + i) = stock[i];
		xsk_ring_prod__submit(&port.fill, n);
	}
	port.leased = false;
	afp_lease_close(&port);
	if (!err) {
		*stage = AFP_STAGE_BIND;
		err = afp_socket_bind(fd, c);
		err = err ? err : afp_socket_tune(fd, c, stage);
	}
	if (err)
		close(fd);
	return err ? err : fd;
}

int afp_lease_make(void *area, uint64_t size, uint32_t frame_size, uint32_t headroom, const uint64_t *stock, uint32_t n,
		   const struct afp_port_config *c, int *stage)
{
	struct xsk_umem_config umem_config = {
		.fill_size = c->fill_size,
		.comp_size = c->comp_size,
		.frame_size = frame_size,
		.frame_headroom = headroom,
	};
	struct xsk_socket_config config = afp_socket_config(c);
	struct xsk_ring_prod fill = {0}, tx = {0}; /* libxdp leaves the cached producer as it is */
	struct xsk_ring_cons comp = {0}, rx = {0};
	struct xsk_socket *xsk = NULL;
	struct xsk_umem *umem = NULL;
	uint32_t index;
	int err, fd;

	*stage = AFP_STAGE_UMEM;
	if (c->umem_flags)
		return make_with_requests(area, size, frame_size, headroom, stock, n, c, stage);
	err = xsk_umem__create(&umem, area, size, &fill, &comp, &umem_config);
	if (err)
		return err;
	if (xsk_ring_prod__reserve(&fill, n, &index) == n) {
		/* The kernel itself checks every address it takes. */
		for (uint32_t i = 0; i < n; i++)
			*xsk_ring_prod__fill_addr(&fill, index + i) = stock[i];
		xsk_ring_prod__submit(&fill, n);
	}
	*stage = AFP_STAGE_BIND;
	err = xsk_socket__create(&xsk, c->netdev, c->queue, umem, c->rx_size ? &rx : NULL, c->tx_size ? &tx : NULL, &config);
	if (err) {
		xsk_umem__delete(umem);
		return err;
	}
	err = afp_socket_tune(xsk_socket__fd(xsk), c, stage);
	fd = fcntl(xsk_socket__fd(xsk), F_DUPFD_CLOEXEC, 0);
	if (fd < 0)
		err = err ? err : -errno;
	xsk_socket__delete(xsk);
	xsk_umem__delete(umem);
	if (err && fd >= 0)
		close(fd);
	return err ? err : fd;
}

/* Maps one ring of the socket and describes it; the four ring structs of libxdp are one layout under two names. */
static int map_ring(struct afp_port *port, int which, uint64_t at, const struct xdp_ring_offset *off, uint32_t size, size_t width,
		    bool producer)
{
	void *rings[4] = {&port->fill, &port->comp, &port->rx, &port->tx};
	struct afp_mapping *m = &port->mapped[which];
	struct xsk_ring_prod view = {.mask = size - 1, .size = size};

	if (!size)
		return 0;
	m->size = off->desc + size * width;
	m->at = mmap(NULL, m->size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, port->fd, (off_t)at);
	if (m->at == MAP_FAILED) {
		m->at = NULL;
		return -errno;
	}
	view.producer = (uint32_t *)((char *)m->at + off->producer);
	view.consumer = (uint32_t *)((char *)m->at + off->consumer);
	view.flags = (uint32_t *)((char *)m->at + off->flags);
	view.ring = (char *)m->at + off->desc;
	view.cached_prod = *view.producer;
	view.cached_cons = *view.consumer + (producer ? size : 0); /* producer rings keep it one size ahead */
	memcpy(rings[which], &view, sizeof(view));
	return 0;
}

int afp_lease_stock(struct afp_port *port, uint32_t fill_size, uint32_t most)
{
	int err = afp_mock_ring(port, 0, fill_size);

	return err ? err : afp_port_fill(port, port->fill_level < most ? port->fill_level : most);
}

int afp_port_map(struct afp_port *port, int fd, const struct afp_port_config *c)
{
	struct xdp_mmap_offsets off = {0};
	socklen_t length = sizeof(off);
	int err;

	port->fd = fd;
	port->leased = true;
	if (getsockopt(fd, SOL_XDP, XDP_MMAP_OFFSETS, &off, &length))
		return -errno;
	if (length != sizeof(off)) /* before Linux 5.4 */
		return -EOPNOTSUPP;
	err = map_ring(port, 0, XDP_UMEM_PGOFF_FILL_RING, &off.fr, c->fill_size, sizeof(uint64_t), true);
	err = err ? err : map_ring(port, 1, XDP_UMEM_PGOFF_COMPLETION_RING, &off.cr, c->comp_size, sizeof(uint64_t), false);
	err = err ? err : map_ring(port, 2, XDP_PGOFF_RX_RING, &off.rx, c->rx_size, sizeof(struct xdp_desc), false);
	return err ? err : map_ring(port, 3, XDP_PGOFF_TX_RING, &off.tx, c->tx_size, sizeof(struct xdp_desc), true);
}

int afp_lease_take(struct afp_port *port, int fd, const struct afp_port_config *c)
{
	const uint32_t stocked = port->mock[0].producer;
	int err = afp_port_map(port, fd, c);

	if (err)
		return err;
	if (port->fill.cached_prod != stocked) /* whoever made it did not put in what the frame table says is there */
		return -EPROTO;
	free(port->mock[0].entries);
	port->mock[0].entries = NULL;
	port->busy_poll = c->busy_poll_us > 0;
	return 0;
}

void afp_lease_close(struct afp_port *port)
{
	for (int i = 0; i < 4; i++) {
		if (port->mapped[i].at)
			munmap(port->mapped[i].at, port->mapped[i].size);
		port->mapped[i].at = NULL;
	}
	if (port->leased)
		close(port->fd);
	port->leased = false;
}
