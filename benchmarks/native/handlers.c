/* SPDX-License-Identifier: BSD-3-Clause */
/* The jobs of handler_kinds.py in C, once a packet and once a batch. `user` is a struct job. */
#include <afxdp_pool.h>

#include <string.h>

struct job {
	uint32_t out; /* the verdict of what is sent */
	uint32_t ports; /* of the flow, in network order like the addresses */
	uint32_t src, dst;
};

static inline void swap_macs(uint8_t *packet)
{
	uint8_t mac[6];

	memcpy(mac, packet, 6);
	memcpy(packet, packet + 6, 6);
	memcpy(packet + 6, mac, 6);
}

static inline int is_wanted(const uint8_t *packet, uint32_t length, const struct job *job)
{
	uint32_t ends[3];

	if (length < 38 || packet[12] != 0x08 || packet[13] || packet[14] != 0x45 || packet[23] != 17)
		return 0;
	memcpy(ends, packet + 26, sizeof(ends));
	return ends[0] == job->src && ends[1] == job->dst && ends[2] == job->ports;
}

AFP_PACKET_HANDLER(packet_drop)
{
	(void)packet, (void)length, (void)port, (void)user;
	return AFP_VERDICT_DROP;
}

AFP_PACKET_HANDLER(packet_swap)
{
	const struct job *job = user;

	(void)port;
	if (length >= 14)
		swap_macs(packet);
	return (int)job->out;
}

AFP_PACKET_HANDLER(packet_filter)
{
	const struct job *job = user;

	(void)port;
	return is_wanted(packet, length, job) ? (int)job->out : AFP_VERDICT_DROP;
}

AFP_BATCH_HANDLER(batch_drop)
{
	(void)descs, (void)n, (void)umem, (void)size, (void)verdicts, (void)port, (void)user;
}

AFP_BATCH_HANDLER(batch_swap)
{
	const struct job *job = user;

	(void)size, (void)port;
	for (uint32_t i = 0; i < n; i++)
		if (descs[i].len >= 14)
			swap_macs(umem + descs[i].addr);
	memset(verdicts, (int)job->out, n);
}

AFP_BATCH_HANDLER(batch_filter)
{
	const struct job *job = user;

	(void)size, (void)port;
	for (uint32_t i = 0; i < n; i++)
		if (is_wanted(umem + descs[i].addr, descs[i].len, job))
			verdicts[i] = (uint8_t)job->out;
}
