/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The frame table: one 64-bit word a frame, which is the whole truth about that frame.
 *
 * The kernel keeps this in struct page (pp, pp_magic, pp_ref_count). A UMEM frame has no struct page in user space, so the
 * word plays its part: it says who owns the frame, where it is, how many references there are, and which port has it.
 * Finding the word from an address is one shift, so the free side needs nothing but the address that a completion ring
 * hands back.
 *
 * Invariant: a frame is in exactly one state and has exactly one owner (a pool, or nobody: then it is on the Umem's free
 * list). References and transmissions obey  0 <= tx <= refs,  and  refs > 0  only in the states APP and TX.
 *
 * Who may write a word:
 *   - the pool's owner thread, or the only holder of the only reference: plain stores, no one else has business there;
 *   - any holder of one of several references: compare-and-swap.
 * A remote thread that gives back a last reference does not write the word. It claims the frame in `returned` and posts
 * (frame, generation) to the owner, who makes the transition, checking the generation. So two threads that race to free
 * one frame can both post, but only one post is honoured.
 */
#ifndef AFXDP_POOL_TABLE_H
#define AFXDP_POOL_TABLE_H

#include "../include/afxdp_pool.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define AFP_MAX_POOLS 256
#define AFP_MAX_PORTS 255 /* ids 1..254; 255 says "several" */
#define AFP_SEVERAL 255u
#define AFP_MAX_REFS 4095u
#define AFP_NO_FRAME UINT32_MAX
#define AFP_BLOCK_SHIFT 21 /* a huge page: whatever the device sees of it is in one piece */
#define AFP_BLOCK (1ull << AFP_BLOCK_SHIFT)
#define AFP_CONTD 1u /* XDP_PKT_CONTD in a descriptor's options: the packet goes on in the next one */

#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

enum afp_state { AFP_UMEM = 0, AFP_POOL = 1, AFP_FILL = 2, AFP_APP = 3, AFP_TX = 4, AFP_STATES = 5 };

/* Why a frame was refused. The order is known to errors in pool.py. */
enum afp_reason {
	AFP_OK = 0,
	AFP_FOREIGN,       /* the address lies in no frame of this Umem */
	AFP_NOT_HELD,      /* the caller has no reference: it is free, in a ring, or already sent */
	AFP_STALE,         /* the frame went round since: the descriptor is of an earlier life */
	AFP_INVALID,       /* a descriptor the kernel would refuse */
	AFP_TOO_MANY_REFS, /* the reference count is full */
	AFP_NO_MEMORY,
	AFP_FRAGMENT, /* a fragment has one reference, and cannot be given more */
	AFP_TOO_MANY_FRAMES, /* a packet of more frames than the port's device takes */
	AFP_UNFINISHED, /* a packet whose last frame is not there */
};

/* struct afp_desc is laid out as struct xdp_desc, whose 32-bit options become 16 bits of options (the kernel uses two) and the
 * frame's generation: a descriptor kept beyond its frame's life is recognised. */

/* The word:  gen:16 | holder:8 | fragmented:1 | state:3 | owner:12 | tx:12 | refs:12 */
#define AFP_REFS_SHIFT 0
#define AFP_TX_SHIFT 12
#define AFP_OWNER_SHIFT 24
#define AFP_STATE_SHIFT 36
#define AFP_FRAGMENTED (1ull << 39) /* several packets lie in the frame: each has a reference, and a bit in `fragments` */
#define AFP_HOLDER_SHIFT 40
#define AFP_GEN_SHIFT 48
#define AFP_ONE_REF (1ull << AFP_REFS_SHIFT)
#define AFP_ONE_TX (1ull << AFP_TX_SHIFT)
#define AFP_ONE_GEN (1ull << AFP_GEN_SHIFT)
#define AFP_OWNER_MASK (0xfffull << AFP_OWNER_SHIFT)
#define AFP_STATE_MASK (0x7ull << AFP_STATE_SHIFT)
#define AFP_HOLDER_MASK (0xffull << AFP_HOLDER_SHIFT)
#define AFP_GEN_MASK (0xffffull << AFP_GEN_SHIFT)

static inline uint32_t word_refs(uint64_t w)
{
	return w & 0xfff;
}
static inline uint32_t word_tx(uint64_t w)
{
	return (w >> AFP_TX_SHIFT) & 0xfff;
}
static inline uint32_t word_owner(uint64_t w)
{
	return (w >> AFP_OWNER_SHIFT) & 0xfff;
}
static inline enum afp_state word_state(uint64_t w)
{
	return (enum afp_state)((w >> AFP_STATE_SHIFT) & 0x7);
}
static inline uint32_t word_holder(uint64_t w)
{
	return (w >> AFP_HOLDER_SHIFT) & 0xff;
}
static inline uint16_t word_gen(uint64_t w)
{
	return (uint16_t)(w >> AFP_GEN_SHIFT);
}
static inline uint64_t word_make(uint16_t gen, uint32_t holder, enum afp_state state, uint32_t owner, uint32_t tx, uint32_t refs)
{
	return (uint64_t)gen << AFP_GEN_SHIFT | (uint64_t)holder << AFP_HOLDER_SHIFT | (uint64_t)state << AFP_STATE_SHIFT |
	       (uint64_t)owner << AFP_OWNER_SHIFT | (uint64_t)tx << AFP_TX_SHIFT | refs;
}
/* Generation 0 is never given out: `returned` uses it for "not claimed". */
static inline uint16_t next_gen(uint16_t gen)
{
	return gen == UINT16_MAX ? 1 : gen + 1;
}

