/* SPDX-License-Identifier: Apache-2.0 */
#include "unit.h"

#include "exec/exec.h"

#include <errno.h>
#include <math.h>

static struct protocol_response run_on(const struct exec_backend *backend, const char *command)
{
    struct protocol_response response;

    memset(&response, 'x', sizeof(response));
    exec_run_command(backend, command, &response);
    assert_non_null(memchr(response.message, '\0', sizeof(response.message)));
    return response;
}

static void answers(const char *command, bool success, const char *message)
{
    struct protocol_response response = run_on(&exec_backend_cpu, command);

    assert_string_equal(response.message, message);
    assert_int_equal(response.success, success);
}

/* The answer up to the device and the time, which differ from run to run. */
static void answers_before_details(const struct exec_backend *backend, const char *command,
                                   bool success, const char *beginning)
{
    struct protocol_response response = run_on(backend, command);
    unsigned long long used_us;
    char expected[256], name[32];
    char *details = strstr(response.message, " (");

    assert_non_null(details);
    snprintf(expected, sizeof(expected), " (%s, ", backend->name);
    assert_memory_equal(details, expected, strlen(expected));
    assert_int_equal(sscanf(details, " (%31[^,], %llu us)", name, &used_us), 2);
    *details = '\0';
    assert_string_equal(response.message, beginning);
    assert_int_equal(response.success, success);
}

/* --- a backend that computes wrong ---------------------------------------------------- */

/* The elements of a result that are to be wrong, and by how much. */
static struct {
    size_t at[4];
    float by[4];
    size_t count;
    bool lazy;           /* computes nothing at all */
    const char *refusal; /* says that it cannot */
} flaw;

static void spoil(float *result)
{
    for (size_t i = 0; i < flaw.count; i++)
        result[flaw.at[i]] += flaw.by[i];
}

/* It says that it cannot, if it was told to. */
static int outcome(struct vgpu_error *error)
{
    return flaw.refusal ? error_set(error, EIO, "%s", flaw.refusal) : 0;
}

static int flawed_vector_add(const float *a, const float *b, float *sum, size_t count,
                             struct vgpu_error *error)
{
    if (!flaw.lazy && !flaw.refusal) {
        exec_backend_cpu.vector_add(a, b, sum, count, error);
        spoil(sum);
    }
    return outcome(error);
}

static int flawed_matrix_mul(const float *a, const float *b, float *product, size_t n,
                             struct vgpu_error *error)
{
    if (!flaw.lazy && !flaw.refusal) {
        exec_backend_cpu.matrix_mul(a, b, product, n, error);
        spoil(product);
    }
    return outcome(error);
}

static int flawed_reduce(const float *x, size_t count, double *ret_sum, struct vgpu_error *error)
{
    if (!flaw.lazy && !flaw.refusal) {
        exec_backend_cpu.reduce(x, count, ret_sum, error);
        *ret_sum += flaw.count;
    }
    return outcome(error);
}

static int flawed_spin(uint32_t spin_ms, struct vgpu_error *error)
{
    (void)spin_ms;
    return outcome(error);
}

static void long_describe(char *text, size_t bytes)
{
    memset(text, 'd', bytes - 1);
    text[bytes - 1] = '\0';
}

static const struct exec_backend flawed = {
    .name = "flawed",
    .vector_add = flawed_vector_add,
    .matrix_mul = flawed_matrix_mul,
    .reduce = flawed_reduce,
    .spin = flawed_spin,
    .describe = long_describe,
};

static int no_flaw(void **state)
{
    (void)state;
    memset(&flaw, 0, sizeof(flaw));
    return 0;
}

/* --- a backend that cannot ------------------------------------------------------------------ */

static void what_the_backend_cannot_do_is_told_with_its_reason(void **state)
{
    (void)state;
    flaw.refusal = "the GPU is gone";
    assert_string_equal(run_on(&flawed, "VECTOR_ADD").message,
                        "VECTOR_ADD was not computed: the GPU is gone");
    assert_string_equal(run_on(&flawed, "MATRIX_MUL 5").message,
                        "MATRIX_MUL 5 was not computed: the GPU is gone");
    assert_string_equal(run_on(&flawed, "REDUCE 5").message,
                        "REDUCE 5 was not computed: the GPU is gone");
    assert_string_equal(run_on(&flawed, "SPIN 5").message, "SPIN 5 did not run: the GPU is gone");
    assert_false(run_on(&flawed, "SPIN 5").success);
}

