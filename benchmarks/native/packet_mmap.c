/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * packet_mmap: AF_PACKET with memory-mapped rings, the fastest way into Linux without XDP.
 *
 * Packets are received from a TPACKET_V3 ring: the kernel copies them one behind the other into blocks, and
 * hands a block over when it is full or --block-ms old; so a packet may wait that long when traffic is light.
 * Packets are sent from a PACKET_TX_RING of fixed slots, one sendto a batch. What is forwarded is copied
 * once, from block to slot.
 *
 * Invariant: a block with TP_STATUS_USER and a slot with TP_STATUS_AVAILABLE are ours, all others the
 * kernel's. A block goes back only when each of its packets is counted or lies in a slot.
 */
#include "engine.h"
#include "tap.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#define SLOT_BYTES 2048u
#define SLOT_DATA                                                                                            \
	(TPACKET3_HDRLEN - sizeof(struct sockaddr_ll)) /* net/packet/af_packet.c, tpacket_parse_header */
#define SLOTS_A_BLOCK 32u                              /* of the send ring */
#define VLAN_TAG 4

static struct {
	__u32 block_kib, blocks, block_ms, slots;
	bool qdisc, host;
} ring = {.block_kib = 64, .blocks = 64, .block_ms = 1, .slots = 1024};

struct ring_socket {
	const char *name;
	int fd;
	__u8 *map; /* the receive ring, if it has one, and the send ring behind it */
	size_t map_bytes;
	__u8 *slots;
	__u32 head; /* next slot to fill */
	__u32 tail; /* oldest slot whose sending we have not seen the end of */
};

static struct ring_socket in_socket = {.fd = -1}, out_socket = {.fd = -1}, *sender;
static __u32 next_block, empty_rounds;
static __u64 received, received_bytes, sent, too_long, kicks, kick_again, kick_nobufs, polls;

/* ---- sending ---- */

static struct tpacket3_hdr *slot(struct ring_socket *socket, __u32 index)
{
	return (struct tpacket3_hdr *)(socket->slots + (size_t)(index % ring.slots) * SLOT_BYTES);
}

static bool available(struct ring_socket *socket, __u32 index)
{
	return __atomic_load_n(&slot(socket, index)->tp_status, __ATOMIC_ACQUIRE) == TP_STATUS_AVAILABLE;
}

static void kick(struct ring_socket *socket)
{
	kicks++;
	if (sendto(socket->fd, NULL, 0, MSG_DONTWAIT, NULL, 0) >= 0)
		return;
	switch (errno) {
	case EAGAIN:
		kick_again++;
		break;
	case ENOBUFS: /* the device dropped a packet */
		kick_nobufs++;
		break;
	case EINTR:
	case ENETDOWN:
		break;
	default:
		complain("%s: sendto: %s", socket->name, strerror(errno));
		exit_status = 1;
		stop = 1;
	}
}

/* The next free slot; waits for the kernel when the ring is full. NULL: it is time to stop, and was for a
 * while. */
static struct tpacket3_hdr *free_slot(struct ring_socket *socket)
{
	static double deadline; /* one for all packets: each waiting anew would add up */

	while (!available(socket, socket->head)) {
		kick(socket);
		if (!stop)
			continue;
		if (!deadline)
			deadline = now() + DRAIN_SECONDS;
		if (exit_status || now() > deadline)
			return NULL;
	}
	return slot(socket, socket->head);
}

static void send_slot(struct ring_socket *socket, struct tpacket3_hdr *header, __u32 len)
{
	header->tp_len = len;
	header->tp_snaplen = len;
	header->tp_next_offset = 0; /* the kernel wants it so: slots are of one size */
	__atomic_store_n(&header->tp_status, TP_STATUS_SEND_REQUEST, __ATOMIC_RELEASE);
	socket->head++;
	sent++;
}

