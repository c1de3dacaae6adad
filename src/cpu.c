/* SPDX-License-Identifier: Apache-2.0 */
/* cpu.c - instruction sets, affinity mask and cgroup quota.  Asks anew each time: nothing is remembered. */
#define _GNU_SOURCE
#include "cpu.h"

#include <fcntl.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

const kernel_table *cpu_level(size_t i)
{
    return i == 0 ? &kernel_table_scalar : NULL;
}

const kernel_table *cpu_best(void)
{
    size_t i = 0;
    while (cpu_level(i + 1) != NULL) i++;
    return cpu_level(i);
}

/* The file's text in text (size bytes with its NUL); false if there is none. */
static bool read_text(const char *path, char *text, size_t size)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return false;
    ssize_t n = read(fd, text, size - 1);
    close(fd);
    if (n <= 0) return false;
    text[n] = '\0';
    return true;
}

/* Processors' worth of time that one cpu.max line, "quota period" or "max period", grants; 0: no limit. */
static long quota_of(const char *path)
{
    char text[64];
    long quota, period;
    if (!read_text(path, text, sizeof text)) return 0;
    if (sscanf(text, "%ld %ld", &quota, &period) != 2 || quota <= 0 || period <= 0) return 0;
    return (quota + period - 1) / period;
}

/* The least quota of this process's cgroup (version 2) and those above it; 0: no limit. */
static long cgroup_quota(void)
{
    char text[1024], path[1200];
    if (!read_text("/proc/self/cgroup", text, sizeof text)) return 0;
    char *group = strstr(text, "0::/");
    if (group == NULL) return 0;
    group += strlen("0::");
    group[strcspn(group, "\n")] = '\0';
    long least = 0;
    for (;;) {
        snprintf(path, sizeof path, "/sys/fs/cgroup%s/cpu.max", group);
        long quota = quota_of(path);
        if (quota > 0 && (least == 0 || quota < least)) least = quota;
        char *slash = strrchr(group, '/');
        if (slash == NULL) return least;
        *slash = '\0';
    }
}

int cpu_count(void)
{
    cpu_set_t set;
    int count = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set)
                                                            : (int)sysconf(_SC_NPROCESSORS_ONLN);
    long quota = cgroup_quota();
    if (quota > 0 && quota < count) count = (int)quota;
    return count < 1 ? 1 : count;
}
