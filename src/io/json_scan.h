/* SPDX-License-Identifier: Apache-2.0 */
/* json_scan.h - a pull scanner over JSON text of foreign origin.
 *
 * The caller asks for what its format puts next; anything else breaks a rule.  There is no tree,
 * no allocation and no recursion, so depth and memory are bounded by the caller's own code and
 * time is linear in the text.  (The tree of a general parser takes up to 80 times the text, and
 * jansson 2.14 writes out of bounds when an allocation fails inside a string.)  Narrower than
 * JSON where no format read here needs it: numbers are whole, from 0 to 2^63-1, and strings hold
 * no NUL. */
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

bool io_json_open(io_json *s, char bracket); /* '{' or '[' */

/* To be called before each member of a list with the number of members read so far: true if
 * there is one more, false after the closing bracket or a broken rule. */
bool io_json_next(io_json *s, char closing_bracket, size_t members_read);

bool io_json_string(io_json *s, const char **value); /* valid UTF-8, NUL-terminated, inside text */
bool io_json_key(io_json *s, const char **value);    /* a string and its ':' */
bool io_json_integer(io_json *s, int64_t *value);    /* never negative */
bool io_json_end(io_json *s);                        /* nothing but white space is left */

#endif
