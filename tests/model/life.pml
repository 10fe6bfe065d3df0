/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The end of a pool, and its next beginning (pool.c: afp_pool_destroy, _bind, _create, afp_table_reap; box.c: box_send).
 *
 * The owner closes a pool that has two frames out. Two producers give them back meanwhile: each posts, looks at `life`,
 * and reaps if the pool is detached. A binder tries to become the owner. Somebody else makes a new pool, which reuses the
 * memory of the old one when it is dead, and another thread yet tries to own that.
 *
 * Each shared access is one step; what the table's lock protects from every other access is one step too. The store of
 * `life` has a buffer of one entry, which a seq_cst store empties at once: with WEAK_LIFE it empties when it likes, at the
 * latest when the lock is released. (On x86 taking a lock empties it too; C11 gives no such promise.)
 *
 * Mutants, each must fail:  WEAK_LIFE  LIFE_AFTER_LOOK  LIFE_BEFORE_POST  DETACH_OUTSIDE_LOCK  REAP_UNLOCKED
 * BIND_LOOKS_ONCE  CREATE_CLEARS_OWNER
 * Limit, must fail, and shows what is not promised:  OLD_HANDLE (who keeps a closed pool's handle may come to own the next)
 */
mtype = { dead, alive, detached };

#define NOBODY 0
#define CLOSER 1
#define BINDER 2
#define CREATOR 3
#define RIVAL 4

mtype life = alive;
byte owner = CLOSER;
byte inbox;      /* frames posted and not taken */
byte held = 2;   /* hold_cnt - release_cnt */
bool ring = true; /* its memory */
bool lock;

bool late;       /* the store of `detached` is still in its buffer */

/* Only the properties see these. */
byte incarnation = 1;
byte using;      /* threads that act as the pool's owner */
byte ended;

#ifdef REAP_UNLOCKED
#define LOCK skip
#define UNLOCK skip
#else
#define LOCK atomic { !lock -> lock = true }
#define UNLOCK atomic { !late -> lock = false }
#endif

inline store_detached()
{
#ifdef WEAK_LIFE
	late = true
#else
	life = detached
#endif
}

active proctype buffer()
{
end:	do
	:: d_step { late -> life = detached; late = false }
	od
}

/* reap_locked() */
inline reap_locked()
{
	if
	:: inbox > 0 ->
		d_step { taken = inbox; inbox = 0 }; /* the exchange */
		d_step { assert(held >= taken); held = held - taken; taken = 0 }
	:: else
	fi;
	if
	:: held == 0 ->
		ring = false;
		d_step { !late -> life = dead } /* stores to one place keep their order */
	:: else
	fi
}

inline reap()
{
	LOCK;
	if
	:: life == detached -> reap_locked()
	:: else
	fi;
	UNLOCK
}

/* afp_pool_destroy(), the pool being flushed */
active proctype closer()
{
	byte taken;

#if defined(DETACH_OUTSIDE_LOCK)
	store_detached();
	owner = NOBODY;
	LOCK;
	reap_locked();
	UNLOCK;
#elif defined(LIFE_AFTER_LOOK)
	LOCK;
	owner = NOBODY;
	reap_locked();
	if
	:: life == alive -> store_detached()
	:: else
	fi;
	UNLOCK;
#else
	LOCK;
	store_detached();
	owner = NOBODY;
	reap_locked();
	UNLOCK;
#endif
	ended++
}

/* box_send() */
active [2] proctype producer()
{
	byte taken;
	mtype seen;

#ifdef LIFE_BEFORE_POST
	seen = life;
	inbox++;
#else
	inbox++; /* the compare-and-swap */
	seen = life;
#endif
	if
	:: seen == detached -> reap()
	:: else
	fi;
	ended++
}

/* afp_pool_bind() */
inline bind(self)
{
	bound = false;
	if
	:: life == alive ->
		if
		:: atomic { owner == NOBODY -> owner = self };
#ifdef BIND_LOOKS_ONCE
			bound = true
#else
			if
			:: life == alive -> bound = true
			:: else -> owner = NOBODY
			fi
#endif
		:: else
		fi
	:: else
	fi
}

/* What an owner does: nobody else may be at it, and the pool must be there. */
inline use()
{
	d_step { using++; assert(using == 1); assert(life == alive && ring) };
	d_step { assert(life == alive && ring); using-- }
}

/* Has a handle to the first incarnation. */
active proctype binder()
{
	bool bound;

	bind(BINDER);
	if
	:: bound ->
#ifdef OLD_HANDLE
		assert(incarnation == 1);
#endif
		use()
	:: else
	fi;
	ended++
}

/* afp_pool_create(), then owner. */
active proctype creator()
{
	byte taken;
	bool bound;

	reap();
	LOCK;
	if
	:: life == dead ->
		held = 0;
		ring = true;
#ifdef CREATE_CLEARS_OWNER
		owner = NOBODY;
#endif
		incarnation++;
		life = alive;
		UNLOCK;
		bind(CREATOR);
		if
		:: bound -> use()
		:: else
		fi
	:: else -> UNLOCK
	fi;
	ended++
}

active proctype rival()
{
	bool bound;

end:	incarnation == 2 -> bind(RIVAL);
	if
	:: bound -> use()
	:: else
	fi
}

active proctype end_of_all()
{
end:	ended == 5 && !late;
	assert(inbox == 0);  /* no post is left behind */
	if
	:: incarnation == 1 -> assert(life == dead && held == 0 && !ring && owner == NOBODY)
	:: else -> assert(life == alive && ring)
	fi
}
