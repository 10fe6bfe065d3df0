/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The remote return protocol (put.c, box.c, pool.c): one frame, its owner thread, two threads that give it back.
 *
 * The owner allocates the frame LIVES times, hands it out in every way there is, the wrong ones included, and collects
 * whenever it likes. A returner can be held up at every step, so a post of one life arrives in any later one.
 *
 * Each access to shared memory is one step: a store, a compare-and-swap, or a guard, which is a load. Posts are reused at
 * once, lowest first, as malloc() might, so that an ABA problem of the inbox would show.
 *
 * Mutants, each must fail:  NO_GENERATION  NO_STATE  PLAIN_TAKE  PLAIN_PUSH  OWNER_IGNORES_CLAIM
 *                               REPORTED CLAIM_CLEARED (the claim of an accepted post is taken back)
 * Limit, must fail, and shows what is not promised:  GENERATIONS=2
 * Variants, each must pass:  NO_CLAIM (only the report of a mistake rests on the claim)
 *                            REPORTED (the second of two puts in a row by one thread is told so)
 */
#ifndef LIVES
#define LIVES 3
#endif
#ifndef GENERATIONS
#define GENERATIONS 100 /* stands for 65535: more than there are lives */
#endif
#define POSTS (LIVES + 1)
#define GEN_OF(life) (((life) - 1) % GENERATIONS + 1)

/* The frame word: generation and state. References are the other model's. */
#define POOL 0
#define APP 1
#define WORD(gen, state) ((gen) * 2 + (state))
#define GEN(w) ((w) / 2)
#define STATE(w) ((w) % 2)

byte word = WORD(0, POOL);
byte returned;  /* the claim: a generation */
byte head;      /* the inbox: a post, 0 = NULL */
byte cache = 1; /* how often the frame is in the owner's stores */

byte next[POSTS + 1], entry[POSTS + 1];
bool used[POSTS + 1];

/* How a life of the frame is given back. The last four are mistakes. */
mtype = { by_returner, by_owner, by_both, by_returner_and_owner, twice, then_by_owner };
#define MISTAKE(how) (how != by_returner && how != by_owner)
chan mail[2] = [LIVES] of { byte, mtype }; /* the application's: a descriptor to a returner, */
chan back = [1] of { byte };               /* and back to the owner */

/* Only the properties see these. */
byte life;                /* how often the frame was allocated */
byte pending;             /* puts handed out and not finished */
byte underway;            /* posts pushed and not taken */
bool mistaken[POSTS + 1]; /* the post is of a life given back more than once */
bool begun;               /* somebody gives the present life back, */
bool honoured = true;     /* and it came home */
bool raced;               /* a life was posted twice: its claims may come late and hide others */

/* The owner stores the word and the frame's number. */
inline goes_home(gen)
{
	d_step {
		assert(begun);     /* not taken from a new holder by a return of an earlier life */
		assert(!honoured); /* one return a life */
		honoured = true;
		word = WORD(gen, POOL);
		cache++;
		assert(cache == 1) /* never in two free places */
	}
}

#define HELD(l) (word == WORD(GEN_OF(l), APP))
#ifdef NO_CLAIM
#define CLAIMED(l) false
#else
#define CLAIMED(l) (returned == GEN_OF(l))
#endif

/* afp_put() in another thread than the owner's. */
inline put_remotely(l)
{
	d_step { ok = false; begun = begun || l == life }
	/* The claim before the word: a later life may claim the frame in between, and then the word shows that life. */
	if
	:: !CLAIMED(l) ->
		if
		:: HELD(l) ->
			returned = GEN_OF(l);
			d_step {
				ok = true;
				post = 1;
				do :: used[post] -> post++ :: else -> break od;
				assert(post <= POSTS);
				used[post] = true;
				entry[post] = GEN_OF(l);
				mistaken[post] = MISTAKE(how);
				next[post] = head /* relaxed */
			}
#ifdef PLAIN_PUSH
			d_step { head = post; underway++; post = 0 }
#else
			do
			:: d_step { head == next[post] -> head = post; underway++; post = 0 }; break
			:: d_step { head != next[post] -> next[post] = head }
			od
#endif
		:: else
		fi
	:: else
	fi
}

