/* SPDX-License-Identifier: BSD-3-Clause */
/* Packets of several frames between a port's rings and its caller: see multi.h. */
#include "multi.h"

#include "metadata.h"
#include "requests.h"

#include <stdlib.h>

/* A frame comes back from FILL: the caller's from here. False: the descriptor is none of ours. */
static bool take_in(struct afp_port *port, const struct xdp_desc *desc, struct afp_desc *out)
{
	struct afp_table *t = port->table;
	const uint64_t filled = word_make(0, port->id, AFP_FILL, 0, 0, 0), ours = word_make(0, 0, AFP_APP, 0, 0, 1);
	uint64_t addr = desc->addr, w;
	uint32_t frame;

	/* The kernel leaves the frame's own address as it was, and says in the highest bits how far behind it the packet begins. */
	if (t->block_frames)
		addr = (addr & XSK_UNALIGNED_BUF_ADDR_MASK) + (addr >> XSK_UNALIGNED_BUF_OFFSET_SHIFT);
	frame = frame_of(t, addr);
	if (unlikely(frame == AFP_NO_FRAME))
		return false;
	w = word_load(t, frame);
	if (unlikely((w & (AFP_STATE_MASK | AFP_HOLDER_MASK)) != filled || desc->len > t->frame_size - frame_offset(t, addr)))
		return false;
	word_store(t, frame, w - filled + ours);
	*out = (struct afp_desc){addr, desc->len, (uint16_t)desc->options, word_gen(w)};
	return true;
}

static void give_back(struct afp_port *port, const struct afp_desc *descs, uint32_t n)
{
	struct afp_refusals none = {0};

	if (n)
		afp_put(port->table, descs, n, &none);
	bump(&port->stat[P_RX], n);
	bump(&port->stat[P_RX_PARTS], n);
}

/* Frames of a packet that is not received, out of RX: those that are ours go home. */
static void refuse(struct afp_port *port, uint32_t index, uint32_t n)
{
	uint32_t bad = 0;

	for (uint32_t i = 0; i < n; i++) {
		struct xdp_desc desc = *xsk_ring_cons__rx_desc(&port->rx, index + i);
		struct afp_desc frame;

		if (take_in(port, &desc, &frame))
			give_back(port, &frame, 1);
		else
			bad++;
	}
	/* A packet is refused at least once, also when each of its frames is as it should be. */
	bump(&port->stat[P_RX_BAD], bad ? bad : 1);
}

/* Frames of the packet at `index`, of `n` there are; 0: its end is not among them. */
static uint32_t frames_at(struct afp_port *port, uint32_t index, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		if (!port->multi_buffer || !(xsk_ring_cons__rx_desc(&port->rx, index + i)->options & AFP_CONTD))
			return i + 1;
	return 0;
}

/* The packet of `n` frames at `index`, into `out`: all of it, or none. */
static bool receive_one(struct afp_port *port, uint32_t index, uint32_t n, struct afp_desc *out, uint64_t *bytes)
{
	uint32_t good = 0, bad = 0;
	uint64_t len = 0;

	for (uint32_t i = 0; i < n; i++) {
		struct xdp_desc desc = *xsk_ring_cons__rx_desc(&port->rx, index + i);

		desc.options = i + 1 < n ? AFP_CONTD : 0;
		if (likely(take_in(port, &desc, &out[good])))
			len += out[good++].len;
		else
			bad++;
	}
	if (unlikely(bad)) {
		give_back(port, out, good);
		bump(&port->stat[P_RX_BAD], bad);
		return false;
	}
	bump(&port->stat[P_RX], n);
	bump(&port->stat[P_RX_PARTS], n - 1);
	bump(&port->stat[P_RX_PACKETS], 1);
	*bytes += len;
	return true;
}

uint32_t afp_receive_packets(struct afp_port *port, struct afp_desc *out, uint32_t room, uint32_t packets)
{
	struct xsk_ring_cons *rx = &port->rx;
	uint32_t there, at = 0, got = 0;
	uint64_t bytes = 0;

	port->rx_next = 0;
	if (unlikely(!rx->ring))
		return 0;
	/* All there are, and not only those libxdp has seen: among them a packet may have no end. */
	rx->cached_prod = __atomic_load_n(rx->producer, __ATOMIC_ACQUIRE);
	there = rx->cached_prod - rx->cached_cons;
	there = there < rx->size ? there : rx->size;
	while (packets && at < there) {
		const uint32_t index = rx->cached_cons + at, left = there - at;
		const uint32_t most = left < AFP_PACKET_FRAMES ? left : AFP_PACKET_FRAMES;
		uint32_t frames = frames_at(port, index, most);

		if (unlikely(port->rx_refusing || (!frames && (most == AFP_PACKET_FRAMES || most == rx->size)))) {
			port->rx_refusing = !frames;
			refuse(port, index, frames ? frames : most);
			at += frames ? frames : most;
			continue;
		}
		if (!frames)
			break; /* the rest of it is still to come */
		if (frames > room - got) {
			port->rx_next = got ? 0 : frames;
			break;
		}
		at += frames;
		if (unlikely(!receive_one(port, index, frames, out + got, &bytes)))
			continue;
		got += frames;
		packets--;
	}
	xsk_ring_cons__release(rx, at);
	rx->cached_cons += at;
	bump(&port->stat[P_RX_BYTES], bytes);
	if (unlikely(port->wants_metadata))
		afp_port_learn(port, out, got);
	if (unlikely(port_tapped(port)))
		afp_port_tap(port, out, got, AFP_IN);
	return got;
}

