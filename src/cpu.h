/* SPDX-License-Identifier: Apache-2.0 */
/* cpu.h - what this machine has: instruction sets, processors this process may use. */
#ifndef MOE_CPU_H
#define MOE_CPU_H

#include "kernel.h"

/* The kernel tables that this machine can run, weakest first; NULL past the last. */
const kernel_table *cpu_level(size_t i);

/* The best of them. */
const kernel_table *cpu_best(void);

/* Processors in the affinity mask, at most what the cgroup quota pays for; at least 1. */
int cpu_count(void);

#endif
