/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The reference protocol (table.h, put.c, port.c, lend.c): one life of one frame, three threads that have references to it.
 *
 * The owner thread and the sender each have a port; the third thread is the application's. Each takes more references,
 * puts them, and lends them to its port's TX ring, from which they come back. With several references the word is changed
 * by compare-and-swap; the last one goes home, directly in the owner's thread, by a post from the others. The post itself
 * is return.pml's: here it is one step.
 *
 * Each access to the word is one step. Every thread does every sequence of operations it may.
 *
 * Mutants, each must fail:  PLAIN_DECREMENT  PLAIN_LEND  DECIDES_ONCE  STAYS_TX
 * With a mistake of the caller's, one reference that one thread sends while another puts it (SENT_AND_PUT=SENDER or OWNER,
 * the thread that sends), these must hold:  COMES_HOME  ONLY_ONCE
 * and each of these mutants must fail:  PLAIN_SEND (outside the owner's thread too a frame with one reference is sent by a
 * store)  CLAIM_STOPS_COMPLETION (a completion heeds the claim of a put)
 */

/* The frame word: holder | state | tx | refs. The generation is return.pml's. */
#define POOL 0
#define APP 1
#define TX 2
#define SEVERAL 3 /* holders: 0 none, a port's number from 1 */
#define WORD(holder, state, tx, refs) ((holder) * 256 + (state) * 64 + (tx) * 8 + (refs))
#define REFS(w) ((w) % 8)
#define SENT(w) ((w) / 8 % 8)
#define STATE(w) ((w) / 64 % 4)
#define HOLDER(w) ((w) / 256)
#define ONE_REF 1
#define ONE_TX 8

/* Threads; a port has its thread's number and one. */
#define OWNER 0
#define SENDER 1
#define APPLICATION 2

short word;
bool returned; /* the claim, of this one life */
bool completed; /* ... and a completion's */
byte cache;
chan inbox = [3] of { byte /* the state the frame must be in */ };

/* Is the word of a frame lent with its only reference simply stored? Does a return look for a claim? */
#ifdef PLAIN_SEND
#define STORES true
#else
#define STORES (self == OWNER)
#endif
#ifdef CLAIM_STOPS_COMPLETION
#define HEEDS_CLAIM(from) true
#else
#define HEEDS_CLAIM(from) (from == APP)
#endif

/* Only the properties see these. */
byte live;     /* references that somebody has, in hand or in a ring, and has not begun to give back */
byte homes;    /* how often the frame went home */
byte ended;    /* threads that have nothing left */
byte refusals;

inline goes_home()
{
	d_step {
#ifndef SENT_AND_PUT
		assert(live == 0);  /* nobody has it any more */
		assert(homes == 0); /* exactly one going-home */
#endif
		word = WORD(0, POOL, 0, 0);
		homes++;
		cache++
	}
}

inline refuse()
{
#ifndef SENT_AND_PUT
	assert(false); /* nobody here makes a mistake */
#endif
	refusals++
}

/* afp_go_home(): of the last reference. */
inline go_home(from)
{
	if
	:: returned && HEEDS_CLAIM(from) -> refuse()
	:: else ->
		if
		:: self == OWNER -> goes_home()
		:: self != OWNER && from == APP -> returned = true; inbox!from
		:: self != OWNER && from == TX ->
			if
			:: completed -> refuse()
			:: else -> completed = true; inbox!from
			fi
		fi
	fi
}

#define HELD(w) ((STATE(w) == APP || STATE(w) == TX) && REFS(w) > SENT(w))
#define ELSE_AGAIN atomic { word != w -> w = word }

/* afp_put() */
inline put()
{
	d_step { have--; live--; w = word }
	do
	:: !HELD(w) -> refuse(); break
#ifdef DECIDES_ONCE
	:: HELD(w) && REFS(w) == 1 -> go_home(APP); break
	:: HELD(w) && REFS(w) > 1 -> word = word - ONE_REF; break /* an atomic subtraction */
#else
	:: HELD(w) && REFS(w) == 1 -> go_home(APP); break
	:: HELD(w) && REFS(w) > 1 ->
#ifdef PLAIN_DECREMENT
		word = w - ONE_REF; break
#else
		if
		:: atomic { word == w -> word = w - ONE_REF; break }
		:: ELSE_AGAIN
		fi
#endif
#endif
	od;
	w = 0
}

