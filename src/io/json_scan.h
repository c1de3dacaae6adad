/* SPDX-License-Identifier: Apache-2.0 */
/* json_scan.h - a pull scanner over JSON text of foreign origin.
 *
 * The caller asks for what its format puts next; anything else breaks a rule.  There is no tree,
 * no allocation and no recursion, so depth and memory are bounded by the caller's own code and
 * time is linear in the text.  (The tree of a general parser takes up to 80 times the text, and
 * jansson 2.14 writes out of bounds when an allocation fails inside a string.)  Strings hold no NUL.
 * Numbers that count or place something are whole, from 0 to 2^63-1 (io_json_integer); whatever else
 * a text may hold is read as an io_json_value. */
#ifndef MOE_IO_JSON_SCAN_H
#define MOE_IO_JSON_SCAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct io_json {
    char *text; /* not NUL-terminated; strings are decoded in place */
    size_t size;
    size_t at;        /* the next byte to read */
    size_t token;     /* the first byte of the latest token; once a rule is broken, where */
    const char *rule; /* NULL until one is broken; then nothing more may be read */
} io_json;

/* Every function that returns false without having reached the end of a list has set rule. */

/* Notes that rule, a constant, is broken at the latest token.  Returns false. */
bool io_json_fail(io_json *s, const char *rule);

/* The next byte that is no white space, from where the next token starts; -1 at the end. */
int io_json_peek(io_json *s);

bool io_json_open(io_json *s, char bracket); /* '{' or '[' */

/* To be called before each member of a list with the number of members read so far: true if
 * there is one more, false after the closing bracket or a broken rule. */
bool io_json_next(io_json *s, char closing_bracket, size_t members_read);

bool io_json_string(io_json *s, const char **value); /* valid UTF-8, NUL-terminated, inside text */
bool io_json_key(io_json *s, const char **value);    /* a string and its ':' */
bool io_json_integer(io_json *s, int64_t *value);    /* never negative */
bool io_json_end(io_json *s);                        /* nothing but white space is left */

/* ---- any value (json_value.c) ---------------------------------------------------------------- */

typedef enum io_json_kind {
    IO_JSON_NULL,
    IO_JSON_FALSE,
    IO_JSON_TRUE,
    IO_JSON_INTEGER, /* no fraction, no exponent; of any sign and size */
    IO_JSON_REAL,    /* any other number; also NaN, Infinity and -Infinity, as Python writes them */
    IO_JSON_STRING,
    IO_JSON_ARRAY,
    IO_JSON_OBJECT
} io_json_kind;

typedef struct io_json_value {
    io_json_kind kind;
    const char *text; /* a string's, as from io_json_string; a number's characters */
    size_t length;    /* of a number's characters */
} io_json_value;

/* Reads a value that is no list, or a list's opening bracket. */
bool io_json_read(io_json *s, io_json_value *value);

/* Reads a value with all that is in it, lists in lists up to depth_max (at most 64) of them. */
bool io_json_skip(io_json *s, int depth_max);

/* A number's value; false if it is of another kind or does not fit: the integer 64 bits, the real
 * a finite double (correctly rounded, whatever the locale), from at most 1000 characters. */
bool io_json_to_integer(const io_json_value *value, int64_t *integer);
bool io_json_to_real(const io_json_value *value, double *real);

#endif
