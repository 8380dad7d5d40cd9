/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Prometheus' text format, version 0.0.4.
 *
 *   # HELP vgpu_queue_wait_seconds From work that waits to its grant.
 *   # TYPE vgpu_queue_wait_seconds histogram
 *   vgpu_queue_wait_seconds_bucket{pool="A",priority="high",le="0.000032"} 17
 *
 * There are many thousands of samples in a text, so numbers are written by hand: a sample
 * costs tens of nanoseconds.
 */
#include "metrics/metrics.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ROOM_MIN_BYTES 4096u
#define NUMBER_BYTES 32u
#define US_DECIMALS 6u

/* Of a histogram: 2^5 us to 2^26 us. */
#define BOUND_MIN_LOG2 5u
#define BOUND_MAX_LOG2 26u

void metrics_text_clear(struct metrics_text *text)
{
    free(text->data);
    *text = (struct metrics_text){0};
}

static bool make_room(struct metrics_text *text, size_t bytes)
{
    size_t room = text->room ? text->room : ROOM_MIN_BYTES;
    char *data;

    if (text->failed)
        return false;
    if (text->room - text->bytes >= bytes)
        return true;
    while (room - text->bytes < bytes)
        room *= 2;
    data = realloc(text->data, room);
    text->failed = !data;
    if (!data)
        return false;
    text->data = data;
    text->room = room;
    return true;
}

void metrics_text_append(struct metrics_text *text, const char *data, size_t bytes)
{
    if (bytes == 0 || !make_room(text, bytes))
        return;
    memcpy(text->data + text->bytes, data, bytes);
    text->bytes += bytes;
}

static void append(struct metrics_text *text, const char *words)
{
    metrics_text_append(text, words, strlen(words));
}

/* --- labels --------------------------------------------------------------------------------- */

/* One character as it stands in a label's value; returns how many bytes of `value` it had. */
static size_t escape_one(const char *value, char *ret_text, size_t *ret_bytes)
{
    size_t length = text_character_bytes(value);

    *ret_bytes = 0;
    if (length == 0)
        return 1;
    if (*value == '\\' || *value == '"' || *value == '\n')
        ret_text[(*ret_bytes)++] = '\\';
    memcpy(ret_text + *ret_bytes, value, length);
    if (*value == '\n')
        ret_text[*ret_bytes] = 'n';
    *ret_bytes += length;
    return length;
}

void metrics_label(char *labels, size_t bytes, const char *key, const char *value)
{
    size_t used = strlen(labels), start = used, one_bytes;
    char one[8];
    int head = snprintf(labels + used, bytes - used, "%s%s=\"", used ? "," : "", key);

    if (head < 0 || used + (size_t)head + 2 > bytes) {
        labels[start] = '\0'; /* no room for the quotes: without this label */
        return;
    }
    used += (size_t)head;
    while (*value) {
        value += escape_one(value, one, &one_bytes);
        if (used + one_bytes + 2 > bytes)
            break;
        memcpy(labels + used, one, one_bytes);
        used += one_bytes;
    }
    labels[used++] = '"';
    labels[used] = '\0';
}

void metrics_label_number(char *labels, size_t bytes, const char *key, uint64_t value)
{
    char text[NUMBER_BYTES];

    snprintf(text, sizeof(text), "%llu", (unsigned long long)value);
    metrics_label(labels, bytes, key, text);
}

/* --- samples -------------------------------------------------------------------------------- */

void metrics_text_family(struct metrics_text *text, const char *name, const char *type,
                         const char *help)
{
    append(text, "# HELP ");
    append(text, name);
    append(text, " ");
    append(text, help);
    append(text, "\n# TYPE ");
    append(text, name);
    append(text, " ");
    append(text, type);
    append(text, "\n");
}

/* Written from its end; returns where it begins. */
static const char *number(char text[NUMBER_BYTES], uint64_t value, unsigned decimals)
{
    char *at = text + NUMBER_BYTES - 1;
    unsigned digits = 0;

    *at = '\0';
    do {
        if (decimals > 0 && digits == decimals)
            *--at = '.';
        *--at = (char)('0' + value % 10);
        value /= 10;
        digits++;
    } while (value > 0 || (decimals > 0 && digits <= decimals));
    return at;
}