/* afp_ref() */
inline ref()
{
	w = word;
	do
	:: !HELD(w) || returned -> refuse(); break
	:: else ->
		if
		:: atomic { word == w -> word = w + ONE_REF; have++; live++; break }
		:: ELSE_AGAIN
		fi
	od;
	w = 0
}

/* lend_to_tx() */
inline lend()
{
	w = word;
	do
	:: !HELD(w) || returned -> refuse(); have--; break
	:: else ->
		if
		:: REFS(w) == 1 ->
			if
			:: atomic { STORES || word == w -> word = WORD(port, TX, 1, 1); have--; sent++; break }
			:: atomic { !STORES && word != w -> w = word }
			fi
		:: REFS(w) > 1 ->
#ifdef PLAIN_LEND
			d_step { word = WORD(SEVERAL, TX, SENT(w) + 1, REFS(w)); clones++; have--; sent++ }
			break
#else
			if
			:: atomic { word == w -> word = WORD(SEVERAL, TX, SENT(w) + 1, REFS(w)); clones++; have--; sent++; break }
			:: ELSE_AGAIN
			fi
#endif
		fi
	od;
	w = 0
}

/* back_from_tx() */
inline complete()
{
	d_step { sent--; live--; w = word }
	if
	:: STATE(w) != TX -> refuse()
	:: STATE(w) == TX && HOLDER(w) == port -> go_home(TX)
	:: STATE(w) == TX && HOLDER(w) != port ->
		if
		:: HOLDER(w) != SEVERAL || clones == 0 -> refuse()
		:: else ->
			do
			:: REFS(w) == 1 -> go_home(TX); clones--; break
			:: REFS(w) > 1 ->
				next = w - ONE_REF - ONE_TX;
#ifndef STAYS_TX
				next = (SENT(next) == 0 -> WORD(0, APP, 0, REFS(next)) : next);
#endif
				if
				:: atomic { word == w -> word = next; next = 0; clones--; break }
				:: atomic { word != w -> w = word; next = 0 }
				fi
			od
		fi
	fi;
	w = 0
}

/* accept_post() */
inline accept_post()
{
	inbox?from;
	w = word;
	if
	:: STATE(w) == from && REFS(w) == 1 && SENT(w) == (from == TX) -> goes_home()
	:: else -> returned = false; refuse()
	fi;
	d_step { w = 0; from = 0 }
}

proctype thread(byte self; byte have; bool takes)
{
	byte port = self + 1, sent, clones, from;
	short w, next;

	do
	:: have > 0 -> put()
	:: have > 0 && takes -> takes = false; ref()
	:: have > 0 && self != APPLICATION -> lend()
	:: sent > 0 -> complete()
	:: self == OWNER && nempty(inbox) -> accept_post()
	:: have == 0 && sent == 0 -> break
	od;
#ifndef SENT_AND_PUT
	assert(clones == 0);
#endif
	ended++;
	/* The owner stays to collect. */
	do
	:: self == OWNER && nempty(inbox) -> accept_post()
	:: self != OWNER || (ended == 3 && empty(inbox)) -> break
	od
}

#ifndef SENT_AND_PUT
#define REFERENCES 3
#define HAS(self) 1
#else
#define REFERENCES 1
#define HAS(self) (self == SENT_AND_PUT || self == APPLICATION)
#endif

init
{
	atomic {
		live = REFERENCES;
		word = WORD(0, APP, 0, REFERENCES);
		run thread(OWNER, HAS(OWNER), REFERENCES > 1);
		run thread(SENDER, HAS(SENDER), REFERENCES > 1);
		run thread(APPLICATION, HAS(APPLICATION), REFERENCES > 1)
	}
	ended == 3 && _nr_pr == 1;
#ifndef SENT_AND_PUT
	assert(homes == 1 && cache == 1 && live == 0);
	assert(word == WORD(0, POOL, 0, 0) && empty(inbox))
#endif
#ifdef COMES_HOME
	assert(cache > 0)
#endif
#ifdef ONLY_ONCE
	assert(cache < 2) /* it is not in two free places */
#endif
}
