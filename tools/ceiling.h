/* SPDX-License-Identifier: Apache-2.0 */
/* ceiling.h - what this machine can do at best: bytes read per second, and multiply-accumulates
 * per second of the instruction that kernels use. */
#ifndef MOE_CEILING_H
#define MOE_CEILING_H

#include "team.h"

#include <moe_tkg.h>
#include <stdint.h>

/* ---- what an architecture's file offers: ceiling_x86.c, ceiling_arm.c ---------------------------- */

enum { CEILING_PAGE = 4096, CEILING_VARIANTS = 6, CEILING_ACCUMULATORS = 24 };

/* Before a loop over at most CEILING_ACCUMULATORS. */
#if defined(__clang__)
#define CEILING_UNROLLED _Pragma("clang loop unroll(full)")
#else
#define CEILING_UNROLLED _Pragma("GCC unroll 24")
#endif

/* Reads all `bytes` at p, as `streams` neighbouring pieces side by side, asking for lines `ahead`
 * bytes before they are used (0: not at all; nothing past the end is read, only asked for).  bytes:
 * a multiple of streams * CEILING_PAGE; p: at CEILING_PAGE. */
typedef void ceiling_read_fn(const uint8_t *p, size_t bytes, size_t streams, size_t ahead);

/* Runs the instruction 'rounds' times on each of several independent accumulators.  Returns how
 * often it ran. */
typedef uint64_t ceiling_dot_fn(uint64_t rounds);

typedef struct ceiling_dot_kind {
    const char *name;                      /* "vdpbf16ps zmm" */
    int macs;                              /* of one run of the instruction, or of its sequence */
    ceiling_dot_fn *run[CEILING_VARIANTS]; /* numbers of accumulators; NULL past the last */
} ceiling_dot_kind;

/* What a product is made of. */
typedef enum ceiling_operand { CEILING_F32, CEILING_BF16, CEILING_INT8 } ceiling_operand;

/* The widest loads of this machine; never NULL. */
ceiling_read_fn *ceiling_best_read(void);

/* The fastest instruction that kernels of an ISA level (moe_isa_level) may take these products
 * with; never NULL. */
const ceiling_dot_kind *ceiling_dot_of(const char *isa, ceiling_operand operand);

extern const ceiling_dot_kind ceiling_dot_plain; /* C without vectors */

/* ---- measuring ------------------------------------------------------------------------------- */

typedef struct ceiling_way {
    size_t streams, ahead;
    double gbps; /* the best that was seen */
} ceiling_way;

enum { CEILING_WAYS = 3 };

/* Reading: by the threads of a team, from a buffer that the caches cannot hold. */
typedef struct ceiling_reader {
    team *team;
    void *mapped;
    uint8_t *buffer;     /* in it, at a huge page */
    size_t bytes, piece; /* of the buffer; of one probe */
    size_t next;         /* where the next probe begins, and which way it reads */
    size_t turn;
    bool huge_pages;               /* asked for, and not refused */
    ceiling_way way[CEILING_WAYS]; /* best first */
    double best;                   /* of all probes, GB/s */
} ceiling_reader;

/* A buffer of at least `bytes`, filled: caches four times smaller still serve a tenth of it, eight
 * times smaller ones nothing.  Finds the best ways of reading it.  False: no memory. */
bool ceiling_reader_open(ceiling_reader *r, team *t, size_t bytes);
void ceiling_reader_close(ceiling_reader *r); /* fine if it did not open */

/* Reads a quarter of the buffer, going on where the last probe ended: GB/s. */
double ceiling_read(ceiling_reader *r);

/* Multiply-accumulates on all threads of the team for about `seconds`: GMAC/s, the best number of
 * accumulators in *variant (-1: to be found, which takes several times as long). */
double ceiling_dot(team *t, const ceiling_dot_kind *kind, double seconds, int *variant);

#endif
