/* SPDX-License-Identifier: Apache-2.0 */
/* sniff.c - tells files apart by their first bytes. */
#define _POSIX_C_SOURCE 200809L

#include "io/sniff.h"

#include <string.h>
#include <sys/stat.h>

#include "io/file.h"
#include "io/packed.h"

enum { HEAD = 64, BRACE_AT = 8 };

/* Whether the bytes are JSON text that starts with {, as far as they go: no control bytes. */
static bool is_json(const unsigned char *head, size_t n)
{
    size_t i = 0;
    while (i < n && memchr(" \t\n\r", head[i], 4)) i++;
    if (i == n || head[i] != '{') return false;
    for (; i < n; i++) {
        if (head[i] < 0x20 && !memchr("\t\n\r", head[i], 3)) return false;
    }
    return true;
}

/* A safetensors header follows its length, eight bytes of which the last are 0: a text has a { at the
 * same place now and then, but no such bytes. */
static io_kind kind_of(const unsigned char *head, size_t n)
{
    if (n >= 4 && (!memcmp(head, "GGUF", 4) || !memcmp(head, "FUGG", 4))) return IO_GGUF;
    if (n >= PACKED_NAME && !memcmp(head, PACKED_MAGIC, PACKED_NAME)) return IO_PACKED;
    if (is_json(head, n)) return IO_JSON;
    return n > BRACE_AT && head[BRACE_AT] == '{' ? IO_SAFETENSORS : IO_NEITHER;
}

io_status io_sniff(const char *path, io_kind *kind, io_error *error)
{
    struct stat about;
    if (stat(path, &about) == 0 && S_ISDIR(about.st_mode)) {
        *kind = IO_DIRECTORY;
        return IO_OK;
    }
    io_file f;
    unsigned char head[HEAD];
    io_status status = io_file_open(&f, path, error);
    if (status != IO_OK) return status;
    size_t n = f.size < HEAD ? f.size : HEAD;
    status = io_file_read(&f, 0, head, n, error);
    io_file_close(&f);
    if (status == IO_OK) *kind = kind_of(head, n);
    return status;
}
