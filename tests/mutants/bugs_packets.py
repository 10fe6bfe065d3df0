"""Bugs of the loop and of what it does to packets: dispatch.c, handler.c, headers.c, tap.c and others."""

from __future__ import annotations

from mutant import c

BUGS = (
    c(
        "tap-not-released",
        "ordering",
        "tap",
        "__atomic_store_n(&ring->head, head, __ATOMIC_RELEASE);",
        "__atomic_store_n(&ring->head, head, __ATOMIC_RELAXED);",
        "test_tap:tsan",
    ),
    c(
        "verdict-of-no-port",
        "bounds",
        "dispatch",
        "verdict < AFP_FORWARD || out >= e->nports ||",
        "verdict < AFP_FORWARD ||",
        "test_engine",
    ),
    c(
        "handler-sees-too-far",
        "bounds",
        "handler",
        "d->addr > size || d->len > size - d->addr",
        "d->addr > size",
        "test_handler",
    ),
    c(
        "tap-overwrites",
        "bounds",
        "tap",
        "if (head + length - tail > ring->size)",
        "if (head + length - tail > ring->size + 64)",
        "test_tap",
    ),
    c(
        "transport-header-cut",
        "bounds",
        "headers",
        "l->end - l->l4 >= size",
        "l->end - l->l4 >= size / 4",
        "test_headers",
    ),
    c(
        "refused-by-tx",
        "leaked reference",
        "dispatch",
        "afp_engine_drop(e, origin + sent, lost, E_REFUSED);",
        "",
        "test_engine",
    ),
    c(
        "spoiled-descriptor-sent",
        "leaked reference",
        "dispatch",
        "while (same < n && frame_of(e->table, descs[same].addr) == frame_of(e->table, origin[same].addr))",
        "while (same < n)",
        "test_engine",
    ),
    c(
        "udp-checksum-zero",
        "packet contents",
        "checksum",
        "if (zero_is_none && !value)",
        "if (0 && zero_is_none)",
        "test_headers",
    ),
    c(
        "metadata-of-the-frame-before",
        "metadata",
        "metadata",
        "if (unlikely(addr - frame_addr(t, frame) < sizeof(*known)))",
        "if (0)",
        "test_metadata",
    ),
    c(
        "metadata-of-an-earlier-life",
        "metadata",
        "metadata",
        "known[frame].magic == desc->gen",
        "known[frame].magic",
        "test_metadata",
    ),
    c("metadata-by-chance", "metadata", "metadata", "if (unlikely(known->magic != MAGIC))", "if (0)", "test_metadata"),
    c("metadata-told-again", "metadata", "metadata", "\t\tmemcpy(told, known, sizeof(*known));\n", "", "test_metadata"),
    c(
        "ttl-checksum",
        "packet contents",
        "checksum",
        "(uint16_t)~before + after",
        "before + after",
        "test_headers",
    ),
)