/* The same index, which the compiler takes for another: else it keeps the address of what lies there, by an instruction more
 * than the two uses need. For the loops in which that counts. */
static inline uint64_t again(uint64_t index)
{
	__asm__("" : "+r"(index));
	return index;
}

/* Ask for a cache line that another core may have, to be written soon. Stores become visible one after the other, so each would
 * wait for its own line; asked for in advance the lines come side by side. */
static inline void fetch_to_write(const void *at)
{
#if defined(__x86_64__)
	__asm__ volatile("prefetchw %0" : : "m"(*(const char *)at)); /* does nothing on processors without it */
#else
	__builtin_prefetch(at, 1);
#endif
}

/* Loops over a batch go eight at a time: the pointers move once for eight. */
#define EIGHT(step)      \
	do {             \
		step(0); \
		step(1); \
		step(2); \
		step(3); \
		step(4); \
		step(5); \
		step(6); \
		step(7); \
	} while (0)

struct afp_pool;
struct afp_port;

struct afp_table {
	uint8_t *area; /* the frames; not owned by the table */
	uint64_t size;   /* bytes */
	uint64_t direct; /* the same, for loops that know shifts only: 0 where frames are no power of two */
	uint32_t nframes;
	uint32_t frame_shift;
	uint32_t block_frames; /* unaligned: frames in each AFP_BLOCK, which none crosses; else 0 */
	uint32_t frame_size;
	uint32_t headroom;
	_Atomic uint64_t *word;     /* [nframes] */
	_Atomic uint16_t *returned;  /* [nframes] generation last claimed by a remote put, 0 = none */
	_Atomic uint16_t *completed; /* [nframes] generation last posted by a completion in another thread, 0 = none */
	_Atomic uint64_t *fragments; /* [nframes] a bit for each fragment the application holds; made when first needed */
	struct afp_rx_metadata *known; /* [nframes] `magic`: of which of the frame's lives, 0 = none; made when first needed */

	/* Control path: pools and ports come and go, frames move between the free list and the pools in bulk. */
	_Alignas(64) pthread_mutex_t lock;
	uint32_t nfree;
	uint32_t *free_list; /* [nframes], a stack */
	struct afp_pool *pools[AFP_MAX_POOLS];
	struct afp_port *ports[AFP_MAX_PORTS];
	_Atomic uint64_t foreign_puts; /* refused addresses that belong to no frame */
};

static inline uint64_t word_load(const struct afp_table *t, uint32_t frame)
{
	return atomic_load_explicit(&t->word[frame], memory_order_relaxed);
}
static inline void word_store(struct afp_table *t, uint32_t frame, uint64_t w)
{
	atomic_store_explicit(&t->word[frame], w, memory_order_relaxed);
}
/* Is it this word? A plain load, which an aligned word's is on every machine that has AF_XDP: the compiler makes one instruction
 * of it and the comparison, of an atomic load never. */
static inline bool word_is(const _Atomic uint64_t *word, uint64_t frame, uint64_t w)
{
#if defined(__SANITIZE_THREAD__)
	return atomic_load_explicit(&word[frame], memory_order_relaxed) == w;
#else
	return *(const uint64_t *)&word[frame] == w;
#endif
}
/* Others may have written to frames before they let go of them: from here on that is seen. ThreadSanitizer knows no fences; it is
 * told by a load of each frame's word, of `frame` for every `i` below `n`. */
#if defined(__SANITIZE_THREAD__)
#define ACQUIRE_FRAMES(t, i, n, frame)          \
	for (uint32_t i = 0; i < (n); i++)      \
		if ((frame) != AFP_NO_FRAME)    \
	(void)atomic_load_explicit(&(t)->word[frame], memory_order_acquire)
#else
#define ACQUIRE_FRAMES(t, i, n, frame) atomic_thread_fence(memory_order_acquire)
#endif
/* The frame an address lies in, or AFP_NO_FRAME. The low bits are offset and headroom: addresses come back with them. */
static inline uint32_t frame_of(const struct afp_table *t, uint64_t addr)
{
	uint32_t at;

	if (unlikely(addr >= t->size))
		return AFP_NO_FRAME;
	if (likely(!t->block_frames))
		return (uint32_t)(addr >> t->frame_shift);
	at = (uint32_t)(addr & (AFP_BLOCK - 1)) / t->frame_size;
	return at < t->block_frames ? (uint32_t)(addr >> AFP_BLOCK_SHIFT) * t->block_frames + at : AFP_NO_FRAME;
}
/* The same for loops that aligned frames alone come to. */
static inline uint32_t frame_direct(const struct afp_table *t, uint64_t addr)
{
	return likely(addr < t->direct) ? (uint32_t)(addr >> t->frame_shift) : AFP_NO_FRAME;
}
static inline uint64_t frame_addr(const struct afp_table *t, uint32_t frame)
{
	if (likely(!t->block_frames))
		return (uint64_t)frame << t->frame_shift;
	return (uint64_t)(frame / t->block_frames) << AFP_BLOCK_SHIFT | (uint64_t)(frame % t->block_frames) * t->frame_size;
}
/* Bytes from the start of its frame. */
static inline uint32_t frame_offset(const struct afp_table *t, uint64_t addr)
{
	return likely(!t->block_frames) ? addr & (t->frame_size - 1) : (uint32_t)(addr & (AFP_BLOCK - 1)) % t->frame_size;
}
/* An identity for the calling thread, unique among the living ones; never 0. */
static inline uintptr_t afp_self(void)
{
	return (uintptr_t)__builtin_thread_pointer();
}

#endif
