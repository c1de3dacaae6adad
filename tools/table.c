/* SPDX-License-Identifier: Apache-2.0 */
/* table.c - keeps the cells until the widths are known.
 *
 * Control characters in cells come out as '?' and count as one character. */
#define _GNU_SOURCE 1

#include "table.h"

#include "cli.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

static bool make_room(table *t)
{
    if (t->cells < t->room) return true;
    size_t room = t->room ? 2 * t->room : 64;
    char **more = realloc(t->cell, room * sizeof *more);
    if (!more) return false;
    t->cell = more;
    t->room = room;
    return true;
}

void table_cell(table *t, const char *format, ...)
{
    char *text = NULL;
    va_list list;
    va_start(list, format);
    if (t->no_memory || !make_room(t) || vasprintf(&text, format, list) < 0)
        t->no_memory = true;
    else
        t->cell[t->cells++] = text;
    va_end(list);
}

void table_megabytes(table *t, double bytes)
{
    table_cell(t, "%.*f", bytes < 1e7 ? 3 : 1, 1e-6 * bytes);
}

static void repeat(char c, size_t n)
{
    while (n-- > 0) putchar(c);
}

static void print_cell(const char *text, size_t width, bool right)
{
    size_t rest = width - cli_text_width(text);
    if (right) repeat(' ', rest);
    cli_print_text(text);
    if (!right) repeat(' ', rest);
}

static size_t width_of(const table *t, size_t column)
{
    size_t width = cli_text_width(t->titles[column] + 1);
    for (size_t i = column; i < t->cells; i += t->columns) {
        size_t n = cli_text_width(t->cell[i]);
        if (n > width) width = n;
    }
    return width;
}

static void print_row(const table *t, const size_t *width, char *const *cell)
{
    for (size_t c = 0; c < t->columns; c++) {
        bool right = t->titles[c][0] == '>';
        fputs("| ", stdout);
        print_cell(cell ? cell[c] : t->titles[c] + 1, width[c], right);
        putchar(' ');
    }
    puts("|");
}

bool table_print(const table *t)
{
    size_t *width = t->no_memory ? NULL : malloc(t->columns * sizeof *width);
    if (!width) return false;
    for (size_t c = 0; c < t->columns; c++) width[c] = width_of(t, c);
    print_row(t, width, NULL);
    for (size_t c = 0; c < t->columns; c++) {
        bool right = t->titles[c][0] == '>';
        fputs(right ? "|" : "|:", stdout);
        repeat('-', width[c] + 1);
        if (right) putchar(':');
    }
    puts("|");
    for (size_t i = 0; i + t->columns <= t->cells; i += t->columns)
        print_row(t, width, &t->cell[i]);
    free(width);
    return true;
}

void table_free(table *t)
{
    for (size_t i = 0; i < t->cells; i++) free(t->cell[i]);
    free(t->cell);
    *t = (table){0};
}
