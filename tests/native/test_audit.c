/* SPDX-License-Identifier: BSD-3-Clause */
/* The audit finds every kind of corruption that is planted, and nothing else. */
#include "fake.h"

static uint32_t found(struct afp_table *t, enum afp_wrong what)
{
	struct afp_audit a = audit(t);
	uint32_t n = 0;

	for (uint32_t i = 0; i < a.nwrong && i < AFP_WRONGS; i++)
		n += a.wrong[i].what == (uint32_t)what;
	return n;
}

static uint32_t all(struct afp_table *t)
{
	return audit(t).nwrong;
}

/* A pool with frames everywhere: idle in cache and ring, held, filled, sent alone and as clones, posted. */
struct scene {
	struct afp_pool *p;
	struct afp_port *port;
	struct afp_desc held[8], sent[4], clone;
};

static struct scene set(struct afp_table *t)
{
	struct scene s = {.p = afp_pool_create(t, 16, 0)};
	struct afp_refusals refused = {0};
	struct afp_desc d[160];
	struct afp_box box = {.self = 1, .room = 2};

	s.port = fake_port(t, s.p, 16, 8);
	CHECK_EQ(afp_pool_alloc(s.p, s.held, 8), 8);
	CHECK_EQ(afp_pool_alloc(s.p, s.sent, 4), 4);
	CHECK_EQ(afp_pool_alloc(s.p, &s.clone, 1), 1);
	CHECK_EQ(afp_pool_alloc(s.p, d, 160), 160);
	CHECK_EQ(afp_port_fill(s.port, 8), 8);
	CHECK_EQ(put(t, d, 158), 158);
	for (int i = 0; i < 4; i++)
		s.sent[i].len = 60;
	s.clone.len = 60;
	CHECK_EQ(afp_ref(t, &s.clone, 1, &refused), 1);
	CHECK_EQ(afp_port_transmit(s.port, s.sent, 4, &refused), 4);
	CHECK_EQ(afp_port_transmit(s.port, &s.clone, 1, &refused), 1);
	for (int i = 158; i < 160; i++)
		CHECK(afp_box_add(&box, s.p, frame_of(t, d[i].addr), d[i].gen, AFP_APP));
	afp_box_flush(&box);
	CHECK(s.p->ring_head != s.p->ring_tail);
	check_whole(t);
	CHECK_EQ(audit(t).inbox, 2);
	return s;
}

static uint64_t change(struct afp_table *t, uint32_t frame, uint64_t clear, uint64_t with)
{
	uint64_t w = word_load(t, frame);

	word_store(t, frame, (w & ~clear) | with);
	return w;
}

/* Plant, find exactly this kind (at least once), heal, find nothing. */
#define PLANTED(t, what, plant, heal)      \
	do {                               \
		plant;                     \
		CHECK(found(t, what) > 0); \
		heal;                      \
		CHECK_EQ(all(t), 0);       \
	} while (0)

static void twice(struct afp_table *t)
{
	struct scene s = set(t);
	uint32_t was = s.p->cache[0];

	PLANTED(t, AFP_WRONG_TWICE, s.p->cache[0] = s.p->cache[1], s.p->cache[0] = was);
	PLANTED(t, AFP_WRONG_TWICE, s.p->cache[0] = s.p->ring[s.p->ring_tail & s.p->ring_mask], s.p->cache[0] = was);
	was = t->free_list[3];
	PLANTED(t, AFP_WRONG_TWICE, t->free_list[3] = t->free_list[4], t->free_list[3] = was);
}

static void lost(struct afp_table *t)
{
	struct scene s = set(t);

	PLANTED(t, AFP_WRONG_LOST, s.p->ncache--, s.p->ncache++);
	CHECK_EQ(all(t), 0);
	PLANTED(t, AFP_WRONG_LOST, t->nfree--, t->nfree++);
	PLANTED(t, AFP_WRONG_LOST, s.p->ring_tail++, s.p->ring_tail--);
	s.p->ncache--;
	CHECK_EQ(all(t), 1);
	s.p->ncache++;
}

