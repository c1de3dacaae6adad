/* SPDX-License-Identifier: Apache-2.0 */
/* io_error.c - builds the messages; refuses nothing. */
#define _POSIX_C_SOURCE 200809L

#include "io/io_error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum { NAME_SHOWN = 100, PATH_SHOWN = 200 };

static bool continues_character(char c)
{
    return ((unsigned char)c & 0xC0) == 0x80;
}

static bool is_control(char c)
{
    return (unsigned char)c < 0x20 || c == 0x7F;
}

/* C1 controls (U+0080..U+009F) act like ESC sequences in some terminals; in UTF-8 they start
 * with 0xC2. */
static bool is_c1_control(const char *p)
{
    return (unsigned char)p[0] == 0xC2 && (unsigned char)p[1] >= 0x80 && (unsigned char)p[1] < 0xA0;
}

void io_mask_controls(char *text)
{
    for (char *p = text; *p; p++) {
        if (is_c1_control(p)) {
            *p++ = '?';
            *p = '?';
        } else if (is_control(*p)) {
            *p = '?';
        }
    }
}

int io_clip(const char *name)
{
    size_t length = strnlen(name, NAME_SHOWN + 1);
    if (length <= NAME_SHOWN) return (int)length;
    length = NAME_SHOWN;
    while (length > 0 && continues_character(name[length])) length--;
    return (int)length;
}

io_status io_fail(io_error *error, io_status status, const char *path, const char *format, ...)
{
    if (!error) return status;
    size_t length = strlen(path);
    const char *tail = length > PATH_SHOWN ? path + (length - PATH_SHOWN) : path;
    while (continues_character(*tail)) tail++;
    int used = snprintf(error->text, sizeof error->text, "%s%s: ", tail == path ? "" : "...", tail);

    va_list values;
    va_start(values, format);
    vsnprintf(error->text + used, sizeof error->text - (size_t)used, format, values);
    va_end(values);
    io_mask_controls(error->text);
    error->status = status;
    return status;
}

io_status io_fail_errno(io_error *error, io_status status, const char *path, const char *what,
                        int cause)
{
    char text[128] = "";
    strerror_r(cause, text, sizeof text);
    return io_fail(error, status, path, "%s: %s", what, text);
}

io_status io_no_memory(io_error *error, const char *path)
{
    return io_fail(error, IO_E_NOMEM, path, "out of memory");
}
