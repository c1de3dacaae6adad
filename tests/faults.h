/* SPDX-License-Identifier: Apache-2.0 */
/* faults.h - lets calls of the C library and the system fail, and counts memory and descriptors.
 *
 * For programs that are linked with -Wl,--wrap for malloc, calloc, realloc, free, open, fstat, pread,
 * write, fsync, close, rename and realpath (tests/CMakeLists.txt). */
#ifndef MOE_TESTS_FAULTS_H
#define MOE_TESTS_FAULTS_H

#include <stdbool.h>
#include <stddef.h>

typedef enum call { NONE, ALLOC, OPEN, FSTAT, PREAD, WRITE, FSYNC, CLOSE, RENAME, REALPATH } call;

/* The fault that is planned: which call, how many of them succeed before, and how it fails.
 * With a cause of 0 a call moves no bytes; with short_moves every pread and write moves one byte
 * at most. */
typedef struct fault_plan {
    call what;
    int successes;
    int cause;
    bool short_moves;
    bool close_fails;
} fault_plan;

extern fault_plan plan;

extern int descriptors;   /* open now */
extern size_t live, peak; /* bytes allocated now, and at most since peak was last set */

void plan_fault(call what, int successes, int cause);

/* Whether the fault that was planned came. */
bool fault_came(void);

#endif