static void state(struct afp_table *t)
{
	struct scene s = set(t);
	uint32_t idle = s.p->cache[0], unowned = t->free_list[0], was;
	uint64_t w;

	PLANTED(t, AFP_WRONG_STATE, w = change(t, idle, AFP_STATE_MASK, (uint64_t)AFP_APP << AFP_STATE_SHIFT), word_store(t, idle, w));
	PLANTED(t, AFP_WRONG_STATE, w = change(t, unowned, AFP_STATE_MASK, (uint64_t)AFP_FILL << AFP_STATE_SHIFT),
		word_store(t, unowned, w));
	PLANTED(t, AFP_WRONG_STATE, w = change(t, idle, AFP_STATE_MASK, 7ull << AFP_STATE_SHIFT), word_store(t, idle, w));
	PLANTED(t, AFP_WRONG_STATE, w = change(t, idle, AFP_OWNER_MASK, AFP_OWNER_MASK), word_store(t, idle, w));
	was = s.p->cache[0];
	PLANTED(t, AFP_WRONG_STATE, s.p->cache[0] = frame_of(t, s.held[0].addr), s.p->cache[0] = was);
}

static void owner(struct afp_table *t)
{
	struct scene s = set(t);
	struct afp_pool *other = afp_pool_create(t, 16, 0);
	uint32_t idle = s.p->cache[0], held = frame_of(t, s.held[0].addr);
	uint64_t w;

	PLANTED(t, AFP_WRONG_OWNER, w = change(t, idle, AFP_OWNER_MASK, (uint64_t)other->id << AFP_OWNER_SHIFT), word_store(t, idle, w));
	PLANTED(t, AFP_WRONG_OWNER, w = change(t, held, AFP_OWNER_MASK, 200ull << AFP_OWNER_SHIFT), word_store(t, held, w));
	PLANTED(t, AFP_WRONG_OWNER, w = change(t, held, AFP_OWNER_MASK, 0), word_store(t, held, w));
	PLANTED(t, AFP_WRONG_OWNER, s.p->cache[0] = FRAMES, s.p->cache[0] = idle);
	PLANTED(t, AFP_WRONG_OWNER, s.p->cache[0] = UINT32_MAX, s.p->cache[0] = idle);
	CHECK_EQ(afp_pool_destroy(other), 0);
	PLANTED(t, AFP_WRONG_OWNER, w = change(t, held, AFP_OWNER_MASK, 2ull << AFP_OWNER_SHIFT), word_store(t, held, w));
}

static void refs(struct afp_table *t)
{
	struct scene s = set(t);
	uint32_t held = frame_of(t, s.held[0].addr), sent = frame_of(t, s.sent[0].addr), idle = s.p->cache[0];
	uint64_t w;

	PLANTED(t, AFP_WRONG_REFS, w = change(t, held, 0xfff, 0), word_store(t, held, w));
	PLANTED(t, AFP_WRONG_REFS, w = change(t, held, 0, 2 * AFP_ONE_TX), word_store(t, held, w));
	PLANTED(t, AFP_WRONG_REFS, w = change(t, sent, 0xfffull << AFP_TX_SHIFT, 0), word_store(t, sent, w));
	PLANTED(t, AFP_WRONG_REFS, w = change(t, sent, 0, 3 * AFP_ONE_TX), word_store(t, sent, w));
	PLANTED(t, AFP_WRONG_REFS, w = change(t, idle, 0, AFP_ONE_REF), word_store(t, idle, w));
}