/* `name``suffix`{`labels`,`extra`} and a blank: room for all of it is made at once.  `extra` is
 * one more label, complete, or "". */
static void sample(struct metrics_text *text, const char *name, const char *suffix,
                   const char *labels, const char *extra)
{
    size_t name_bytes = strlen(name), suffix_bytes = strlen(suffix);
    size_t labels_bytes = strlen(labels), extra_bytes = strlen(extra);
    char *at;

    if (!make_room(text, name_bytes + suffix_bytes + labels_bytes + extra_bytes + 4))
        return;
    at = mempcpy(text->data + text->bytes, name, name_bytes);
    at = mempcpy(at, suffix, suffix_bytes);
    if (labels_bytes + extra_bytes > 0) {
        *at++ = '{';
        at = mempcpy(at, labels, labels_bytes);
        if (labels_bytes > 0 && extra_bytes > 0)
            *at++ = ',';
        at = mempcpy(at, extra, extra_bytes);
        *at++ = '}';
    }
    *at++ = ' ';
    text->bytes = (size_t)(at - text->data);
}

static void value_line(struct metrics_text *text, uint64_t value, unsigned decimals)
{
    char digits[NUMBER_BYTES];
    char *end = digits + NUMBER_BYTES - 1;
    const char *begin = number(digits, value, decimals);

    *end = '\n'; /* in the place of the NUL */
    metrics_text_append(text, begin, (size_t)(end + 1 - begin));
}

void metrics_text_sample(struct metrics_text *text, const char *name, const char *suffix,
                         const char *labels, uint64_t value, unsigned decimals)
{
    sample(text, name, suffix, labels, "");
    value_line(text, value, decimals);
}

static void bucket(struct metrics_text *text, const char *name, const char *labels,
                   const char *bound, uint64_t count)
{
    char extra[NUMBER_BYTES + 8];

    snprintf(extra, sizeof(extra), "le=\"%s\"", bound);
    sample(text, name, "_bucket", labels, extra);
    value_line(text, count, 0);
}

void metrics_text_histogram(struct metrics_text *text, const char *name, const char *labels,
                            const struct metrics_latency *latency)
{
    char digits[NUMBER_BYTES];

    for (unsigned i = BOUND_MIN_LOG2; i <= BOUND_MAX_LOG2; i++)
        bucket(text, name, labels, number(digits, 1ull << i, US_DECIMALS),
               metrics_latency_below(latency, 1ull << i));
    bucket(text, name, labels, "+Inf", metrics_latency_count(latency));
    metrics_text_sample(text, name, "_sum", labels, metrics_latency_sum_us(latency), US_DECIMALS);
    metrics_text_sample(text, name, "_count", labels, metrics_latency_count(latency), 0);
}

static void quantile(struct metrics_text *text, const char *name, const char *labels,
                     const char *extra, const struct metrics_summary *recent, uint64_t value_us)
{
    sample(text, name, "", labels, extra);
    if (recent->count > 0)
        value_line(text, value_us, US_DECIMALS);
    else
        append(text, "NaN\n"); /* none of it is recent: 0 would be a lie */
}

void metrics_text_summary(struct metrics_text *text, const char *name, const char *labels,
                          const struct metrics_summary *recent,
                          const struct metrics_latency *latency)
{
    quantile(text, name, labels, "quantile=\"0.5\"", recent, recent->p50_us);
    quantile(text, name, labels, "quantile=\"0.95\"", recent, recent->p95_us);
    quantile(text, name, labels, "quantile=\"0.99\"", recent, recent->p99_us);
    quantile(text, name, labels, "quantile=\"0.999\"", recent, recent->p999_us);
    quantile(text, name, labels, "quantile=\"1\"", recent, recent->max_us);
    metrics_text_sample(text, name, "_sum", labels, metrics_latency_sum_us(latency), US_DECIMALS);
    metrics_text_sample(text, name, "_count", labels, metrics_latency_count(latency), 0);
}
