/* SPDX-License-Identifier: BSD-3-Clause */
/* What becomes of packets: dropped, sent, kept; and a batch of them sorted by what its handler said. See engine.h. */
#include "engine.h"

#include <string.h>

void afp_engine_drop(struct afp_engine *e, const struct afp_desc *descs, uint32_t n, int counter)
{
	struct afp_refusals refused = {0};

	if (!n)
		return;
	count(e, counter, packets_of(e, descs, n));
	afp_put(e->table, descs, n, &refused);
}

void afp_engine_send(struct afp_engine *e, uint32_t out, const struct afp_desc *descs, const struct afp_desc *origin, uint32_t n,
		     int counter)
{
	struct afp_port *port = e->port[out];

	while (n) {
		struct afp_refusals refused = {0};
		uint32_t same = 0, sent, lost;

		if (likely(e->table->direct))
			while (same < n && frame_direct(e->table, descs[same].addr) == frame_direct(e->table, origin[same].addr))
				same++;
		else
			while (same < n && frame_of(e->table, descs[same].addr) == frame_of(e->table, origin[same].addr))
				same++;
		sent = afp_port_transmit(port, descs, same, &refused);
		count(e, counter, packets_of(e, descs, sent));
		/* What stopped it: a bad descriptor, or no room after all (then nothing more goes). */
		lost = sent == n ? 0 : !refused.n && sent != same ? n - sent : likely(!e->multi) ? 1 : packet_frames(origin + sent, n - sent);
		afp_engine_drop(e, origin + sent, lost, E_REFUSED);
		descs += sent + lost;
		origin += sent + lost;
		n -= sent + lost;
	}
}

/* Packets with one fate: how many of them had none, because the verdict means nothing. */
static uint32_t carry_out(struct afp_engine *e, uint8_t verdict, const struct afp_desc *descs, const struct afp_desc *origin,
			  uint32_t n)
{
	uint32_t out;

	if (verdict == AFP_DROP) {
		afp_engine_drop(e, origin, n, E_DROPPED);
		return 0;
	}
	if (verdict == AFP_KEEP) {
		count(e, E_KEPT, packets_of(e, origin, n));
		return 0;
	}
	out = output_of(e->busy_port, verdict);
	if (verdict < AFP_FORWARD || out >= e->nports || !e->port[out]->tx.ring) {
		afp_engine_drop(e, origin, n, E_REFUSED);
		return packets_of(e, origin, n);
	}
	afp_engine_send(e, out, descs, origin, n, out == e->busy_port ? E_REFLECTED : E_FORWARDED);
	return 0;
}

/* All frames of packet j: as they were received, and with the first as the handler left it. How many. */
static uint32_t gather(const struct afp_engine *e, uint32_t j, struct afp_desc *descs, struct afp_desc *origin)
{
	uint32_t from = e->start[j], n = e->start[j + 1] - from;

	memcpy(origin, e->origin + from, n * sizeof(*origin));
	memcpy(descs, origin, n * sizeof(*descs));
	descs[0] = e->descs[j];
	descs[0].options = (uint16_t)((descs[0].options & ~AFP_CONTD) | (origin[0].options & AFP_CONTD));
	return n;
}

/* Several fates in one batch: those who share one go together, in their order, however they were mixed. A packet at a time
 * would cost as much as five in a bulk. */
static uint32_t sort_out(struct afp_engine *e, const uint8_t *verdicts, uint32_t n)
{
	struct afp_desc descs[AFP_BATCH_MAX], origin[AFP_BATCH_MAX];
	bool done[256] = {false};
	uint32_t bad = 0;

	for (uint32_t i = 0; i < n; i++) {
		const uint8_t verdict = verdicts[i];
		uint32_t same = 0;

		if (done[verdict])
			continue;
		done[verdict] = true;
		for (uint32_t j = i; j < n; j++) {
			if (unlikely(e->multi)) {
				same += verdicts[j] == verdict ? gather(e, j, descs + same, origin + same) : 0;
				continue;
			}
			/* Without a branch: verdicts come in no pattern. */
			descs[same] = e->descs[j];
			origin[same] = e->origin[j];
			same += verdicts[j] == verdict;
		}
		bad += carry_out(e, verdict, descs, origin, same);
	}
	return bad;
}

uint32_t afp_engine_dispatch(struct afp_engine *e)
{
	uint8_t verdicts[AFP_BATCH_MAX]; /* read once: a handler may have kept a view of the engine's */
	uint32_t n = e->busy_n, bad = 0;

	e->busy_n = e->busy_frames = 0;
	if (!n)
		return 0;
	for (uint32_t i = 0; i < n; i++) {
		/* One way out, one order: back out of the port it came from has two names. */
		uint8_t verdict = e->verdicts[i];

		verdicts[i] = verdict == AFP_REFLECT ? (uint8_t)(AFP_FORWARD | e->busy_port) : verdict;
	}
	if (likely(!e->multi) && !memcmp(verdicts, verdicts + 1, n - 1))
		bad = carry_out(e, verdicts[0], e->descs, e->origin, n);
	else
		bad = sort_out(e, verdicts, n);
	(void)afp_engine_kick(e, n == e->batch ? e->hold : 0);
	return bad;
}
