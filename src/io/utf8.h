/* SPDX-License-Identifier: Apache-2.0 */
/* utf8.h - which bytes are UTF-8. */
#ifndef MOE_IO_UTF8_H
#define MOE_IO_UTF8_H

#include <stdbool.h>
#include <stddef.h>

/* The length of the UTF-8 character at p, of which n >= 1 bytes are there; 0 if it is none.  The
 * bounds of the second byte exclude overlong forms, surrogates and code points above U+10FFFF
 * (Unicode 15, table 3-7). */
static inline size_t io_utf8_length(const unsigned char *p, size_t n)
{
    if (p[0] < 0x80) return 1;
    if (p[0] < 0xC2 || p[0] > 0xF4) return 0;
    size_t length = p[0] < 0xE0 ? 2 : p[0] < 0xF0 ? 3 : 4;
    unsigned char low = p[0] == 0xE0 ? 0xA0 : p[0] == 0xF0 ? 0x90 : 0x80;
    unsigned char high = p[0] == 0xED ? 0x9F : p[0] == 0xF4 ? 0x8F : 0xBF;
    if (n < length || p[1] < low || p[1] > high) return 0;
    for (size_t i = 2; i < length; i++) {
        if ((p[i] & 0xC0) != 0x80) return 0;
    }
    return length;
}

/* Whether the n bytes are UTF-8 without a NUL: a C string's text. */
static inline bool io_utf8_text(const char *text, size_t n)
{
    for (size_t i = 0, length; i < n; i += length) {
        length = io_utf8_length((const unsigned char *)text + i, n - i);
        if (length == 0 || text[i] == '\0') return false;
    }
    return true;
}

#endif