/* What is wrong with a packet of `n` frames, and with which of them, before any of it is lent. What it asks for, if it does. */
static enum afp_reason judge(const struct afp_port *port, const struct afp_desc *descs, uint32_t n, uint32_t *which,
			     struct afp_tx_metadata *request)
{
	const struct afp_table *t = port->table;
	/* The kernel wants room for a request before every frame; it reads that of the first alone. */
	const uint64_t before = port->sends_requests ? AFP_TX_ROOM : 0;
	uint16_t options = port->sends_requests ? AFP_CONTD | AFP_TX_OPTION : AFP_CONTD;

	*which = 0;
	if (unlikely(descs[n - 1].options & AFP_CONTD))
		return AFP_UNFINISHED;
	if (unlikely(n > port->max_frames || n > port->tx.size || n > port->comp.size))
		return AFP_TOO_MANY_FRAMES;
	for (uint32_t i = 0; i < n; i++) {
		const struct afp_desc *d = &descs[i];
		uint64_t offset;

		*which = i;
		if (unlikely(frame_of(t, d->addr) == AFP_NO_FRAME))
			return AFP_FOREIGN;
		offset = frame_offset(t, d->addr);
		if (unlikely(!d->len || d->options & ~options || d->len > t->frame_size - offset || offset < before))
			return AFP_INVALID;
		options = AFP_CONTD;
	}
	*which = 0;
	return likely(!before) || afp_request_read(t, descs, request) ? AFP_OK : AFP_INVALID;
}

/* One reference to each frame of a packet goes to TX, or none; then `which` is the frame that was refused. */
static enum afp_reason lend(struct afp_port *port, const struct afp_desc *descs, uint32_t n, uint32_t *which)
{
	if (unlikely(n > 1 && !port->sent_parts)) {
		port->sent_parts = calloc(port->table->nframes, 1);
		if (!port->sent_parts)
			return AFP_NO_MEMORY;
	}
	for (uint32_t i = 0; i < n; i++) {
		enum afp_reason reason = afp_port_lend(port, &descs[i]);

		if (likely(reason == AFP_OK))
			continue;
		*which = i;
		while (i--)
			afp_port_unlend(port, &descs[i]);
		return reason;
	}
	/* It does not overflow: of a frame with several references as many are counted as clones, and no more go. */
	for (uint32_t i = 1; i < n; i++)
		port->sent_parts[frame_of(port->table, descs[i].addr)]++;
	return AFP_OK;
}

void afp_count_completed(struct afp_port *port, uint32_t index, uint32_t n, uint32_t home)
{
	uint32_t parts = 0;

	for (uint32_t i = 0; port->sent_parts && i < n; i++) {
		/* As it comes home: bit 0 may be missing. */
		uint32_t frame = frame_of(port->table, *xsk_ring_cons__comp_addr(&port->comp, index + i) | 1);

		if (frame == AFP_NO_FRAME || !port->sent_parts[frame])
			continue;
		port->sent_parts[frame]--;
		parts++;
	}
	bump(&port->stat[P_COMPLETED_PARTS], parts);
	bump(&port->stat[P_COMPLETED_PACKETS], home - parts);
}

uint32_t afp_transmit_packets(struct afp_port *port, const struct afp_desc *descs, uint32_t n, struct afp_refusals *refused)
{
	uint32_t room, done = 0, packets = 0;
	uint64_t bytes = 0;

	if (unlikely(!port->tx.ring))
		return 0;
	room = port_tx_room(port, n);
	while (done < n) {
		const struct afp_desc *packet = &descs[done];
		uint32_t frames = packet_frames(packet, n - done), which;
		struct afp_tx_metadata request = {0};
		enum afp_reason reason = judge(port, packet, frames, &which, &request);

		if (likely(reason == AFP_OK) && frames > room - done)
			break;
		if (likely(reason == AFP_OK))
			reason = lend(port, packet, frames, &which);
		if (unlikely(reason != AFP_OK)) {
			afp_refuse(port->table, refused, done + which, packet[which].addr, reason);
			break;
		}
		for (uint32_t i = 0; i < frames; i++) {
			*xsk_ring_prod__tx_desc(&port->tx, port->tx.cached_prod + done + i) =
				(struct xdp_desc){packet[i].addr, packet[i].len,
						  (i + 1 < frames ? AFP_CONTD : 0) | (packet[i].options & AFP_TX_OPTION)};
			bytes += packet[i].len;
		}
		if (unlikely(port->sends_requests))
			afp_request_noted(port, packet, &request);
		done += frames;
		packets++;
	}
	bump(&port->stat[P_TX_PARTS], done - packets);
	bump(&port->stat[P_TX_PACKETS], packets);
	return afp_port_submit(port, descs, done, bytes);
}
