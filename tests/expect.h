/* SPDX-License-Identifier: Apache-2.0 */
/* expect.h - cmocka's headers, and what a refused call must look like. */
#ifndef MOE_TEST_EXPECT_H
#define MOE_TEST_EXPECT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "layer.h"

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

/* A set of statuses. */
#define STATUS(status) (1u << (status))

/* Who refuses: moe_tkg_output and moe_tkg alike, or moe_tkg alone, because the reason lies in
 * data. */
typedef enum refusal { BY_SHAPE, BY_DATA } refusal;

/* moe_tkg refuses args: the status is one of statuses, the last error names both strings (NULL:
 * not looked at), and 64 KiB of output are as they were.  moe_tkg_output says the same, or
 * MOE_OK if BY_DATA. */
void expect_refused(const moe_tkg_args *args, unsigned statuses, refusal by, const char *name,
                    const char *value);

/* moe_tkg_output accepts args. */
void expect_accepted(const moe_tkg_args *args);

/* Both accept: runs l. */
void expect_runs(const layer *l);

#endif
