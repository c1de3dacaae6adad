/* SPDX-License-Identifier: Apache-2.0 */
/* table.h - rows of text, printed as one table that is as wide as its cells. */
#ifndef MOE_TABLE_H
#define MOE_TABLE_H

#include <stdbool.h>
#include <stddef.h>

/* A column's title; in front of it '<' or '>': where its cells stand. */
typedef struct table {
    const char *const *titles;
    size_t columns;
    char **cell;
    size_t cells, room;
    bool no_memory;
} table;

/* Appends the next cell of the row; text of any origin. */
__attribute__((format(printf, 2, 3))) void table_cell(table *t, const char *format, ...);

/* The same for bytes, as megabytes. */
void table_megabytes(table *t, double bytes);

/* Prints whole rows; false, and nothing, if memory ran out on the way. */
bool table_print(const table *t);
void table_free(table *t); /* fine if it is all zero */

#endif
