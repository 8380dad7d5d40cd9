/* SPDX-License-Identifier: Apache-2.0 */
#include "unit.h"

#include "metrics/metrics.h"

#define START_NS (1000 * NS_PER_S)

static struct metrics_summary summary_of(const struct metrics_histogram *histogram)
{
    return metrics_summarize(&histogram, 1);
}

/* Its percentiles in a plain, slow way. */
static int compare_numbers(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return (x > y) - (x < y);
}

static uint64_t random_duration_us(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return (*state >> 20) >> (*state % 44); /* of all sizes */
}

static void assert_close(uint64_t told, uint64_t exact)
{
    assert_true(told >= exact && told <= exact + exact / 128 + 1);
}

/* --- histograms ------------------------------------------------------------------------- */

static void percentiles_are_those_of_a_sorted_list_within_one_percent(void **state)
{
    enum { COUNT = 20000 };
    uint64_t *values = calloc(COUNT, sizeof(*values)), seed = 88172645463325252ull, sum = 0;
    struct metrics_histogram histogram = {0};
    struct metrics_summary summary;

    (void)state;
    for (unsigned i = 0; i < COUNT; i++) {
        values[i] = random_duration_us(&seed) & METRICS_DURATION_MAX_US;
        sum += values[i];
        metrics_histogram_record(&histogram, values[i]);
    }
    qsort(values, COUNT, sizeof(*values), compare_numbers);
    summary = summary_of(&histogram);
    assert_true(summary.count == COUNT && summary.sum_us == sum);
    assert_true(summary.max_us == values[COUNT - 1]);
    assert_close(summary.p50_us, values[COUNT / 2 - 1]);
    assert_close(summary.p95_us, values[COUNT * 95 / 100 - 1]);
    assert_close(summary.p99_us, values[COUNT * 99 / 100 - 1]);
    assert_close(summary.p999_us, values[COUNT * 999 / 1000 - 1]);
    metrics_histogram_clear(&histogram);
    free(values);
}

static void any_single_duration_is_told_as_it_was(void **state)
{
    (void)state;
    for (unsigned shift = 0; shift < 36; shift++) {
        struct metrics_histogram histogram = {0};
        uint64_t value = (1ull << shift) + (1ull << shift) / 3;

        metrics_histogram_record(&histogram, value);
        assert_true(summary_of(&histogram).p50_us == value); /* no more than the maximum */
        metrics_histogram_clear(&histogram);
    }
}

static void nothing_recorded_is_all_zero(void **state)
{
    const struct metrics_histogram *const none[] = {NULL, NULL};
    const struct metrics_histogram empty = {0};
    struct metrics_summary summary = metrics_summarize(none, 2);

    (void)state;
    assert_true(summary.count == 0 && summary.p50_us == 0 && summary.max_us == 0);
    assert_true(summary_of(&empty).count == 0);
    assert_int_equal(metrics_histogram_bytes(&empty), 0);
}

static void a_duration_that_is_too_long_counts_as_the_longest(void **state)
{
    struct metrics_histogram histogram = {0};

    (void)state;
    metrics_histogram_record(&histogram, UINT64_MAX);
    assert_true(summary_of(&histogram).max_us == UINT64_MAX);
    assert_true(summary_of(&histogram).p50_us == METRICS_DURATION_MAX_US);
    assert_true(metrics_histogram_below(&histogram, 1ull << 35) == 0);
    metrics_histogram_clear(&histogram);
}

static void what_is_merged_is_as_if_recorded_together(void **state)
{
    struct metrics_histogram parts[2] = {{0}}, whole = {0}, merged = {0};
    const struct metrics_histogram *const both[] = {&parts[0], &parts[1]};
    struct metrics_summary expected, got[2];
    uint64_t seed = 42;

    (void)state;
    for (unsigned i = 0; i < 5000; i++) {
        uint64_t value = random_duration_us(&seed);

        metrics_histogram_record(&parts[i % 3 == 0], value);
        metrics_histogram_record(&whole, value);
    }
    metrics_histogram_merge(&merged, &parts[0]);
    metrics_histogram_merge(&merged, &parts[1]);
    expected = summary_of(&whole);
    got[0] = summary_of(&merged);
    got[1] = metrics_summarize(both, 2);
    assert_memory_equal(&got[0], &expected, sizeof(expected));
    assert_memory_equal(&got[1], &expected, sizeof(expected));
    metrics_histogram_clear(&parts[0]);
    metrics_histogram_clear(&parts[1]);
    metrics_histogram_clear(&whole);
    metrics_histogram_clear(&merged);
}

static void counts_below_a_power_of_two_are_exact(void **state)
{
    struct metrics_histogram histogram = {0};

    (void)state;
    for (uint64_t value = 0; value < 4096; value++)
        metrics_histogram_record(&histogram, value);
    for (unsigned shift = 0; shift <= 12; shift++)
        assert_true(metrics_histogram_below(&histogram, 1ull << shift) == 1ull << shift);
    assert_true(metrics_histogram_below(&histogram, 1ull << 35) == 4096);
    metrics_histogram_clear(&histogram);
}

