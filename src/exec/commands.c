/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The text commands: what each asks of the backend, and how its answer reads.
 *
 * The two self-checks believe nothing that the backend says.  Their inputs are
 * small whole numbers, so that every sum and product is exact in a float and
 * one wrong bit is one wrong answer, without a tolerance that could hide it:
 *
 *   VECTOR_ADD   each element is compared with the sum in double.
 *   MATRIX_MUL   Freivalds' check: C·r = A·(B·r) for vectors r of random signs,
 *                n² work a round where computing again would take n³.  A row
 *                with one wrong element always differs; any other wrong row
 *                slips through a round with probability 1/2 at most.  Rows that
 *                differ are computed again, to count the wrong elements.
 *                Besides, some elements are computed again as they come.
 *
 *   REDUCE       a sum of whole numbers, which is known without adding.
 *
 * The results are filled with NaN before, so that an element which the backend
 * never wrote is an error too.
 */
#include "exec/exec.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define VECTOR_ELEMENTS 1024u
#define FREIVALDS_ROUNDS 10u
#define SPOT_CHECKS 64u
#define ENTRY_MAX 8 /* |entries| of A and B: n × 64 stays far below 2^24 */

_Static_assert(PROTOCOL_MATRIX_MAX *ENTRY_MAX *ENTRY_MAX < (1u << 24), "exact in a float");

#define NUMBER_BYTES 32 /* "-1.7976931348623157e+308" */

static void answer(struct protocol_response *response, bool success, const char *format, ...)
    VGPU_PRINTF(3, 4);

static void answer(struct protocol_response *response, bool success, const char *format, ...)
{
    va_list args;

    response->success = success;
    va_start(args, format);
    vsnprintf(response->message, sizeof(response->message), format, args);
    va_end(args);
}

static uint64_t microseconds_since(uint64_t begin_ns)
{
    return (clock_monotonic_ns() - begin_ns) / NS_PER_US;
}

/* --- VECTOR_ADD -------------------------------------------------------------------- */

/* Whole numbers plainly, others with the fewest digits that name them exactly. */
static void number_format(double number, char text[NUMBER_BYTES])
{
    if (fabs(number) <= 9007199254740992.0 && number == floor(number)) {
        snprintf(text, NUMBER_BYTES, "%.0f", number + 0.0); /* + 0.0: no "-0" */
        return;
    }
    for (int digits = 1; digits <= 17; digits++) {
        snprintf(text, NUMBER_BYTES, "%.*g", digits, number);
        if (strtod(text, NULL) == number)
            return;
    }
}

static void add_numbers(const double numbers[2], struct protocol_response *response)
{
    double sum = numbers[0] + numbers[1];
    char a[NUMBER_BYTES], b[NUMBER_BYTES], result[NUMBER_BYTES];

    number_format(numbers[0], a);
    number_format(numbers[1], b);
    if (!isfinite(sum)) {
        answer(response, false, "%s + %s is too large: a sum is at most 1.79e308", a, b);
        return;
    }
    number_format(sum, result);
    answer(response, true, "%s + %s = %s", a, b, result);
}

static void check_vector_add(const struct exec_backend *backend, struct protocol_response *response)
{
    float a[VECTOR_ELEMENTS], b[VECTOR_ELEMENTS], sum[VECTOR_ELEMENTS];
    struct vgpu_error error;
    unsigned errors = 0;
    uint64_t begin_ns, used_us;

    for (unsigned i = 0; i < VECTOR_ELEMENTS; i++) {
        a[i] = (float)i;
        b[i] = (float)(i * i % 4099) * 0.5f; /* a half is exact too */
        sum[i] = NAN;
    }
    begin_ns = clock_monotonic_ns();
    if (backend->vector_add(a, b, sum, VECTOR_ELEMENTS, &error) < 0) {
        answer(response, false, "VECTOR_ADD was not computed: %s", error.message);
        return;
    }
    used_us = microseconds_since(begin_ns);
    for (unsigned i = 0; i < VECTOR_ELEMENTS; i++)
        errors += !((double)sum[i] == (double)a[i] + (double)b[i]);
    answer(response, errors == 0, "Vector add %s: %u elements, %u errors (%s, %llu us)",
           errors ? "FAILED" : "PASSED", VECTOR_ELEMENTS, errors, backend->name,
           (unsigned long long)used_us);
}

