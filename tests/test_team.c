/* SPDX-License-Identifier: Apache-2.0 */
/* test_team.c - loops: every index once, whoever comes late, is stuck or sleeps.
 *
 * What bodies write they write without atomics, so that ThreadSanitizer sees each step that a
 * loop's end or its opening does not order. */
#define _GNU_SOURCE
#include "threads.h"

#include "expect.h"
#include "wait.h"

#include <pthread.h>
#include <sched.h>
#include <stdlib.h>

static const int COUNTS[] = {1, 2, 3, 5, 8, 17};

/* All of the team may be awake at once. */
static threads *make_team(int count)
{
    threads *t = threads_create(count, count, &memory_default);
    assert_non_null(t);
    assert_int_equal(threads_count(t), count);
    return t;
}

static void end_team(threads *t)
{
    threads_destroy(t, &memory_default);
}

static void pass_time(long ns)
{
    nanosleep(&(struct timespec){.tv_nsec = ns}, NULL);
}

/* ---- every index once ------------------------------------------------------------------------ */

typedef struct marks {
    size_t n;
    unsigned char *times;
    const unsigned char *before; /* of the loop before: all 1 */
    size_t before_n;
} marks;

static void mark(void *arg, size_t i)
{
    marks *m = arg;
    m->times[i]++;
    if (m->before_n > 0 && m->before[(i * 7 + 3) % m->before_n] != 1) m->times[i] = 99;
}

/* A loop of n on t; what it marked, which the caller frees. */
static unsigned char *mark_all(threads *t, size_t n, const unsigned char *before, size_t before_n)
{
    unsigned char *times = calloc(n + 1, 1);
    assert_non_null(times);
    marks m = {n, times, before, before_n};
    threads_loop(t, n, mark, &m);
    memset(&m, 0, sizeof m); /* a body that still runs would see it */
    for (size_t i = 0; i < n; i++)
        if (times[i] != 1) fail_msg("n = %zu: index %zu ran %d times", n, i, times[i]);
    assert_int_equal(times[n], 0);
    return times;
}

/* Many loops in a row, of sizes around the number of threads and beyond; each reads what the one
 * before wrote.  gaps: the threads fall asleep between some and wake in the middle of others. */
static void stress(threads *t, unsigned loops, bool gaps)
{
    static const size_t sizes[] = {0, 1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 18, 33, 100, 1000};
    unsigned char *before = NULL;
    size_t before_n = 0;
    for (unsigned k = 0; k < loops; k++) {
        uint64_t random = layer_random(7, k, 0);
        size_t n = sizes[random % COUNT(sizes)];
        unsigned char *times = mark_all(t, n, before, before_n);
        free(before);
        before = times;
        before_n = n;
        if (gaps && random >> 32 & 1) pass_time((long)(random >> 33 & 0x1FFFF));
    }
    free(before);
}

static void test_every_index_once(void **state)
{
    (void)state;
    stress(NULL, 100, false);
    for (size_t c = 0; c < COUNT(COUNTS); c++) {
        threads *t = make_team(COUNTS[c]);
        assert_true(threads_take(t, SIZE_MAX));
        stress(t, 3000, false);
        threads_give(t);
        end_team(t);
    }
}

static void test_late_threads(void **state)
{
    (void)state;
    for (size_t c = 0; c < COUNT(COUNTS); c++) {
        threads *t = make_team(COUNTS[c]);
        for (unsigned k = 0; k < 20; k++) {
            assert_true(threads_take(t, k % 2 ? SIZE_MAX : 0));
            stress(t, 20, true);
            threads_give(t);
        }
        end_team(t);
    }
}

static void test_fewer_processors_than_threads(void **state)
{
    (void)state;
    for (int processors = 1; processors <= 3; processors++) {
        threads *t = threads_create(8, processors, &memory_default);
        assert_true(threads_take(t, SIZE_MAX));
        stress(t, 1000, true);
        threads_give(t);
        end_team(t);
    }
}

/* So many that indices are taken in runs. */
static void test_long_loops(void **state)
{
    (void)state;
    static const size_t sizes[] = {(1 << 20) - 1, 1 << 20, (1 << 20) + 1, (3 << 20) + 5};
    threads *t = make_team(3);
    for (size_t i = 0; i < COUNT(sizes); i++) free(mark_all(t, sizes[i], NULL, 0));
    end_team(t);
}

static void test_taken_once(void **state)
{
    (void)state;
    threads *t = make_team(2);
    assert_true(threads_take(t, 0));
    assert_false(threads_take(t, SIZE_MAX));
    threads_give(t);
    assert_true(threads_take(t, SIZE_MAX));
    threads_give(t);
    end_team(t);
}

/* ---- who runs what --------------------------------------------------------------------------- */

typedef struct order {
    size_t index[64], count;
} order;

static void note(void *arg, size_t i)
{
    order *o = arg;
    o->index[o->count++] = i;
}

/* A parallel_for that is not parallel: part user, then the others. */
static void one_first(void (*body)(void *arg, size_t i), void *arg, size_t n, void *user)
{
    const size_t *first = user;
    for (size_t i = 0; i < n; i++) body(arg, (*first + i) % n);
}