static void memory_comes_with_what_is_recorded_and_has_a_bound(void **state)
{
    struct metrics_histogram narrow = {0}, wide = {0};
    uint64_t seed = 7;

    (void)state;
    for (uint64_t value = 100; value < 1000; value++)
        metrics_histogram_record(&narrow, value);
    assert_in_range(metrics_histogram_bytes(&narrow), 1, 4096 + 512);
    for (unsigned i = 0; i < 200000; i++)
        metrics_histogram_record(&wide, random_duration_us(&seed));
    assert_in_range(metrics_histogram_bytes(&wide), 1, 31 << 10);
    metrics_histogram_clear(&narrow);
    metrics_histogram_clear(&wide);
    assert_int_equal(metrics_histogram_bytes(&wide), 0);
}

static void the_last_minute_forgets_and_the_start_does_not(void **state)
{
    struct metrics_latency latency = {0};
    struct metrics_summary recent;

    (void)state;
    metrics_latency_record(&latency, 5, START_NS);
    metrics_latency_record(&latency, 7, START_NS + 31 * NS_PER_S);
    assert_true(metrics_latency_recent(&latency, START_NS + 59 * NS_PER_S).count == 2);
    recent = metrics_latency_recent(&latency, START_NS + 62 * NS_PER_S);
    assert_true(recent.count == 1 && recent.p50_us == 7 && recent.max_us == 7);
    assert_true(metrics_latency_recent(&latency, START_NS + 300 * NS_PER_S).count == 0);
    assert_true(metrics_latency_all(&latency).count == 2);
    assert_true(metrics_latency_all(&latency).max_us == 7);
    assert_true(metrics_latency_count(&latency) == 2 && metrics_latency_sum_us(&latency) == 12);
    assert_true(metrics_latency_below(&latency, 8) == 2);
    metrics_latency_clear(&latency);
}

static void an_idle_latency_keeps_one_table(void **state)
{
    struct metrics_latency latency = {0};
    size_t busy_bytes;

    (void)state;
    for (unsigned i = 0; i < 10; i++)
        metrics_latency_record(&latency, 100, START_NS + i * 20 * NS_PER_S);
    busy_bytes = metrics_latency_bytes(&latency);
    metrics_latency_recent(&latency, START_NS + 1000 * NS_PER_S);
    assert_true(metrics_latency_bytes(&latency) * 3 == busy_bytes);
    metrics_latency_clear(&latency);
}

/* --- scopes ---------------------------------------------------------------------------------- */

static void many_at_once_count_as_one_by_one(void **state)
{
    struct metrics_latency latency = {0};
    struct metrics_summary summary;

    (void)state;
    metrics_latency_add(&latency, 10, 98, START_NS);
    metrics_latency_record(&latency, 70, START_NS);
    metrics_latency_add(&latency, 90, 1, START_NS);
    summary = metrics_latency_recent(&latency, START_NS);
    assert_int_equal(summary.count, 100);
    assert_int_equal(summary.sum_us, 98 * 10 + 70 + 90);
    assert_int_equal(summary.p95_us, 10);
    assert_int_equal(summary.p99_us, 70);
    assert_int_equal(summary.max_us, 90);
    metrics_latency_clear(&latency);
}

static void every_reason_and_kind_has_a_name_and_counts(void **state)
{
    struct metrics_scope scope = {0};

    (void)state;
    for (unsigned i = 0; i < METRICS_REFUSALS; i++) {
        assert_non_null(metrics_refusal_name(i));
        scope.refusals[i] = 1;
    }
    assert_int_equal(metrics_scope_refusals(&scope), METRICS_REFUSALS);
    for (unsigned i = 0; i < METRICS_FAULTS; i++) {
        assert_non_null(metrics_fault_name(i));
        scope.faults[i] = 2;
    }
    assert_int_equal(metrics_scope_faults(&scope), 2 * METRICS_FAULTS);
    metrics_latency_record(&scope.durations[METRICS_RUN], 5, START_NS);
    metrics_scope_clear(&scope);
    assert_int_equal(metrics_scope_refusals(&scope), 0);
    assert_true(metrics_latency_count(&scope.durations[METRICS_RUN]) == 0);
}

/* --- text --------------------------------------------------------------------------------------
 */

static void assert_text(struct metrics_text *text, const char *expected)
{
    metrics_text_append(text, "", 1);
    assert_false(text->failed);
    assert_string_equal(text->data, expected);
    metrics_text_clear(text);
}

static void a_sample_is_written_exactly(void **state)
{
    struct metrics_text text = {0};

    (void)state;
    metrics_text_family(&text, "x_seconds", "gauge", "What it is.");
    metrics_text_sample(&text, "x_seconds", "", "", 0, 0);
    metrics_text_sample(&text, "x_seconds", "", "a=\"b\"", 7, 6);
    metrics_text_sample(&text, "x_seconds", "_sum", "", 12345678, 6);
    metrics_text_sample(&text, "x_seconds", "", "", UINT64_MAX, 3);
    assert_text(&text, "# HELP x_seconds What it is.\n"
                       "# TYPE x_seconds gauge\n"
                       "x_seconds 0\n"
                       "x_seconds{a=\"b\"} 0.000007\n"
                       "x_seconds_sum 12.345678\n"
                       "x_seconds 18446744073709551.615\n");
}

