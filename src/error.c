/* SPDX-License-Identifier: Apache-2.0 */
/* error.c - status names and the last error of each thread: one fixed buffer, nothing allocated. */
#include "error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum { TEXT = 512 };

static _Thread_local char last_error[TEXT];
static _Thread_local unsigned errors;

/* One line, whatever text of the caller's is in it. */
static void keep(const char *text)
{
    size_t n = 0;
    for (; n < TEXT - 1 && text[n] != '\0'; n++)
        last_error[n] = (unsigned char)text[n] < ' ' ? '?' : text[n];
    last_error[n] = '\0';
    errors++;
}

moe_status error_set(moe_status status, const char *format, ...)
{
    char text[TEXT];
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    keep(text);
    return status;
}

void error_prefix(const char *format, ...)
{
    char text[2 * TEXT];
    va_list list;
    va_start(list, format);
    vsnprintf(text, TEXT, format, list);
    va_end(list);
    memcpy(text + strlen(text), last_error, TEXT); /* a string shorter than TEXT */
    keep(text);
}

unsigned error_count(void)
{
    return errors;
}

moe_status error_struct_size(const void *structure, size_t known, const char *name)
{
    enum { LARGEST = 4096 }; /* beyond any version to come: the field is not what it should be */
    const unsigned char *bytes = structure;
    size_t size;
    memcpy(&size, bytes, sizeof size);
    if (size < known)
        return error_set(MOE_E_ABI, "struct_size = %zu: must be at least %zu (%s_init sets it)",
                         size, known, name);
    if (size > LARGEST)
        return error_set(MOE_E_ABI, "struct_size = %zu: no version of %s is so large", size, name);
    for (size_t i = known; i < size; i++)
        if (bytes[i] != 0)
            return error_set(MOE_E_ABI,
                             "struct_size = %zu: a field of %s past byte %zu is set that this "
                             "library (version %s) does not know",
                             size, name, known, moe_version());
    return MOE_OK;
}

const char *moe_last_error(void)
{
    return last_error;
}

const char *moe_status_name(moe_status status)
{
    static const char *const names[] = {
        "MOE_OK",           "MOE_E_NULL_ARG",    "MOE_E_ABI",      "MOE_E_BAD_ENUM",
        "MOE_E_VALUE",      "MOE_E_DIM",         "MOE_E_SHAPE",    "MOE_E_DTYPE",
        "MOE_E_LAYOUT",     "MOE_E_UNSUPPORTED", "MOE_E_OVERFLOW", "MOE_E_EXPERT_INDEX",
        "MOE_E_RANK_RANGE", "MOE_E_ALIGN",       "MOE_E_ALIAS",    "MOE_E_NOMEM",
        "MOE_E_ISA",        "MOE_E_BUSY",        "MOE_E_OPEN",     "MOE_E_READ",
        "MOE_E_WRITE",      "MOE_E_FORMAT",      "MOE_E_MODEL",    "MOE_E_STALE",
    };
    size_t i = (size_t)status;
    return i < sizeof names / sizeof names[0] ? names[i] : "unknown moe_status";
}
