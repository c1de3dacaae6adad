/* SPDX-License-Identifier: Apache-2.0 */
/* pack_bf12.h - bf16 panels, coded without loss. */
#ifndef MOE_PACK_BF12_H
#define MOE_PACK_BF12_H

#include "pack_lines.h"

/* Neighbouring panels of one expert with the same number of halves. */
typedef struct pack_bf12_run {
    const pack_source *s;
    size_t e;
    bool down;
    size_t first, count; /* at most PACK_RUN */
    size_t halves, k;
} pack_bf12_run;

/* How a panel is coded: as FORMAT_BF12, or left FORMAT_BF16 where that is not larger. */
typedef struct pack_bf12_coding {
    uint8_t exponent[16];
    uint32_t escapes;
    kernel_format format;
} pack_bf12_coding;

/* Bytes of the panel's stream. */
size_t pack_bf12_bytes(const pack_bf12_coding *c, size_t halves, size_t k);

/* Reads the panels of a run and chooses. */
void pack_bf12_choose(const pack_bf12_run *run, pack_bf12_coding *c);

/* Writes them. */
void pack_bf12_write(const pack_bf12_run *run, const pack_bf12_coding *c, uint8_t *const *stream);

/* Bytes of the stream of a coded panel of foreign origin, of which `bytes` are there; 0 if a kernel
 * could read outside it. */
size_t pack_bf12_sound(const uint8_t *stream, size_t bytes, size_t halves, size_t k);

#endif