/* The first part to run takes its own range from the front, then the next ones' from the back. */
static void test_ranges(void **state)
{
    (void)state;
    size_t first;
    threads *t = threads_borrow(3, one_first, &first, &memory_default);
    static const size_t expected[3][10] = {{0, 1, 2, 5, 4, 3, 9, 8, 7, 6},
                                           {3, 4, 5, 9, 8, 7, 6, 2, 1, 0},
                                           {6, 7, 8, 9, 2, 1, 0, 5, 4, 3}};
    for (first = 0; first < 3; first++) {
        order o = {.count = 0};
        threads_loop(t, 10, note, &o);
        assert_int_equal(o.count, 10);
        assert_memory_equal(o.index, expected[first], sizeof expected[first]);
    }
    end_team(t);
}

static void note_parts(void (*body)(void *arg, size_t i), void *arg, size_t n, void *user)
{
    *(size_t *)user = n;
    for (size_t i = 0; i < n; i++) body(arg, i);
}

static void test_parts(void **state)
{
    (void)state;
    static const struct {
        size_t n, parts;
    } cases[] = {{0, 0}, {1, 0}, {2, 2}, {4, 4}, {5, 5}, {6, 5}, {1000, 5}};
    size_t parts;
    threads *t = threads_borrow(5, note_parts, &parts, &memory_default);
    for (size_t i = 0; i < COUNT(cases); i++) {
        parts = 0;
        free(mark_all(t, cases[i].n, NULL, 0));
        assert_int_equal(parts, cases[i].parts);
    }
    end_team(t);
}

/* ---- stuck ----------------------------------------------------------------------------------- */

typedef struct jam {
    pthread_t caller;
    bool stick_caller; /* or the first other thread */
    atomic_bool stuck;
    atomic_size_t done;
    size_t n;
} jam;

/* The first item of the thread that sticks ends only when all the others have. */
static void stick(void *arg, size_t i)
{
    (void)i;
    jam *j = arg;
    bool is_caller = pthread_equal(pthread_self(), j->caller) != 0;
    if (is_caller == j->stick_caller && !atomic_exchange(&j->stuck, true))
        while (atomic_load(&j->done) < j->n - 1) sched_yield();
    atomic_fetch_add(&j->done, 1);
}

static void test_stuck_thread(void **state)
{
    (void)state;
    for (size_t c = 1; c < COUNT(COUNTS); c++) {
        threads *t = make_team(COUNTS[c]);
        for (unsigned k = 0; k < 40; k++) {
            if (k % 8 == 0) pass_time(200000);
            assert_true(threads_take(t, SIZE_MAX));
            jam j = {.caller = pthread_self(), .stick_caller = k % 2 == 0, .n = 2 + k * 5};
            threads_loop(t, j.n, stick, &j);
            threads_give(t);
            assert_int_equal(atomic_load(&j.done), j.n);
        }
        end_team(t);
    }
}

/* Threads that sleep and are not worth waking are not waited for. */
static void test_sleepers_are_not_needed(void **state)
{
    (void)state;
    threads *t = make_team(5);
    pass_time(50000000);
    assert_true(threads_take(t, 0));
    free(mark_all(t, 60, NULL, 0));
    threads_give(t);
    end_team(t);
}

/* ---- threads that join ----------------------------------------------------------------------- */

typedef struct guest {
    pthread_t thread;
    threads *team;
    size_t w;
    const atomic_uint *word;
} guest;

static void *join(void *arg)
{
    const guest *g = arg;
    threads_join(g->team, g->w, g->word, 0);
    return NULL;
}

static void test_joined_threads(void **state)
{
    (void)state;
    for (size_t c = 0; c < COUNT(COUNTS); c++) {
        size_t bytes = (threads_bytes() + 63) / 64 * 64;
        threads *t = aligned_alloc(64, bytes);
        assert_non_null(t);
        memset(t, 0, bytes);
        atomic_uint word = 0;
        guest guests[17];
        for (int w = 1; w < COUNTS[c]; w++) {
            guests[w] = (guest){.team = t, .w = (size_t)w, .word = &word};
            assert_int_equal(pthread_create(&guests[w].thread, NULL, join, &guests[w]), 0);
        }
        threads_gather(t, COUNTS[c], COUNTS[c]);
        stress(t, 2000, false);
        stress(t, 100, true);
        threads_gather(t, 2, 2); /* more guests than ranges */
        stress(t, 500, false);
        threads_release(t, &word, 1);
        for (int w = 1; w < COUNTS[c]; w++) pthread_join(guests[w].thread, NULL);
        free(t);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_index_once),
        cmocka_unit_test(test_late_threads),
        cmocka_unit_test(test_fewer_processors_than_threads),
        cmocka_unit_test(test_long_loops),
        cmocka_unit_test(test_taken_once),
        cmocka_unit_test(test_ranges),
        cmocka_unit_test(test_parts),
        cmocka_unit_test(test_stuck_thread),
        cmocka_unit_test(test_sleepers_are_not_needed),
        cmocka_unit_test(test_joined_threads),
    };
    return cmocka_run_group_tests_name("team", tests, NULL, NULL);
}
