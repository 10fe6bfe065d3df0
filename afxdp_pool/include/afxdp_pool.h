/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Handlers in C for afxdp_pool: functions in a shared library, which the engine's loop calls itself.
 *
 *     #include <afxdp_pool.h>
 *
 *     AFP_PACKET_HANDLER(handle)
 *     {
 *             return length >= 24 && packet[23] == 17 ? AFP_VERDICT_TX : AFP_VERDICT_DROP;
 *     }
 *
 *     cc -O2 -shared -fPIC -I"$(python -c 'import afxdp_pool; print(afxdp_pool.include_dir())')" -o filter.so filter.c
 *
 * Python takes it by  afxdp_pool.from_library("filter.so", "handle"),  the shell by  afxdp-pool handle -i eth1 filter.so:handle.
 *
 * A handler runs in the worker's thread, without Python's lock. With several workers it runs in several threads at once, on one
 * `user`. What it does to memory outside of its packets nobody checks.
 */
#ifndef AFXDP_POOL_H
#define AFXDP_POOL_H

#include <stdint.h>

/* Of what this file declares; a library made for another one is refused. */
#define AFXDP_POOL_ABI 1

#ifdef __cplusplus
#define AFP_C extern "C"
#else
#define AFP_C extern
#endif

/* What becomes of a packet. FORWARD: out of the forwarder's port of that number, 0 to 63. */
#define AFP_VERDICT_DROP 0
#define AFP_VERDICT_TX 1 /* out of the port it came from */
#define AFP_VERDICT_KEEP 2 /* the application holds the frame from now on */
#define AFP_VERDICT_FORWARD(port) (0x80 | (port))

/*
 * One packet in a frame: `len` bytes at `addr`, which counts from the start of the Umem. A handler may change both within the
 * frame. `options` are the kernel's, set by afp_tx_request() alone; `gen` is the frame's generation: leave it as it is.
 */
struct afp_desc {
	uint64_t addr;
	uint32_t len;
	uint16_t options;
	uint16_t gen;
};

/*
 * What is known of a packet beside its bytes, on ports that were opened with rx_metadata. `present` says what of it: the rest is 0.
 */
#define AFP_RX_HASH 1
#define AFP_RX_TIMESTAMP 2
#define AFP_RX_VLAN 4
#define AFP_RX_ARRIVAL 8

struct afp_rx_metadata {
	uint64_t timestamp; /* by the device's clock, ns */
	uint64_t arrival; /* CLOCK_TAI, ns: when the XDP program saw it */
	uint32_t hash; /* the device's */
	uint16_t hash_type; /* enum xdp_rss_hash_type of the kernel */
	uint16_t vlan_tci; /* of a tag that the device took off */
	uint16_t vlan_proto; /* 0x8100 or 0x88a8, in the machine's byte order */
	uint16_t present;
	uint32_t magic;
};

/*
 * That of a packet as a handler gets it: it lies right before the packet, and is lost with whatever is written there. To be
 * asked only of packets of a port with rx_metadata: of others it is any bytes.
 */
static inline struct afp_rx_metadata afp_rx_metadata(const uint8_t *packet)
{
	struct afp_rx_metadata found;

	__builtin_memcpy(&found, packet - sizeof(found), sizeof(found));
	return found;
}

/*
 * All frames of a packet that may lie in several, on ports that were opened with multi_buffer. What a handler gets is the first of
 * them: `packet` and its `length`, or a descriptor, in whose options AFP_GOES_ON says that there are more.
 */
#define AFP_GOES_ON 1
#define AFP_PARTS_ROOM 48 /* bytes before the packet where this lies, in front of what is known of it */

struct afp_parts {
	const struct afp_desc *frames; /* [count] as they were received, the first among them; good for the call */
	uint32_t count;
	uint32_t length; /* of the whole packet */
};

/* Those of a packet as a handler gets it. To be asked only of packets of a port with multi_buffer: of others it is any bytes. */
static inline struct afp_parts afp_parts(const uint8_t *packet)
{
	struct afp_parts found;

	__builtin_memcpy(&found, packet - AFP_PARTS_ROOM, sizeof(found));
	return found;
}

/* Where frame `i` of these begins, 0 <= i < count; the packet is as above. It has frames[i].len bytes, which may be written to. */
static inline uint8_t *afp_part(uint8_t *packet, struct afp_parts parts, uint32_t i)
{
	return packet + (int64_t)(parts.frames[i].addr - parts.frames[0].addr);
}

/*
 * What the device is asked to do for a packet, on ports that were opened with tx_metadata: as the kernel has it (struct
 * xsk_tx_metadata in linux/if_xdp.h). The checksum's field has to hold the sum of the pseudo-header then, not inverted.
 */
#define AFP_TX_TIMESTAMP 1
#define AFP_TX_CHECKSUM 2
#define AFP_TX_LAUNCH_TIME 4
#define AFP_TX_OPTION 2 /* in a descriptor's options: there is a request */
#define AFP_TX_ROOM 32 /* bytes before the packet that must be free, in its frame */

struct afp_tx_metadata {
	uint64_t flags;
	union {
		struct {
			uint16_t checksum_start, checksum_offset; /* bytes into the packet; into what is summed */
		};
		uint64_t timestamp; /* the answer */
	};
	uint64_t launch_time; /* by the device's clock, ns */
};

/* Ask for that, in place of what was asked before. `number` comes back with the timestamp. */
static inline void afp_tx_request(struct afp_desc *desc, uint8_t *umem, struct afp_tx_metadata request, uint64_t number)
{
	uint8_t *at = umem + desc->addr - AFP_TX_ROOM;

	__builtin_memcpy(at, &request, sizeof(request));
	__builtin_memcpy(at + sizeof(request), &number, sizeof(number));
	desc->options |= AFP_TX_OPTION;
}

/*
 * Called once a batch: n packets in `descs`, which lie in `size` bytes at `umem`; a verdict for each into `verdicts`, all DROP
 * before the call; `port`, the number of the port they came from; `user`, what Python gave, or NULL.
 */
typedef void (*afp_handler)(struct afp_desc *descs, uint32_t n, uint8_t *umem, uint64_t size, uint8_t *verdicts, uint32_t port,
			    void *user);

/* Called once a packet, of `length` bytes: its verdict. */
typedef int (*afp_packet_handler)(uint8_t *packet, uint32_t length, uint32_t port, void *user);

/* In front of a function's body: they declare it, and tell Python which of the two it is. */
#define AFP_BATCH_HANDLER(name) \
	AFP_HANDLER_KIND(name, 'b') \
	AFP_C __attribute__((visibility("default"))) void name(struct afp_desc *, uint32_t, uint8_t *, uint64_t, uint8_t *, uint32_t, void *); \
	void name(struct afp_desc *descs, uint32_t n, uint8_t *umem, uint64_t size, uint8_t *verdicts, uint32_t port, void *user)
#define AFP_PACKET_HANDLER(name) \
	AFP_HANDLER_KIND(name, 'p') \
	AFP_C __attribute__((visibility("default"))) int name(uint8_t *, uint32_t, uint32_t, void *); \
	int name(uint8_t *packet, uint32_t length, uint32_t port, void *user)

#define AFP_HANDLER_KIND(name, kind) \
	AFP_C __attribute__((visibility("default"))) const uint32_t name##_afxdp_pool; \
	const uint32_t name##_afxdp_pool = AFXDP_POOL_ABI << 8 | (kind);

#endif