/* --- REDUCE ------------------------------------------------------------------------------ */

static void sums_are_checked_for_any_count(void **state)
{
    static const unsigned counts[] = {1, 2, 6, 7, 8, 1000, 1000003};
    char command[32], expected[64];

    (void)state;
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(counts); i++) {
        unsigned long long sum = 0;

        for (unsigned k = 0; k < counts[i]; k++)
            sum += k % 7;
        snprintf(command, sizeof(command), "REDUCE %u", counts[i]);
        snprintf(expected, sizeof(expected), "Reduce PASSED: %u elements, sum %llu", counts[i],
                 sum);
        answers_before_details(&exec_backend_cpu, command, true, expected);
    }
}

static void a_wrong_sum_is_found(void **state)
{
    (void)state;
    flaw.count = 1;
    answers_before_details(&flawed, "REDUCE 7", false, "Reduce FAILED: 7 elements, sum 22");
    flaw.lazy = true;
    assert_false(run_on(&flawed, "REDUCE 7").success);
    assert_false(run_on(&exec_backend_cpu, "REDUCE 16777217").success);
}

/* --- VECTOR_ADD ------------------------------------------------------------------------- */

static void whole_numbers_are_added_without_decimals(void **state)
{
    (void)state;
    answers("VECTOR_ADD 3 4", true, "3 + 4 = 7");
    answers("3:4", true, "3 + 4 = 7");
    answers("-3:3", true, "-3 + 3 = 0");
    answers("-0:-0.0", true, "0 + 0 = 0");
    answers("1e3:2.0", true, "1000 + 2 = 1002");
    answers("9007199254740991:1", true, "9007199254740991 + 1 = 9007199254740992");
    answers("4503599627370497:4503599627370494", true,
            "4503599627370497 + 4503599627370494 = 9007199254740991");
}

static void other_numbers_show_the_fewest_digits_that_name_them(void **state)
{
    (void)state;
    answers("0.5:0.25", true, "0.5 + 0.25 = 0.75");
    answers("0.1:0.2", true, "0.1 + 0.2 = 0.30000000000000004");
    answers("1e300:1e300", true, "1e+300 + 1e+300 = 2e+300");
    answers("1e-7:0", true, "1e-07 + 0 = 1e-07");
    answers("1.7976931348623157e308:-1.7976931348623157e308", true,
            "1.7976931348623157e+308 + -1.7976931348623157e+308 = 0");
}

static void a_sum_that_overflows_is_an_error(void **state)
{
    (void)state;
    answers("1.7e308:1.7e308", false,
            "1.7e+308 + 1.7e+308 is too large: a sum is at most 1.79e308");
}

static void vector_add_alone_is_the_self_check(void **state)
{
    const char *passed = "Vector add PASSED: 1024 elements, 0 errors";

    (void)state;
    answers_before_details(&exec_backend_cpu, "VECTOR_ADD", true, passed);
    answers_before_details(&exec_backend_cpu, "1", true, passed);
}

static void a_wrong_vector_sum_is_an_error_with_its_count(void **state)
{
    (void)state;
    answers_before_details(&flawed, "VECTOR_ADD", true,
                           "Vector add PASSED: 1024 elements, 0 errors");
    flaw.count = 3;
    memcpy(flaw.at, (const size_t[]){0, 500, 1023}, 3 * sizeof(size_t));
    memcpy(flaw.by, (const float[]){1, NAN, -0.5f}, 3 * sizeof(float));
    answers_before_details(&flawed, "VECTOR_ADD", false,
                           "Vector add FAILED: 1024 elements, 3 errors");
    flaw.lazy = true;
    answers_before_details(&flawed, "VECTOR_ADD", false,
                           "Vector add FAILED: 1024 elements, 1024 errors");
}

/* --- MATRIX_MUL ------------------------------------------------------------------------- */