/* --- MATRIX_MUL -------------------------------------------------------------------- */

struct matrices {
    size_t n;
    float *a, *b, *product;
    double *signs;      /* r, one a column */
    double *b_signs;    /* B·r */
    uint8_t *wrong_row; /* 1: the row differed in some round */
};

/* xorshift64: the same numbers every time, so a failure can be seen again. */
static uint64_t random_next(uint64_t *random)
{
    *random ^= *random << 13;
    *random ^= *random >> 7;
    *random ^= *random << 17;
    return *random;
}

static float random_entry(uint64_t *random)
{
    return (float)((int)((random_next(random) >> 32) % (2 * ENTRY_MAX + 1)) - ENTRY_MAX);
}

static void matrices_free(struct matrices *m)
{
    free(m->a);
    free(m->b);
    free(m->product);
    free(m->signs);
    free(m->b_signs);
    free(m->wrong_row);
}

static bool matrices_make(struct matrices *m, size_t n, uint64_t *random)
{
    *m = (struct matrices){
        .n = n,
        .a = malloc(n * n * sizeof(float)),
        .b = malloc(n * n * sizeof(float)),
        .product = malloc(n * n * sizeof(float)),
        .signs = malloc(n * sizeof(double)),
        .b_signs = malloc(n * sizeof(double)),
        .wrong_row = calloc(n, 1),
    };
    if (!m->a || !m->b || !m->product || !m->signs || !m->b_signs || !m->wrong_row) {
        matrices_free(m);
        return false;
    }
    for (size_t i = 0; i < n * n; i++) {
        m->a[i] = random_entry(random);
        m->b[i] = random_entry(random);
        m->product[i] = NAN;
    }
    return true;
}

static double row_times(const float *row, const double *vector, size_t n)
{
    double sum = 0;

    for (size_t j = 0; j < n; j++)
        sum += (double)row[j] * vector[j];
    return sum;
}

static void freivalds_round(struct matrices *m, uint64_t *random)
{
    for (size_t j = 0; j < m->n; j++)
        m->signs[j] = random_next(random) >> 63 ? 1.0 : -1.0;
    for (size_t k = 0; k < m->n; k++)
        m->b_signs[k] = row_times(m->b + k * m->n, m->signs, m->n);
    for (size_t i = 0; i < m->n; i++) {
        double expected = row_times(m->a + i * m->n, m->b_signs, m->n);

        /* Negated, so that NaN differs from everything. */
        if (!(row_times(m->product + i * m->n, m->signs, m->n) == expected))
            m->wrong_row[i] = 1;
    }
}

static bool element_is_wrong(const struct matrices *m, size_t i, size_t j)
{
    double expected = 0;

    for (size_t k = 0; k < m->n; k++)
        expected += (double)m->a[i * m->n + k] * (double)m->b[k * m->n + j];
    return !((double)m->product[i * m->n + j] == expected);
}

/* How many elements of the product are wrong. */
static size_t matrices_count_errors(struct matrices *m, uint64_t *random)
{
    size_t errors = 0;

    for (unsigned i = 0; i < FREIVALDS_ROUNDS; i++)
        freivalds_round(m, random);
    for (unsigned i = 0; i < SPOT_CHECKS; i++) {
        size_t row = (random_next(random) >> 32) % m->n;

        if (element_is_wrong(m, row, (random_next(random) >> 32) % m->n))
            m->wrong_row[row] = 1;
    }
    for (size_t i = 0; i < m->n; i++) {
        for (size_t j = 0; m->wrong_row[i] && j < m->n; j++)
            errors += element_is_wrong(m, i, j);
    }
    return errors;
}

static void check_matrix_mul(const struct exec_backend *backend, size_t n,
                             struct protocol_response *response)
{
    uint64_t begin_ns, used_us, random = 0x9e3779b97f4a7c15u;
    struct vgpu_error error;
    struct matrices m;
    size_t errors;

