/* SPDX-License-Identifier: Apache-2.0 */
/* bench_out.h - what a benchmark found, as a table or as JSON. */
#ifndef MOE_BENCH_OUT_H
#define MOE_BENCH_OUT_H

#include "bench_run.h"

/* The layer and the machine, a line each. */
void bench_print_head(const bench *b);

/* A table in Markdown, a line for each batch size and layer, and what its columns mean. */
void bench_print_rows(const bench *b);
void bench_print_foot(const bench *b);

/* {"shape": ..., "results": [...], "machine": {...}, ...}; NULL: no memory. */
json_t *bench_json(const bench *b);
json_t *bench_machine_json(const bench *b);

/* A row's keys. */
json_t *bench_row_json(const bench *b, const bench_row *r);

/* --list-shapes. */
void bench_print_shapes(void);
json_t *bench_shapes_json(void);

#endif
