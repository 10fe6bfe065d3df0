/* SPDX-License-Identifier: BSD-3-Clause */
/* What devices are asked to do for packets: see requests.h. */
#include "requests.h"
#include "headers.h"

#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* struct xdp_umem_reg as it is since Linux 6.8. */
struct umem_reg {
	uint64_t addr, len;
	uint32_t chunk_size, headroom, flags, tx_metadata_len;
};

/* Where the packet's request is to lie, or NULL: not in a frame the caller holds, no room, or another packet lies there. */
static uint8_t *room_before(const struct afp_table *t, const struct afp_desc *desc)
{
	const uint32_t frame = frame_of(t, desc->addr);
	uint64_t w;

	if (unlikely(frame == AFP_NO_FRAME || desc->addr - frame_addr(t, frame) < AFP_TX_ROOM))
		return NULL;
	w = word_load(t, frame);
	if (unlikely(word_state(w) != AFP_APP || word_gen(w) != desc->gen || w & AFP_FRAGMENTED))
		return NULL;
	return t->area + desc->addr - AFP_TX_ROOM;
}

void afp_tx_ask(const struct afp_table *t, const struct afp_packets *p, enum afp_request what, const uint64_t *values,
		const uint8_t *where, uint8_t *done)
{
	for (uint32_t i = 0; i < p->n; i++) {
		const struct afp_desc *desc = &p->descs[i];
		struct afp_tx_metadata request = {0};
		uint8_t *at = where && !where[i] ? NULL : room_before(t, desc);

		done[i] = 0;
		if (!at)
			continue;
		if (desc->options & AFP_TX_OPTION)
			memcpy(&request, at, sizeof(request));
		if (what == AFP_ASK_CHECKSUM) {
			if (!afp_checksum_begin(p, i, &request.checksum_start, &request.checksum_offset))
				continue;
		} else if (what == AFP_ASK_LAUNCH) {
			request.launch_time = values[i];
		} else {
			memcpy(at + sizeof(request), &values[i], sizeof(values[i]));
		}
		request.flags |= what;
		memcpy(at, &request, sizeof(request));
		done[i] = 1;
	}
}

int afp_port_want_requests(struct afp_port *port, bool stamps)
{
	port->sends_requests = true;
	if (!stamps)
		return 0;
	port->stamps = calloc(1, sizeof(*port->stamps) + port->table->nframes * sizeof(port->stamps->asked[0]));
	return port->stamps ? 0 : -ENOMEM;
}

void afp_port_forget_requests(struct afp_port *port)
{
	free(port->stamps);
	port->stamps = NULL;
}

/* What the kernel does not take stays in its ring, and what is behind it too. */
bool afp_request_read(const struct afp_table *t, const struct afp_desc *desc, struct afp_tx_metadata *request)
{
	if (likely(!(desc->options & AFP_TX_OPTION)))
		return true;
	memcpy(request, t->area + desc->addr - AFP_TX_ROOM, sizeof(*request));
	return !(request->flags & ~(uint64_t)(AFP_TX_TIMESTAMP | AFP_TX_CHECKSUM | AFP_TX_LAUNCH_TIME)) &&
	       (!(request->flags & AFP_TX_CHECKSUM) ||
		request->checksum_start + request->checksum_offset + sizeof(uint16_t) <= desc->len);
}

void afp_request_noted(struct afp_port *port, const struct afp_desc *desc, const struct afp_tx_metadata *request)
{
	if (port->stamps && request->flags & AFP_TX_TIMESTAMP)
		port->stamps->asked[frame_of(port->table, desc->addr)] = (uint16_t)frame_offset(port->table, desc->addr);
}

uint32_t afp_transmit_requests(struct afp_port *port, const struct afp_desc *descs, uint32_t n, struct afp_refusals *refused)
{
	const struct afp_table *t = port->table;
	const uint32_t index = port->tx.cached_prod;
	uint64_t bytes = 0;
	uint32_t done;

	n = port_tx_room(port, n);
	for (done = 0; done < n; done++) {
		const struct afp_desc *desc = &descs[done];
		const uint64_t offset = frame_offset(t, desc->addr);
		struct afp_tx_metadata request = {0};
		enum afp_reason reason = AFP_OK;

		/* Also without a request the kernel wants the room for one: it would skip the descriptor, and not complete it. */
		if (unlikely(!desc->len || desc->addr >= t->size || desc->options & ~AFP_TX_OPTION || offset < AFP_TX_ROOM ||
			     desc->len > t->frame_size - offset || !afp_request_read(t, desc, &request)))
			reason = desc->addr < t->size ? AFP_INVALID : AFP_FOREIGN;
		else
			reason = afp_port_lend(port, desc);
		if (unlikely(reason != AFP_OK)) {
			afp_refuse(port->table, refused, done, desc->addr, reason);
			break;
		}
		afp_request_noted(port, desc, &request);
		*xsk_ring_prod__tx_desc(&port->tx, index + done) = (struct xdp_desc){desc->addr, desc->len, desc->options};
		bytes += desc->len;
	}
	return afp_port_submit(port, descs, done, bytes);
}

