/* SPDX-License-Identifier: Apache-2.0 */
/* model_error.c - keeps each thread's last error: one fixed buffer, nothing allocated. */
#include "io/model_error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "io/io_error.h"

static _Thread_local char last_error[sizeof((io_error *)0)->text];

const char *moe_io_last_error(void)
{
    return last_error;
}

moe_status model_fail(moe_status status, const char *path, const char *format, ...)
{
    io_error error;
    char text[sizeof error.text];
    va_list values;
    va_start(values, format);
    vsnprintf(text, sizeof text, format, values);
    va_end(values);
    io_fail(&error, IO_E_FORMAT, path, "%s", text); /* shortens the path, masks control bytes */
    memcpy(last_error, error.text, sizeof last_error);
    return status;
}

moe_status model_argument(moe_status status, const char *format, ...)
{
    va_list values;
    va_start(values, format);
    vsnprintf(last_error, sizeof last_error, format, values);
    va_end(values);
    io_mask_controls(last_error);
    return status;
}

moe_status model_reader(const io_error *error)
{
    static const moe_status statuses[] = {
        [IO_OK] = MOE_OK,           [IO_E_OPEN] = MOE_E_OPEN,
        [IO_E_READ] = MOE_E_READ,   [IO_E_FORMAT] = MOE_E_FORMAT,
        [IO_E_NOMEM] = MOE_E_NOMEM, [IO_E_WRITE] = MOE_E_WRITE,
        [IO_E_STALE] = MOE_E_STALE,
    };
    memcpy(last_error, error->text, sizeof last_error);
    return statuses[error->status];
}

moe_status model_core(moe_status status, const char *path)
{
    return model_fail(status, path, "%s", moe_last_error());
}