static void holder(struct afp_table *t)
{
	struct scene s = set(t);
	uint32_t sent = frame_of(t, s.sent[0].addr), filled = frame_of(t, fake_take_fill(s.port));
	uint64_t w;

	PLANTED(t, AFP_WRONG_HOLDER, w = change(t, sent, AFP_HOLDER_MASK, 77ull << AFP_HOLDER_SHIFT), word_store(t, sent, w));
	PLANTED(t, AFP_WRONG_HOLDER, w = change(t, filled, AFP_HOLDER_MASK, 77ull << AFP_HOLDER_SHIFT), word_store(t, filled, w));
	PLANTED(t, AFP_WRONG_HOLDER, w = change(t, filled, AFP_HOLDER_MASK, 0), word_store(t, filled, w));
	PLANTED(t, AFP_WRONG_HOLDER, w = change(t, filled, AFP_HOLDER_MASK, 255ull << AFP_HOLDER_SHIFT), word_store(t, filled, w));
}

static void pool_count(struct afp_table *t)
{
	struct scene s = set(t);

	PLANTED(t, AFP_WRONG_POOL_COUNT, atomic_fetch_add(&s.p->hold_cnt, 1), atomic_fetch_sub(&s.p->hold_cnt, 1));
	PLANTED(t, AFP_WRONG_POOL_COUNT, atomic_fetch_add(&s.p->release_cnt, 1), atomic_fetch_sub(&s.p->release_cnt, 1));
}

static void fill_count(struct afp_table *t)
{
	struct scene s = set(t);

	PLANTED(t, AFP_WRONG_FILL_COUNT, bump(&s.port->stat[P_FILL], 1), bump(&s.port->stat[P_FILL], -1ull));
	PLANTED(t, AFP_WRONG_FILL_COUNT, bump(&s.port->stat[P_RX], 1), bump(&s.port->stat[P_RX], -1ull));
}

static void tx_count(struct afp_table *t)
{
	struct scene s = set(t);
	uint32_t clone = frame_of(t, s.clone.addr);

	PLANTED(t, AFP_WRONG_TX_COUNT, bump(&s.port->stat[P_TX], 1), bump(&s.port->stat[P_TX], -1ull));
	PLANTED(t, AFP_WRONG_TX_COUNT, bump(&s.port->stat[P_COMPLETED], 1), bump(&s.port->stat[P_COMPLETED], -1ull));
	PLANTED(t, AFP_WRONG_TX_COUNT, s.port->sent_clones[clone]++, s.port->sent_clones[clone]--);
}

static void more_wrong_than_can_be_listed(struct afp_table *t)
{
	struct scene s = set(t);
	uint32_t n = s.p->ncache;

	CHECK(n > AFP_WRONGS);
	s.p->ncache = 0;
	CHECK_EQ(all(t), n);
	CHECK_EQ(found(t, AFP_WRONG_LOST), AFP_WRONGS);
}

static void every_word_at_random(struct afp_table *t)
{
	uint64_t x = SEED;
	uint8_t states[FRAMES];
	uint32_t counts[AFP_STATES], sum = 0;

	set(t);
	for (int round = 0; round < 50; round++) {
		for (uint32_t f = 0; f < FRAMES; f++) {
			next_random(&x);
			word_store(t, f, x);
		}
		CHECK(all(t) > 0); /* and nothing outside the tables is read */
	}
	afp_frame_states(t, states);
	afp_count_states(t, counts);
	for (int i = 0; i < AFP_STATES; i++)
		sum += counts[i];
	CHECK_EQ(sum, FRAMES);
	for (uint32_t f = 0; f < FRAMES; f++)
		CHECK(states[f] < AFP_STATES);
	for (uint32_t f = 0; f < FRAMES; f++)
		word_store(t, f, 0);
}

static const struct test tests[] = {
	{"twice", twice, 1},
	{"lost", lost, 1},
	{"state", state, 1},
	{"owner", owner, 1},
	{"refs", refs, 1},
	{"holder", holder, 1},
	{"pool_count", pool_count, 1},
	{"fill_count", fill_count, 1},
	{"tx_count", tx_count, 1},
	{"more_wrong_than_can_be_listed", more_wrong_than_can_be_listed, 1},
	{"every_word_at_random", every_word_at_random, 1},
};

TESTS_MAIN(tests)