static void a_label_is_escaped(void **state)
{
    char labels[128] = "";

    (void)state;
    metrics_label_number(labels, sizeof(labels), "vm", 4294967295u);
    metrics_label(labels, sizeof(labels), "name", "a\"b\\c\n1");
    metrics_label(labels, sizeof(labels), "city", "Malm\xc3\xb6\xff\xc3"); /* its end is cut */
    assert_string_equal(labels, "vm=\"4294967295\",name=\"a\\\"b\\\\c\\n1\",city=\"Malm\xc3\xb6\"");
}

static void what_is_no_utf8_is_left_out_of_a_label(void **state)
{
    static const char *const wrong[] = {"\x80",         "\xc0\xaf",         "\xe0\x80\xaf",
                                        "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xf8\x88\x80\x80"};

    (void)state;
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(wrong); i++) {
        char labels[64] = "", value[16];

        snprintf(value, sizeof(value), "a%sb", wrong[i]);
        metrics_label(labels, sizeof(labels), "l", value);
        assert_string_equal(labels, "l=\"ab\"");
    }
}

static void a_label_that_does_not_fit_is_cut_or_left_out(void **state)
{
    char labels[12] = "";

    (void)state;
    metrics_label(labels, sizeof(labels), "name", "0123456789");
    assert_string_equal(labels, "name=\"0123\"");
    metrics_label(labels, sizeof(labels), "b", "");
    assert_string_equal(labels, "name=\"0123\"");
}

static void a_histogram_is_told_in_growing_buckets(void **state)
{
    struct metrics_text text = {0};
    struct metrics_latency latency = {0};
    char *line, *rest;
    unsigned long long before = 0, count, rows = 0;

    (void)state;
    for (uint64_t value = 1; value < 200000; value *= 3)
        metrics_latency_record(&latency, value, START_NS + value * NS_PER_MS);
    metrics_text_histogram(&text, "x_seconds", "a=\"b\"", &latency);
    metrics_text_append(&text, "", 1);
    for (line = strtok_r(text.data, "\n", &rest); strstr(line, "_bucket");
         line = strtok_r(NULL, "\n", &rest), rows++) {
        count = strtoull(strrchr(line, ' '), NULL, 10);
        assert_true(count >= before);
        before = count;
    }
    assert_int_equal(rows, 23);
    assert_int_equal(before, 12); /* 3^0 to 3^11, at le="+Inf" */
    assert_string_equal(line, "x_seconds_sum{a=\"b\"} 0.265720");
    assert_string_equal(rest, "x_seconds_count{a=\"b\"} 12\n");
    metrics_latency_clear(&latency);
    metrics_text_clear(&text);
}

static void a_summary_of_nothing_recent_has_no_quantiles(void **state)
{
    struct metrics_text text = {0};
    struct metrics_latency latency = {0};
    struct metrics_summary recent;

    (void)state;
    metrics_latency_record(&latency, 1500000, START_NS);
    recent = metrics_latency_recent(&latency, START_NS + 100 * NS_PER_S);
    metrics_text_summary(&text, "x_seconds", "", &recent, &latency);
    assert_text(&text, "x_seconds{quantile=\"0.5\"} NaN\n"
                       "x_seconds{quantile=\"0.95\"} NaN\n"
                       "x_seconds{quantile=\"0.99\"} NaN\n"
                       "x_seconds{quantile=\"0.999\"} NaN\n"
                       "x_seconds{quantile=\"1\"} NaN\n"
                       "x_seconds_sum 1.500000\n"
                       "x_seconds_count 1\n");
    metrics_latency_clear(&latency);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(percentiles_are_those_of_a_sorted_list_within_one_percent),
        cmocka_unit_test(any_single_duration_is_told_as_it_was),
        cmocka_unit_test(nothing_recorded_is_all_zero),
        cmocka_unit_test(a_duration_that_is_too_long_counts_as_the_longest),
        cmocka_unit_test(what_is_merged_is_as_if_recorded_together),
        cmocka_unit_test(counts_below_a_power_of_two_are_exact),
        cmocka_unit_test(memory_comes_with_what_is_recorded_and_has_a_bound),
        cmocka_unit_test(the_last_minute_forgets_and_the_start_does_not),
        cmocka_unit_test(an_idle_latency_keeps_one_table),
        cmocka_unit_test(every_reason_and_kind_has_a_name_and_counts),
        cmocka_unit_test(a_sample_is_written_exactly),
        cmocka_unit_test(a_label_is_escaped),
        cmocka_unit_test(what_is_no_utf8_is_left_out_of_a_label),
        cmocka_unit_test(a_label_that_does_not_fit_is_cut_or_left_out),
        cmocka_unit_test(a_histogram_is_told_in_growing_buckets),
        cmocka_unit_test(a_summary_of_nothing_recent_has_no_quantiles),
        cmocka_unit_test(many_at_once_count_as_one_by_one),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