static void a_matrix_product_of_any_size_passes_its_check(void **state)
{
    static const unsigned sizes[] = {1, 2, 3, 4, 5, 63, 64, 65, 127, 257, 300, PROTOCOL_MATRIX_MAX};
    char command[64], expected[128];

    (void)state;
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(sizes); i++) {
        snprintf(command, sizeof(command), "MATRIX_MUL %u", sizes[i]);
        snprintf(expected, sizeof(expected), "Matrix multiply PASSED: %ux%u, 0 errors", sizes[i],
                 sizes[i]);
        answers_before_details(&exec_backend_cpu, command, true, expected);
    }
    answers_before_details(&exec_backend_cpu, "MATRIX_MUL", true,
                           "Matrix multiply PASSED: 64x64, 0 errors");
}

/* The check must not lean on the product that it checks: compare with the
 * definition. */
static void the_cpu_multiplies_as_the_definition_says(void **state)
{
    enum { N = 70 };
    static float a[N * N], b[N * N], product[N * N];

    (void)state;
    for (int i = 0; i < N * N; i++) {
        a[i] = (float)(i % 7 - 3);
        b[i] = (float)(i % 11 - 5);
        product[i] = NAN;
    }
    assert_int_equal(exec_backend_cpu.matrix_mul(a, b, product, N, NULL), 0);
    for (int i = 0; i < N; i++) {
        for (int j = 0; j < N; j++) {
            float expected = 0;

            for (int k = 0; k < N; k++)
                expected += a[i * N + k] * b[k * N + j];
            assert_true(product[i * N + j] == expected);
        }
    }
}

static void one_wrong_element_is_found_wherever_it_is(void **state)
{
    (void)state;
    flaw.count = 1;
    for (size_t at = 0; at < 16 * 16; at++) {
        flaw.at[0] = at;
        flaw.by[0] = at % 2 ? 1.0f : NAN;
        answers_before_details(&flawed, "MATRIX_MUL 16", false,
                               "Matrix multiply FAILED: 16x16, 1 errors");
    }
}

/* Two errors in a row that cancel out slip through half of the rounds. */
static void wrong_elements_that_cancel_out_are_found(void **state)
{
    (void)state;
    flaw.count = 2;
    flaw.by[0] = 1;
    flaw.by[1] = -1;
    for (size_t other = 1; other < 64; other++) {
        flaw.at[1] = other;
        answers_before_details(&flawed, "MATRIX_MUL 64", false,
                               "Matrix multiply FAILED: 64x64, 2 errors");
    }
    flaw.count = 4;
    memcpy(flaw.at, (const size_t[]){0, 1, 64, 65}, 4 * sizeof(size_t));
    memcpy(flaw.by, (const float[]){1, -1, -1, 1}, 4 * sizeof(float));
    answers_before_details(&flawed, "MATRIX_MUL 64", false,
                           "Matrix multiply FAILED: 64x64, 4 errors");
}

static void a_product_that_was_never_written_is_all_errors(void **state)
{
    (void)state;
    flaw.lazy = true;
    answers_before_details(&flawed, "MATRIX_MUL 20", false,
                           "Matrix multiply FAILED: 20x20, 400 errors");
}

/* --- the others -------------------------------------------------------------------------- */

static void ping_echoes_its_text(void **state)
{
    (void)state;
    answers("PING", true, "PONG");
    answers("ping", true, "PONG");
    answers("PING hello  you", true, "PONG hello  you");
    answers("PING %s%n", true, "PONG %s%n");
}

static void gpu_info_says_that_the_cpu_computes(void **state)
{
    struct protocol_response response;
    struct vgpu_error error;
    char cores[64];
    long count = sysconf(_SC_NPROCESSORS_ONLN);

    (void)state;
    assert_int_equal(exec_backend_cpu.open(&(struct exec_backend_config){.device = "cpu"}, &error),
                     0);
    response = run_on(&exec_backend_cpu, "GPU_INFO");
    assert_true(response.success);
    assert_memory_equal(response.message, "CPU backend: ", 13);
    snprintf(cores, sizeof(cores), ", %ld core%s, no GPU", count, count == 1 ? "" : "s");
    assert_non_null(strstr(response.message, cores));
    assert_string_equal(run_on(&exec_backend_cpu, "2").message, response.message);
}

