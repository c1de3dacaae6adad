/* SPDX-License-Identifier: Apache-2.0 */
/* machine.c - reads /proc and /sys.
 *
 * What the machine does not tell is "unknown", never guessed; but for the size of a cache, for
 * which see machine_llc. */
#define _GNU_SOURCE 1

#include "machine.h"

#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

bool machine_first_line(const char *path, char *line, int size)
{
    FILE *file = fopen(path, "r");
    if (!file) return false;
    bool found = fgets(line, size, file) != NULL;
    fclose(file);
    if (found) line[strcspn(line, "\n")] = '\0';
    return found;
}

static bool cache_of(int cpu, int index, const char *what, char *line, int size)
{
    char path[96];
    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/cache/index%d/%s", cpu, index, what);
    return machine_first_line(path, line, size);
}

bool machine_cache(int index, const char *what, char *line, int size)
{
    return cache_of(0, index, what, line, size);
}

void machine_cpu(char *model, size_t size)
{
    char line[512];
    snprintf(model, size, "unknown");
    FILE *file = fopen("/proc/cpuinfo", "r");
    if (!file) return;
    while (fgets(line, sizeof line, file)) {
        const char *colon = strchr(line, ':');
        if (strncmp(line, "model name", 10) != 0 || !colon) continue; /* Arm kernels have none */
        line[strcspn(line, "\n")] = '\0';
        snprintf(model, size, "%s", colon + 1 + strspn(colon + 1, " "));
        break;
    }
    fclose(file);
}

void machine_kernel(char *name, size_t size)
{
    struct utsname u;
    if (uname(&u) == 0)
        snprintf(name, size, "%s %s", u.sysname, u.release);
    else
        snprintf(name, size, "unknown");
}

void machine_huge_pages(char *mode, size_t size)
{
    char line[128], *chosen;
    snprintf(mode, size, "unknown");
    if (!machine_first_line("/sys/kernel/mm/transparent_hugepage/enabled", line, sizeof line))
        return;
    if ((chosen = strchr(line, '[')) != NULL)
        snprintf(mode, size, "%.*s", (int)strcspn(chosen + 1, "]"), chosen + 1);
}

/* ---- CPUs ---------------------------------------------------------------------------------- */

/* Whether the cpu is the first of its core's. */
static bool is_first_sibling(int cpu)
{
    char path[96], line[64];
    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", cpu);
    return !machine_first_line(path, line, sizeof line) || atoi(line) == cpu;
}

size_t machine_cpus(int *cpu, size_t most)
{
    cpu_set_t set;
    size_t n = 0;
    if (sched_getaffinity(0, sizeof set, &set) != 0) return 0;
    for (int later = 0; later < 2; later++)
        for (int i = 0; i < CPU_SETSIZE; i++) {
            if (!CPU_ISSET((size_t)i, &set) || is_first_sibling(i) == later) continue;
            if (n < most) cpu[n] = i;
            n++;
        }
    return n;
}

/* "32768K" in bytes. */
static size_t cache_bytes(const char *text)
{
    char *end;
    size_t n = (size_t)strtoul(text, &end, 10);
    return *end == 'K' ? n << 10 : *end == 'M' ? n << 20 : *end == 'G' ? n << 30 : n;
}

/* The last cache of a cpu: its bytes, and who shares it. */
static size_t last_cache(int cpu, char *shared, int size)
{
    char line[64];
    size_t bytes = 0;
    int highest = 0;
    for (int i = 0; cache_of(cpu, i, "level", line, sizeof line); i++) {
        int level = atoi(line);
        if (level < highest || !cache_of(cpu, i, "size", line, sizeof line)) continue;
        size_t found = cache_bytes(line);
        if (!cache_of(cpu, i, "shared_cpu_list", line, sizeof line)) continue;
        highest = level;
        bytes = found;
        snprintf(shared, (size_t)size, "%s", line);
    }
    return bytes;
}

size_t machine_llc(const int *cpu, size_t n)
{
    enum { SHARED = 64 };
    static char seen[MACHINE_MAX_CPUS][SHARED];
    size_t caches = 0, sum = 0;
    for (size_t i = 0; i < n && i < MACHINE_MAX_CPUS; i++) {
        size_t bytes = last_cache(cpu[i], seen[caches], SHARED), same = 0;
        if (bytes == 0) continue;
        while (strcmp(seen[same], seen[caches]) != 0) same++;
        if (same < caches) continue;
        caches++;
        sum += bytes;
    }
#ifdef _SC_LEVEL3_CACHE_SIZE
    if (sum == 0 && sysconf(_SC_LEVEL3_CACHE_SIZE) > 0)
        sum = (size_t)sysconf(_SC_LEVEL3_CACHE_SIZE);
#endif
    return sum ? sum : (size_t)32 << 20;
}

/* ---- memory -------------------------------------------------------------------------------- */

/* What the control group of the process leaves; SIZE_MAX if it sets no limit. */
static size_t group_memory(void)
{
    char limit[32], used[32];
    if (!machine_first_line("/sys/fs/cgroup/memory.max", limit, sizeof limit) ||
        !machine_first_line("/sys/fs/cgroup/memory.current", used, sizeof used) ||
        strcmp(limit, "max") == 0)
        return SIZE_MAX;
    unsigned long long most = strtoull(limit, NULL, 10), now = strtoull(used, NULL, 10);
    return most > now ? (size_t)(most - now) : 0;
}

size_t machine_free_memory(void)
{
    char line[128];
    size_t bytes = SIZE_MAX, group = group_memory();
    FILE *file = fopen("/proc/meminfo", "r");
    while (file && fgets(line, sizeof line, file)) {
        unsigned long long kib;
        if (sscanf(line, "MemAvailable: %llu kB", &kib) != 1) continue;
        bytes = (size_t)kib << 10;
        break;
    }
    if (file) fclose(file);
    return group < bytes ? group : bytes;
}
