/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What is known of received packets beside their bytes: told by the XDP program in front of each (bpf/rx_metadata.h), kept here by
 * frame until its next packet.
 *
 * A record belongs to one life of a frame: it is found by whoever has that life's descriptor, wherever its `addr` points by now,
 * and by nobody later. In the frame it is worth something only between the program and the port: what has the magic number is
 * taken once, so that neither an earlier packet's record nor bytes of a packet are mistaken for one.
 *
 * Concurrency: written by the port's thread, read by who holds the packet.
 */
#ifndef AFXDP_POOL_METADATA_H
#define AFXDP_POOL_METADATA_H

#include "port.h"

/* Columns of n entries; 0 for what is not known. */
struct afp_rx_columns {
	uint64_t *timestamp, *arrival;
	uint32_t *hash;
	uint16_t *hash_type, *vlan_tci, *vlan_proto;
	uint8_t *has_hash, *has_timestamp, *has_vlan, *has_arrival;
};

/* From now on the port looks for records. 0 or -ENOMEM. */
int afp_port_want_metadata(struct afp_port *port);
/* Packets just received: their records are taken, and made to say "nothing" in the frame where there is none. */
void afp_port_learn(struct afp_port *port, const struct afp_desc *descs, uint32_t n);
/* The record of a packet held, or NULL. */
const struct afp_rx_metadata *afp_rx_known(const struct afp_table *t, const struct afp_desc *desc);
void afp_rx_columns(const struct afp_table *t, const struct afp_desc *descs, uint32_t n, const struct afp_rx_columns *out);

#endif