    if (!matrices_make(&m, n, &random)) {
        answer(response, false, "MATRIX_MUL %zu: the host has no memory left, try a smaller one",
               n);
        return;
    }
    begin_ns = clock_monotonic_ns();
    if (backend->matrix_mul(m.a, m.b, m.product, n, &error) < 0) {
        answer(response, false, "MATRIX_MUL %zu was not computed: %s", n, error.message);
        matrices_free(&m);
        return;
    }
    used_us = microseconds_since(begin_ns);
    errors = matrices_count_errors(&m, &random);
    matrices_free(&m);
    answer(response, errors == 0, "Matrix multiply %s: %zux%zu, %zu errors (%s, %llu us)",
           errors ? "FAILED" : "PASSED", n, n, errors, backend->name, (unsigned long long)used_us);
}

/* --- REDUCE ------------------------------------------------------------------------- */

/* The elements are 0 to 6 in turn: multiples and sums are exact in a double. */
#define REDUCE_PERIOD 7u

static double reduce_expected(size_t count)
{
    size_t left = count % REDUCE_PERIOD, rounds = count / REDUCE_PERIOD;
    size_t sum = rounds * (REDUCE_PERIOD * (REDUCE_PERIOD - 1) / 2);

    if (left > 0)
        sum += left * (left - 1) / 2;
    return (double)sum;
}

static void check_reduce(const struct exec_backend *backend, size_t count,
                         struct protocol_response *response)
{
    float *x = malloc(count * sizeof(*x));
    uint64_t begin_ns, used_us;
    struct vgpu_error error;
    double sum = NAN;
    int result;

    if (!x) {
        answer(response, false, "REDUCE %zu: the host has no memory left, try a smaller one",
               count);
        return;
    }
    for (size_t i = 0; i < count; i++)
        x[i] = (float)(i % REDUCE_PERIOD);
    begin_ns = clock_monotonic_ns();
    result = backend->reduce(x, count, &sum, &error);
    used_us = microseconds_since(begin_ns);
    free(x);
    if (result < 0)
        answer(response, false, "REDUCE %zu was not computed: %s", count, error.message);
    else
        answer(response, sum == reduce_expected(count),
               "Reduce %s: %zu elements, sum %.0f (%s, %llu us)",
               sum == reduce_expected(count) ? "PASSED" : "FAILED", count, sum, backend->name,
               (unsigned long long)used_us);
}

/* --- all ----------------------------------------------------------------------------- */

void exec_run_command(const struct exec_backend *backend, const char *command,
                      struct protocol_response *ret_response)
{
    struct protocol_command parsed;
    struct vgpu_error error;
    char text[512];

    if (protocol_parse_command(command, &parsed, &error) < 0) {
        answer(ret_response, false, "%s", error.message);
        return;
    }
    switch (parsed.operation) {
    case OPERATION_VECTOR_ADD:
        if (parsed.has_numbers)
            add_numbers(parsed.numbers, ret_response);
        else
            check_vector_add(backend, ret_response);
        return;
    case OPERATION_MATRIX_MUL:
        check_matrix_mul(backend, parsed.size, ret_response);
        return;
    case OPERATION_GPU_INFO:
        backend->describe(text, sizeof(text));
        answer(ret_response, true, "%s", text);
        return;
    case OPERATION_PING:
        answer(ret_response, true, "PONG%s%s", *parsed.text ? " " : "", parsed.text);
        return;
    case OPERATION_SPIN:
        if (backend->spin(parsed.size, &error) < 0)
            answer(ret_response, false, "SPIN %u did not run: %s", parsed.size, error.message);
        else
            answer(ret_response, true, "Spun %u ms", parsed.size);
        return;
    case OPERATION_REDUCE:
        check_reduce(backend, parsed.size, ret_response);
        return;
    case OPERATION_TEST:
        answer(ret_response, true, "%s OK", parsed.text);
        return;
    }
    answer(ret_response, false, "this worker does not know operation %d", (int)parsed.operation);
}