static void a_long_description_is_cut_to_an_answer(void **state)
{
    struct protocol_response response = run_on(&flawed, "GPU_INFO");

    (void)state;
    assert_true(strlen(response.message) > 100);
    assert_true(strlen(response.message) <= VGPU_MESSAGE_MAX_BYTES);
}

static void spin_takes_its_time_and_says_so(void **state)
{
    uint64_t begin_ns = clock_monotonic_ns();

    (void)state;
    answers("SPIN 20", true, "Spun 20 ms");
    assert_true(clock_monotonic_ns() - begin_ns >= 20 * NS_PER_MS); /* never shorter */
    answers("SPIN 0", true, "Spun 0 ms");
}

static void test_commands_succeed_and_echo(void **state)
{
    (void)state;
    answers("TEST_HIGH", true, "TEST_HIGH OK");
    answers("TEST_ a b", true, "TEST_ a b OK");
}

static void a_bad_command_is_an_error_that_helps(void **state)
{
    struct protocol_response response;

    (void)state;
    response = run_on(&exec_backend_cpu, "FORMAT_DISK");
    assert_false(response.success);
    assert_non_null(strstr(response.message, "FORMAT_DISK"));
    assert_non_null(strstr(response.message, protocol_command_list()));
    assert_false(run_on(&exec_backend_cpu, "").success);
    assert_false(run_on(&exec_backend_cpu, "MATRIX_MUL 0").success);
    assert_false(run_on(&exec_backend_cpu, "MATRIX_MUL 1025").success);
    assert_false(run_on(&exec_backend_cpu, "SPIN").success);
    assert_false(run_on(&exec_backend_cpu, "VECTOR_ADD 1").success);
    assert_false(run_on(&exec_backend_cpu, "1:x").success);
}

static void the_longest_commands_get_whole_answers(void **state)
{
    char command[VGPU_COMMAND_MAX_BYTES + 1], expected[VGPU_COMMAND_MAX_BYTES + 8];

    (void)state;
    memset(command, 'p', sizeof(command) - 1);
    command[sizeof(command) - 1] = '\0';
    memcpy(command, "PING ", 5);
    snprintf(expected, sizeof(expected), "PONG %s", command + 5);
    answers(command, true, expected);
    memcpy(command, "TEST_", 5);
    snprintf(expected, sizeof(expected), "%s OK", command);
    answers(command, true, expected);
}

#define COMMAND_TEST(function) cmocka_unit_test_setup(function, no_flaw)

int main(void)
{
    const struct CMUnitTest tests[] = {
        COMMAND_TEST(what_the_backend_cannot_do_is_told_with_its_reason),
        COMMAND_TEST(sums_are_checked_for_any_count),
        COMMAND_TEST(a_wrong_sum_is_found),
        COMMAND_TEST(whole_numbers_are_added_without_decimals),
        COMMAND_TEST(other_numbers_show_the_fewest_digits_that_name_them),
        COMMAND_TEST(a_sum_that_overflows_is_an_error),
        COMMAND_TEST(vector_add_alone_is_the_self_check),
        COMMAND_TEST(a_wrong_vector_sum_is_an_error_with_its_count),
        COMMAND_TEST(a_matrix_product_of_any_size_passes_its_check),
        COMMAND_TEST(the_cpu_multiplies_as_the_definition_says),
        COMMAND_TEST(one_wrong_element_is_found_wherever_it_is),
        COMMAND_TEST(wrong_elements_that_cancel_out_are_found),
        COMMAND_TEST(a_product_that_was_never_written_is_all_errors),
        COMMAND_TEST(ping_echoes_its_text),
        COMMAND_TEST(gpu_info_says_that_the_cpu_computes),
        COMMAND_TEST(a_long_description_is_cut_to_an_answer),
        COMMAND_TEST(spin_takes_its_time_and_says_so),
        COMMAND_TEST(test_commands_succeed_and_echo),
        COMMAND_TEST(a_bad_command_is_an_error_that_helps),
        COMMAND_TEST(the_longest_commands_get_whole_answers),
    };

    return cmocka_run_group_tests_name("exec_commands", tests, NULL, NULL);
}