/* Until all that was sent has left, for a while. */
static void drain(struct ring_socket *socket)
{
	double deadline = now() + DRAIN_SECONDS;

	while (!exit_status && now() < deadline) {
		while (socket->tail != socket->head && available(socket, socket->tail))
			socket->tail++;
		if (socket->tail == socket->head)
			return;
		kick(socket);
	}
}

/* ---- receiving ---- */

static struct tpacket_block_desc *block(__u32 index)
{
	return (struct tpacket_block_desc *)(in_socket.map + (size_t)index * ring.block_kib * 1024);
}

static bool ready(struct tpacket_block_desc *desc)
{
	return __atomic_load_n(&desc->hdr.bh1.block_status, __ATOMIC_ACQUIRE) & TP_STATUS_USER;
}

static void idle(void)
{
	struct pollfd pfd = {.fd = in_socket.fd, .events = POLLIN | POLLERR};

	if (stop) { /* the last packets: the kernel hands their block over when it is old enough */
		poll(&pfd, 1, 4 * ring.block_ms);
	} else if (opt.poll && ++empty_rounds >= opt.spin) {
		polls++;
		poll(&pfd, 1, POLL_MS);
	}
}

/* The kernel takes a VLAN tag out of the packet and tells it beside it: put it back. */
static __u32 copy_tagged(__u8 *to, const __u8 *from, const struct tpacket3_hdr *packet)
{
	__u16 type = packet->tp_status & TP_STATUS_VLAN_TPID_VALID ? packet->hv1.tp_vlan_tpid : ETH_P_8021Q;
	const __u16 tag[] = {htons(type), htons(packet->hv1.tp_vlan_tci)};

	memcpy(to, from, 2 * ETH_ALEN);
	memcpy(to + 2 * ETH_ALEN, tag, VLAN_TAG);
	memcpy(to + 2 * ETH_ALEN + VLAN_TAG, from + 2 * ETH_ALEN, packet->tp_snaplen - 2 * ETH_ALEN);
	return packet->tp_snaplen + VLAN_TAG;
}

static void send_copy(const __u8 *data, const struct tpacket3_hdr *packet)
{
	struct tpacket3_hdr *header;
	__u8 *to;
	__u32 len = packet->tp_snaplen;

	if (packet->tp_snaplen + VLAN_TAG > SLOT_BYTES - SLOT_DATA) {
		too_long++;
		return;
	}
	header = free_slot(sender);
	if (!header)
		return;
	to = (__u8 *)header + SLOT_DATA;
	if (packet->tp_status & TP_STATUS_VLAN_VALID)
		len = copy_tagged(to, data, packet);
	else
		memcpy(to, data, len);
	if (opt.job == REFLECT)
		swap_macs(to);
	send_slot(sender, header, len);
	if (sent % opt.batch == 0)
		kick(sender);
}

static __u32 block_round(void)
{
	struct tpacket_block_desc *desc = block(next_block);
	const struct tpacket3_hdr *packet;
	__u64 bytes = 0;
	__u32 n;

	if (!ready(desc)) {
		idle();
		if (!ready(desc))
			return 0;
	}
	empty_rounds = 0;
	n = desc->hdr.bh1.num_pkts;
	packet = (const struct tpacket3_hdr *)((__u8 *)desc + desc->hdr.bh1.offset_to_first_pkt);
	for (__u32 i = 0; i < n; i++) {
		bytes += packet->tp_snaplen;
		if (opt.job != DROP)
			send_copy((const __u8 *)packet + packet->tp_mac, packet);
		packet = (const struct tpacket3_hdr *)((const __u8 *)packet + packet->tp_next_offset);
	}
	__atomic_store_n(&desc->hdr.bh1.block_status, TP_STATUS_KERNEL, __ATOMIC_RELEASE);
	next_block = (next_block + 1) % ring.blocks;
	received += n;
	received_bytes += bytes;
	if (opt.job != DROP && n)
		kick(sender);
	return n;
}

static __u32 tx_round(void)
{
	for (__u32 i = 0; i < opt.batch; i++) {
		struct tpacket3_hdr *header = free_slot(sender); /* each slot holds the packet already */

		if (!header)
			return 0;
		send_slot(sender, header, opt.size);
	}
	kick(sender);
	return 0;
}

