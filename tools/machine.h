/* SPDX-License-Identifier: Apache-2.0 */
/* machine.h - what the system says of this machine and of this build. */
#ifndef MOE_MACHINE_H
#define MOE_MACHINE_H

#include <stdbool.h>
#include <stddef.h>

enum { MACHINE_MAX_CPUS = 1024 };

#if defined(__clang__)
#define MACHINE_COMPILER "clang " __clang_version__
#elif defined(__GNUC__)
#define MACHINE_COMPILER "gcc " __VERSION__
#else
#define MACHINE_COMPILER "unknown"
#endif

/* The first line of path, without its newline; false if there is none. */
bool machine_first_line(const char *path, char *line, int size);

/* A line of the first CPU's cache number index: "level", "type", "size"; false if there is none. */
bool machine_cache(int index, const char *what, char *line, int size);

/* The CPU's model, "unknown" if the system does not say. */
void machine_cpu(char *model, size_t size);

/* "Linux 6.1.0". */
void machine_kernel(char *name, size_t size);

/* Transparent huge pages: "always", "madvise", "never" or "unknown". */
void machine_huge_pages(char *mode, size_t size);

/* The CPUs that the process may run on, one of each core before their siblings.  How many; at most
 * `most` are written. */
size_t machine_cpus(int *cpu, size_t most);

/* Bytes of the last-level caches of these CPUs together; a guess of 32 MiB if nothing is known. */
size_t machine_llc(const int *cpu, size_t n);

/* Bytes that can be allocated without swapping or being killed; SIZE_MAX if nothing is known. */
size_t machine_free_memory(void);

#endif
