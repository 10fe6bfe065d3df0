/* SPDX-License-Identifier: BSD-3-Clause */
/* What is known of received packets: see metadata.h. */
#include "metadata.h"

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#define AHEAD 8 /* packets whose records are fetched ahead of their turn: another core wrote them */
#define MAGIC 0x316d7278 /* RX_METADATA_MAGIC in bpf/rx_metadata.h */

int afp_port_want_metadata(struct afp_port *port)
{
	struct afp_table *t = port->table;

	pthread_mutex_lock(&t->lock);
	if (!t->known) /* pools on other threads may look whether there is one */
		__atomic_store_n(&t->known, calloc(t->nframes, sizeof(*t->known)), __ATOMIC_RELEASE);
	port->wants_metadata = t->known != NULL;
	pthread_mutex_unlock(&t->lock);
	return port->wants_metadata ? 0 : -ENOMEM;
}

void afp_port_learn(struct afp_port *port, const struct afp_desc *descs, uint32_t n)
{
	static const struct afp_rx_metadata nothing;
	const struct afp_table *t = port->table;

	for (uint32_t i = 0; i < n; i++) {
		const uint64_t addr = descs[i].addr;
		const uint32_t frame = frame_of(t, addr);
		uint8_t *told = t->area + addr - sizeof(nothing);
		struct afp_rx_metadata record;

		if (likely(i + AHEAD < n)) {
			const uint64_t next = descs[i + AHEAD].addr;

			__builtin_prefetch((const void *)((uintptr_t)t->area + next - sizeof(record)), 1);
			__builtin_prefetch(&t->known[frame_of(t, next)], 1);
		}
		if (unlikely(addr - frame_addr(t, frame) < sizeof(record))) {
			t->known[frame].magic = 0;
			continue;
		}
		/* The headroom is the user's choice, so nothing is aligned. */
		memcpy(&record, told, sizeof(record));
		if (likely(record.magic == MAGIC)) {
			record.magic = 0;
			memcpy(told + offsetof(struct afp_rx_metadata, magic), &record.magic, sizeof(record.magic));
		} else {
			record = nothing;
			memcpy(told, &record, sizeof(record));
		}
		record.magic = descs[i].gen;
		t->known[frame] = record;
	}
}

const struct afp_rx_metadata *afp_rx_known(const struct afp_table *t, const struct afp_desc *desc)
{
	const struct afp_rx_metadata *known = __atomic_load_n(&t->known, __ATOMIC_ACQUIRE);
	const uint32_t frame = frame_of(t, desc->addr);

	return known && frame != AFP_NO_FRAME && known[frame].magic == desc->gen ? &known[frame] : NULL;
}

void afp_rx_columns(const struct afp_table *t, const struct afp_desc *descs, uint32_t n, const struct afp_rx_columns *out)
{
	static const struct afp_rx_metadata nothing;

	for (uint32_t i = 0; i < n; i++) {
		const struct afp_rx_metadata *known = afp_rx_known(t, &descs[i]);

		known = known ? known : &nothing;
		out->timestamp[i] = known->timestamp;
		out->arrival[i] = known->arrival;
		out->hash[i] = known->hash;
		out->hash_type[i] = known->hash_type;
		out->vlan_tci[i] = known->vlan_tci;
		out->vlan_proto[i] = known->vlan_proto;
		out->has_hash[i] = !!(known->present & AFP_RX_HASH);
		out->has_timestamp[i] = !!(known->present & AFP_RX_TIMESTAMP);
		out->has_vlan[i] = !!(known->present & AFP_RX_VLAN);
		out->has_arrival[i] = !!(known->present & AFP_RX_ARRIVAL);
	}
}
