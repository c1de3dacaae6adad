/* SPDX-License-Identifier: Apache-2.0 */
/* cpu.c - instruction sets, affinity mask and cgroup quota. */
#define _GNU_SOURCE
#include "cpu.h"

#include <fcntl.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#if defined(__x86_64__)
#include <cpuid.h>

/* What CPUID and the operating system (XCR0) together allow. */
typedef struct features {
    uint32_t ecx1, ebx7, ecx7, eax7_1, xcr0;
} features;

static features read_features(void)
{
    features f = {0, 0, 0, 0, 0};
    uint32_t eax, ebx, ecx, edx;
    if (!__get_cpuid(1, &eax, &ebx, &f.ecx1, &edx) || (f.ecx1 & bit_OSXSAVE) == 0) return f;
    __asm__ volatile("xgetbv" : "=a"(f.xcr0), "=d"(edx) : "c"(0));
    if (__get_cpuid_count(7, 0, &eax, &f.ebx7, &f.ecx7, &edx) && eax >= 1)
        __get_cpuid_count(7, 1, &f.eax7_1, &ebx, &ecx, &edx);
    return f;
}

static bool has(uint32_t word, uint32_t bits)
{
    return (word & bits) == bits;
}

static bool has_avx2(const features *f)
{
    return has(f->xcr0, 0x6) && has(f->ecx1, bit_AVX | bit_FMA | bit_F16C) &&
           has(f->ebx7, bit_AVX2);
}

static bool has_avx512(const features *f)
{
    return has(f->xcr0, 0xE6) &&
           has(f->ebx7, bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL);
}

static bool has_vnni(const features *f)
{
    return has(f->ecx7, bit_AVX512VNNI | bit_AVX512VBMI | bit_AVX512VBMI2);
}

static bool has_bf16(const features *f)
{
    return has(f->eax7_1, bit_AVX512BF16);
}

#elif defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>

/* What the kernel says that programs may use. */
typedef struct features {
    unsigned long hwcap, hwcap2;
} features;

static features read_features(void)
{
    return (features){getauxval(AT_HWCAP), getauxval(AT_HWCAP2)};
}

static bool has_neon(const features *f)
{
    return (f->hwcap & HWCAP_ASIMD) != 0;
}

static bool has_dotprod(const features *f)
{
    return (f->hwcap & HWCAP_ASIMDDP) != 0;
}

static bool has_i8mm(const features *f)
{
    return (f->hwcap2 & HWCAP2_I8MM) != 0;
}

#else

typedef struct features {
    bool none;
} features;

static features read_features(void)
{
    return (features){true};
}
#endif

static bool has_c(const features *f)
{
    (void)f;
    return true;
}

/* The levels, each with what it needs beyond the one before. */
static const struct {
    const kernel_table *table;
    bool (*has)(const features *f);
} levels[] = {
    {&kernel_table_scalar, has_c},
#if defined(__x86_64__)
    {&kernel_table_avx2, has_avx2},       {&kernel_table_avx512, has_avx512},
    {&kernel_table_avx512vnni, has_vnni}, {&kernel_table_avx512bf16, has_bf16},
#elif defined(__aarch64__)
    {&kernel_table_neon, has_neon},
    {&kernel_table_neon_dotprod, has_dotprod},
    {&kernel_table_neon_i8mm, has_i8mm},
#endif
};

enum { LEVELS = sizeof levels / sizeof levels[0] };

/* How many of the levels this machine has.  A hypervisor makes CPUID cost microseconds, so that
 * the answer, which cannot change, is kept; threads that ask at once all find the same. */
static size_t count_levels(void)
{
    static atomic_size_t known; /* 0: not yet asked */
    size_t n = atomic_load_explicit(&known, memory_order_relaxed);
    if (n != 0) return n;
    const features f = read_features();
    while (n < LEVELS && levels[n].has(&f)) n++;
    atomic_store_explicit(&known, n, memory_order_relaxed);
    return n;
}

const kernel_table *cpu_level(size_t i)
{
    return i < count_levels() ? levels[i].table : NULL;
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

/* Processors' worth of time; a quota that is not positive is none: 0. */
static long processors_of(long quota, long period)
{
    return quota > 0 && period > 0 ? (quota + period - 1) / period : 0;
}

/* Of a version 2 cgroup: one line, "quota period" or "max period". */
static long quota_v2(const char *directory)
{
    char path[1200], text[64];
    long quota, period;
    snprintf(path, sizeof path, "%s/cpu.max", directory);
    if (!read_text(path, text, sizeof text)) return 0;
    return sscanf(text, "%ld %ld", &quota, &period) == 2 ? processors_of(quota, period) : 0;
}

/* Of a version 1 cgroup: two files, and -1 for no limit. */
static long quota_v1(const char *directory)
{
    static const char *const names[] = {"cpu.cfs_quota_us", "cpu.cfs_period_us"};
    char path[1200], text[64];
    long value[2];
    for (int i = 0; i < 2; i++) {
        snprintf(path, sizeof path, "%s/%s", directory, names[i]);
        if (!read_text(path, text, sizeof text) || sscanf(text, "%ld", &value[i]) != 1) return 0;
    }
    return processors_of(value[0], value[1]);
}

/* The least quota of the group that the line of /proc/self/cgroup after `key` names and of those
 * above it; 0: no limit. */
static long least_quota(const char *groups, const char *key, const char *mount,
                        long (*quota_of)(const char *directory))
{
    char path[1100];
    const char *group = strstr(groups, key);
    if (group == NULL) return 0;
    group += strlen(key);
    int length = snprintf(path, sizeof path, "%s%.*s", mount, (int)strcspn(group, "\n"), group);
    if (length < 0 || (size_t)length >= sizeof path) return 0;
    for (long least = 0;;) {
        long quota = quota_of(path);
        if (quota > 0 && (least == 0 || quota < least)) least = quota;
        char *slash = strrchr(path, '/');
        if (slash == NULL || slash < path + strlen(mount)) return least;
        *slash = '\0';
    }
}

/* The least quota of this process's cgroups, version 2 and 1; 0: no limit. */
static long cgroup_quota(void)
{
    char text[1024];
    if (!read_text("/proc/self/cgroup", text, sizeof text)) return 0;
    long v2 = least_quota(text, "0::", "/sys/fs/cgroup", quota_v2);
    if (v2 > 0) return v2;
    static const char *const keys[] = {":cpu:", ":cpu,cpuacct:", ":cpuacct,cpu:"};
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        long v1 = least_quota(text, keys[i], "/sys/fs/cgroup/cpu", quota_v1);
        if (v1 > 0) return v1;
    }
    return 0;
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