void afp_port_keep_stamps(struct afp_port *port, uint32_t index, uint32_t n)
{
	const struct afp_table *t = port->table;
	struct afp_stamps *stamps = port->stamps;
	uint64_t head = stamps->head, tail = __atomic_load_n(&stamps->tail, __ATOMIC_ACQUIRE), lost = 0;

	for (uint32_t i = 0; i < n; i++) {
		/* As it comes home: bit 0 may be missing. So where the answer lies is not what the ring says, but what was noted. */
		const uint32_t frame = frame_of(t, *xsk_ring_cons__comp_addr(&port->comp, index + i) | 1);
		struct afp_tx_metadata answer;
		struct afp_stamp *stamp;
		const uint8_t *at;

		if (frame == AFP_NO_FRAME || !stamps->asked[frame])
			continue;
		at = t->area + frame_addr(t, frame) + stamps->asked[frame] - AFP_TX_ROOM;
		stamps->asked[frame] = 0;
		if (head - tail == AFP_STAMPS) {
			lost++;
			continue;
		}
		stamp = &stamps->ring[head++ & (AFP_STAMPS - 1)];
		memcpy(&answer, at, sizeof(answer));
		memcpy(&stamp->number, at + sizeof(answer), sizeof(stamp->number));
		stamp->timestamp = answer.timestamp;
	}
	__atomic_store_n(&stamps->head, head, __ATOMIC_RELEASE);
	__atomic_store_n(&stamps->lost, stamps->lost + lost, __ATOMIC_RELAXED);
}

uint32_t afp_port_take_stamps(struct afp_port *port, struct afp_stamp *out, uint32_t n, uint64_t *lost)
{
	struct afp_stamps *stamps = port->stamps;
	uint64_t tail, waiting;

	*lost = 0;
	if (!stamps)
		return 0;
	tail = stamps->tail;
	waiting = __atomic_load_n(&stamps->head, __ATOMIC_ACQUIRE) - tail;
	n = waiting < n ? (uint32_t)waiting : n;
	for (uint32_t i = 0; i < n; i++)
		out[i] = stamps->ring[(tail + i) & (AFP_STAMPS - 1)];
	__atomic_store_n(&stamps->tail, tail + n, __ATOMIC_RELEASE);
	*lost = __atomic_load_n(&stamps->lost, __ATOMIC_RELAXED);
	return n;
}

/* Sockets ---------------------------------------------------------------------------------------------------------------- */

static int set_size(int fd, int ring, uint32_t size)
{
	return size && setsockopt(fd, SOL_XDP, ring, &size, sizeof(size)) ? -errno : 0;
}

int afp_socket_register(void *area, uint64_t size, uint32_t frame_size, uint32_t headroom, uint32_t flags,
			const struct afp_port_config *c)
{
	const struct umem_reg reg = {(uintptr_t)area, size, frame_size, headroom, c->umem_flags | flags, AFP_TX_ROOM};
	int fd = socket(AF_XDP, SOCK_RAW | SOCK_CLOEXEC, 0), err;

	if (fd < 0)
		return -errno;
	err = setsockopt(fd, SOL_XDP, XDP_UMEM_REG, &reg, sizeof(reg)) ? -errno : 0;
	err = err ? err : set_size(fd, XDP_UMEM_FILL_RING, c->fill_size);
	err = err ? err : set_size(fd, XDP_UMEM_COMPLETION_RING, c->comp_size);
	err = err ? err : set_size(fd, XDP_RX_RING, c->rx_size);
	err = err ? err : set_size(fd, XDP_TX_RING, c->tx_size);
	if (err)
		close(fd);
	return err ? err : fd;
}

int afp_socket_bind(int fd, const struct afp_port_config *c)
{
	const struct sockaddr_xdp to = {
		.sxdp_family = AF_XDP,
		.sxdp_flags = (uint16_t)c->bind_flags,
		.sxdp_ifindex = if_nametoindex(c->netdev),
		.sxdp_queue_id = c->queue,
	};

	if (!to.sxdp_ifindex)
		return -errno;
	return bind(fd, (const struct sockaddr *)&to, sizeof(to)) ? -errno : 0;
}