proctype returner(byte id)
{
	byte l, post;
	bool ok;
	mtype how;

end:	do
	:: mail[id]?l,how ->
		put_remotely(l);
		assert(MISTAKE(how) || ok); /* who makes no mistake is not refused */
		if
		:: how == twice ->
			put_remotely(l);
#ifdef REPORTED
			assert(!ok || raced); /* the second of two in a row is told so */
#endif
			raced = raced || ok
		:: how == then_by_owner -> back!l
		:: else
		fi;
		d_step { l = 0; how = 0; ok = false; pending-- }
	od
}

/* afp_put() in the owner's thread. */
inline put_directly(l, how, again)
{
	begun = begun || l == life;
	if
	:: HELD(l) ->
		if
#ifdef OWNER_IGNORES_CLAIM
		:: true ->
#else
		:: CLAIMED(l) -> assert(MISTAKE(how))
		:: else ->
#endif
#ifndef NO_CLAIM
			assert(!again || raced); /* given back before: the second is told so */
#endif
			goes_home(GEN_OF(l))
		fi
	:: else -> assert(MISTAKE(how))
	fi
}

#ifdef NO_GENERATION
#define GEN_GOOD true
#else
#define GEN_GOOD (GEN(w) == entry[post])
#endif
#ifdef NO_STATE
#define STATE_GOOD true
#else
#define STATE_GOOD (STATE(w) == APP)
#endif

/* accept_post() */
inline accept_post()
{
	w = word;
#ifdef CLAIM_CLEARED
	if
	:: returned == entry[post] -> returned = 0
	:: else
	fi;
#endif
	if
	:: GEN_GOOD && STATE_GOOD -> goes_home(GEN(w))
	:: else ->
		assert(mistaken[post]);
		if
		:: returned == entry[post] -> returned = 0
		:: else
		fi
	fi;
	w = 0
}

active proctype owner()
{
	byte w, post, l, mine;
	mtype how;

	atomic { run returner(0); run returner(1) }
	do
	:: atomic { cache > 0 && life < LIVES -> /* afp_pool_alloc() */
			assert(honoured);
			honoured = false;
			begun = false;
			cache--;
			life++;
			word = WORD(GEN_OF(life), APP);
			if
			:: how = by_returner; pending++; if :: mail[0]!life,how :: mail[1]!life,how fi; how = 0
			:: how = by_owner; mine = life
			:: how = by_both; raced = true; pending = pending + 2; mail[0]!life,how; mail[1]!life,how; how = 0
			:: how = by_returner_and_owner; raced = true; pending++; mail[0]!life,how; mine = life
			:: how = twice; pending++; mail[0]!life,how; how = 0
			:: how = then_by_owner; pending++; mail[0]!life,how; how = 0
			fi }

	:: mine != 0 -> put_directly(mine, how, false); d_step { mine = 0; how = 0 }
	:: back?l -> put_directly(l, then_by_owner, true); l = 0

	:: head != 0 -> /* collect() */
#ifdef PLAIN_TAKE
		post = head;
		head = 0;
#else
		d_step { post = head; head = 0 }
#endif
		do
		:: post != 0 ->
			accept_post();
			d_step { /* free() */
				underway--;
				used[post] = false;
				l = next[post]; next[post] = 0; entry[post] = 0; mistaken[post] = false;
				post = l; l = 0
			}
		:: else -> break
		od

	:: atomic { life == LIVES && mine == 0 && pending == 0 && empty(back) && head == 0 -> break }
	od;
	/* A lost frame has stopped the loop above; here a lost post, a lost return and a second frame would show. */
	assert(underway == 0);
	assert(cache == 1 && STATE(word) == POOL && honoured);
	for (l : 1 .. POSTS) { assert(!used[l]) }
}