/* ---- opening ---- */

static bool open_socket(struct ring_socket *s, const char *name, bool rx, bool tx)
{
	const int version = TPACKET_V3, yes = 1;
	struct tpacket_req3 receive = {
	    .tp_block_size = ring.block_kib * 1024,
	    .tp_block_nr = ring.blocks,
	    .tp_frame_size = SLOT_BYTES, /* a formality: V3 packs packets tighter */
	    .tp_frame_nr = ring.block_kib * 1024 / SLOT_BYTES * ring.blocks,
	    .tp_retire_blk_tov = ring.block_ms,
	};
	struct tpacket_req3 transmit = {
	    .tp_block_size = SLOTS_A_BLOCK * SLOT_BYTES,
	    .tp_block_nr = ring.slots / SLOTS_A_BLOCK,
	    .tp_frame_size = SLOT_BYTES,
	    .tp_frame_nr = ring.slots,
	};
	struct sockaddr_ll address = {.sll_family = AF_PACKET, .sll_ifindex = if_nametoindex(name)};
	size_t receive_bytes = rx ? (size_t)receive.tp_block_size * receive.tp_block_nr : 0;

	s->name = name;
	s->fd =
	    socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0); /* protocol 0: nothing arrives before the bind */
	if (s->fd < 0 || !address.sll_ifindex) {
		complain("%s: cannot open: %s", name, strerror(errno));
		return false;
	}
	const struct {
		bool wanted;
		int option;
		const void *value;
		socklen_t len;
		const char *what;
	} settings[] = {
	    {true, PACKET_VERSION, &version, sizeof(version), "TPACKET_V3"},
	    /* a malformed packet is skipped, not the end of all sending; only before there are rings */
	    {tx, PACKET_LOSS, &yes, sizeof(yes), "PACKET_LOSS"},
	    /* else reflect would receive what it sends; Linux 4.20 */
	    {rx, PACKET_IGNORE_OUTGOING, &yes, sizeof(yes), "PACKET_IGNORE_OUTGOING"},
	    {rx, PACKET_RX_RING, &receive, sizeof(receive), "receive ring"},
	    {tx, PACKET_TX_RING, &transmit, sizeof(transmit), "send ring"},
	    {tx && !ring.qdisc, PACKET_QDISC_BYPASS, &yes, sizeof(yes), "PACKET_QDISC_BYPASS"},
	};

	for (size_t i = 0; i < sizeof(settings) / sizeof(*settings); i++) {
		if (!settings[i].wanted ||
		    !setsockopt(s->fd, SOL_PACKET, settings[i].option, settings[i].value, settings[i].len))
			continue;
		complain("%s: %s: %s", name, settings[i].what, strerror(errno));
		return false;
	}
	s->map_bytes = receive_bytes + (tx ? (size_t)ring.slots * SLOT_BYTES : 0);
	s->map = mmap(NULL, s->map_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, s->fd, 0);
	if (s->map == MAP_FAILED) {
		complain("%s: cannot map %zu bytes of rings: %s", name, s->map_bytes, strerror(errno));
		return false;
	}
	s->slots = s->map + receive_bytes;
	address.sll_protocol = rx ? htons(ETH_P_ALL) : 0;
	if (bind(s->fd, (struct sockaddr *)&address, sizeof(address))) {
		complain("%s: bind: %s", name, strerror(errno));
		return false;
	}
	return true;
}

static void close_all(void)
{
	if (in_socket.fd >= 0)
		close(in_socket.fd);
	if (out_socket.fd >= 0)
		close(out_socket.fd);
}

