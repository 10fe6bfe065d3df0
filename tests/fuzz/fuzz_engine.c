/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The worker's loop with a handler that answers any verdict, spoils any descriptor and keeps what it likes, on rings of a kernel that
 * lies: what has no meaning is counted and dropped, and no frame is lost.
 */
#include "input.h"

static struct world w;
static struct input *playing;
static struct afp_engine engine;

/* Verdicts with a meaning, mostly; a descriptor of eight is spoiled. The handler's own references are held. */
static void decide(struct afp_desc *descs, uint32_t n, uint8_t *verdicts)
{
	static const uint8_t common[] = {AFP_DROP, AFP_REFLECT, AFP_KEEP, AFP_FORWARD, AFP_FORWARD | 1, AFP_FORWARD | 2};

	for (uint32_t i = 0; i < n; i++) {
		uint8_t how = (uint8_t)take(playing, 1);

		verdicts[i] = how & 128 ? common[how % 6] : how & 64 ? (uint8_t)take(playing, 1) : common[(how >> 3) % 6];
		if (verdicts[i] == AFP_KEEP && engine.multi) /* all frames of the packet */
			hold(&w, engine.origin + engine.start[i], engine.start[i + 1] - engine.start[i]);
		else if (verdicts[i] == AFP_KEEP)
			hold(&w, &descs[i], 1);
		else if ((how & 7) == 7)
			descs[i] = (struct afp_desc){any_address(&w, playing), (uint32_t)take(playing, 4), (uint16_t)take(playing, 1),
						     (uint16_t)take(playing, 1)};
		if ((how & 7) == 6 && w.nheld) /* the application shows what it holds in place of what it got */
			descs[i] = w.held[how % w.nheld];
	}
}

static void handler(struct afp_desc *descs, uint32_t n, uint8_t *umem, uint64_t size, uint8_t *verdicts, uint32_t port, void *user)
{
	(void)umem, (void)size, (void)port, (void)user;
	decide(descs, n, verdicts);
}

static void round_of(struct afp_engine *e, struct input *in)
{
	uint8_t how = (uint8_t)take(in, 1);

	switch (how & 3) {
	case 0: /* Python's way: a batch is brought, and the next call carries the verdicts out */
		e->handler = true;
		for (int turns = 0; turns < 4; turns++) {
			if (afp_engine_turn(e, 0, -1) < 0)
				break;
			decide(e->descs, e->busy_n, e->verdicts);
		}
		break;
	case 1:
		if (!e->busy_n)
			afp_engine_run_compiled(e, 0, handler, NULL);
		break;
	case 2:
		if (e->busy_n)
			break;
		for (uint32_t i = 0; i < PORTS; i++)
			e->route[i] = (struct afp_route){.receive = how >> 7, .rewrite = (how >> 2) & 7,
							 .verdict = below(in, 2) ? AFP_FORWARD | below(in, PORTS) : below(in, 2)};
		e->handler = false;
		afp_engine_run(e, 0);
		break;
	case 3: /* nobody decided: DROP, unless the handler had said KEEP, and then it has the frames */
		memset(e->verdicts, AFP_DROP, e->busy_n);
		afp_engine_turn(e, 0, AFP_DROP);
		break;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct afp_engine *e = &engine;
	struct input in = {data, size};

	playing = &in;
	begin(&w, &in);
	CHECK_EQ(afp_engine_init(e, &w.t, 1 + below(&in, 40), UINT32_MAX), 0);
	for (uint32_t i = 0; i < PORTS; i++)
		CHECK_EQ(afp_engine_add(e, w.port[i]), i);
	for (uint32_t n = 0; in.left; n++) {
		switch (take(&in, 1) & 3) {
		case 0:
			lie(&w, &in);
			break;
		case 1:
			serve(&w, &in);
			break;
		default:
			round_of(e, &in);
		}
		if (w.nheld > HELD / 2)
			afp_put_all(&w.t, w.held + --w.nheld, 1);
		if (n % 8 == 0)
			check_whole(&w.t);
	}
	/* A batch that was kept, but not handed back yet, is the application's and the engine's: the engine lets go of it. */
	afp_engine_drain(e, 0);
	afp_engine_fini(e);
	end(&w);
	return 0;
}