static bool open_all(void)
{
	bool rx = opt.job != TX;

	sender = opt.job == FORWARD ? &out_socket : &in_socket;
	if (rx && !ring.host && !tap_link(opt.in))
		return false;
	if (opt.job == FORWARD && !open_socket(&out_socket, opt.out, false, true))
		return false;
	if (!open_socket(&in_socket, opt.in, rx, opt.job == REFLECT || !rx))
		return false;
	if (opt.job != TX)
		return true;
	for (__u32 i = 0; i < ring.slots; i++)
		if (build_packet((__u8 *)slot(sender, i) + SLOT_DATA))
			return false;
	return true;
}

/* ---- the command line and the report ---- */

static const char usage[] =
    "      --block-kib N    size of a block of the receive ring, a power of two (64)\n"
    "      --blocks N       (64)\n"
    "      --block-ms N     a block is handed over when full or this old (1)\n"
    "      --slots N        packets of the send ring, a power of two (1024)\n"
    "      --qdisc          send through the queueing discipline, not past it\n"
    "      --host           leave the link as it is: the host's stack handles each packet, too\n";

enum { BLOCK_KIB = 16, BLOCKS, BLOCK_MS, SLOTS, QDISC, HOST };

static const struct extra extras[] = {
    {"block-kib", BLOCK_KIB, true},
    {"blocks", BLOCKS, true},
    {"block-ms", BLOCK_MS, true},
    {"slots", SLOTS, true},
    {"qdisc", QDISC, false},
    {"host", HOST, false},
    {},
};

static bool set(int letter, const char *value)
{
	switch (letter) {
	case BLOCK_KIB:
		return parse_number(value, &ring.block_kib);
	case BLOCKS:
		return parse_number(value, &ring.blocks);
	case BLOCK_MS:
		return parse_number(value, &ring.block_ms);
	case SLOTS:
		return parse_number(value, &ring.slots);
	case QDISC:
		ring.qdisc = true;
		return true;
	case HOST:
		ring.host = true;
		return true;
	default:
		return false;
	}
}

static const char *objection(void)
{
	if (opt.queue)
		return "AF_PACKET knows no queues";
	if (ring.block_kib < 4 || ring.block_kib > 4096 || ring.block_kib & (ring.block_kib - 1))
		return "--block-kib is a power of two from 4 to 4096";
	if (ring.blocks < 2 || ring.blocks > 4096)
		return "--blocks is from 2 to 4096";
	if (!ring.block_ms || ring.block_ms > 1000)
		return "--block-ms is from 1 to 1000";
	if (ring.slots < SLOTS_A_BLOCK || ring.slots & (ring.slots - 1) || ring.slots > 1 << 16)
		return "--slots is a power of two from 32 to 65536";
	if (opt.size > SLOT_BYTES - SLOT_DATA)
		return "--size is at most 2000";
	return NULL;
}

static const struct engine engine = {"packet_mmap", usage, extras, set, objection};

static void report_more(void)
{
	printf(", \"received_bytes\": %llu, \"too_long\": %llu, \"kicks\": %llu, \"kick_again\": %llu, "
	       "\"kick_nobufs\": %llu, \"polls\": %llu, \"block_kib\": %u, \"blocks\": %u, \"block_ms\": %u, "
	       "\"slots\": %u, \"qdisc_bypass\": %s",
	       received_bytes, too_long, kicks, kick_again, kick_nobufs, polls, ring.block_kib, ring.blocks,
	       ring.block_ms, ring.slots, ring.qdisc ? "false" : "true");
}

static void report_all(void)
{
	struct tpacket_stats_v3 stats = {};
	socklen_t len = sizeof(stats);

	getsockopt(in_socket.fd, SOL_PACKET, PACKET_STATISTICS, &stats, &len);
	/* The kernel tells no reason; without room in the ring is the only one. */
	report(&engine, &(struct counts){received, sent, 0, stats.tp_drops, stats.tp_drops}, report_more);
}

int main(int argc, char **argv)
{
	parse_options(argc, argv, &engine);
	catch_signals();
	if (open_all()) {
		run(opt.job == TX ? tx_round : block_round);
		if (opt.job != DROP)
			drain(sender);
		report_all();
	} else {
		exit_status = 1;
	}
	close_all();
	return exit_status;
}
