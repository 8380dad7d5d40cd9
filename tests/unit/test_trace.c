/* SPDX-License-Identifier: Apache-2.0 */
/* The decision log: its ring, what a reader believes, and its two exports. */
#include "trace/trace.h"

#include "unit.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>

#define SMALL_KIB 1u
#define SMALL_RECORDS 32u

struct place {
    char *directory;
    char path[512];
    struct trace trace;
};

static const struct trace_filter everything = {0};
static const struct trace_owner mediator = {0};
static const struct trace_owner vm7 = {7, 200, 'B', 2};

static void open_trace(struct place *place, uint32_t kib, const struct trace_owner *owner)
{
    struct vgpu_error error;
    int fd = trace_open(place->path, kib, owner, &error);

    assert_true(fd >= 0);
    assert_int_equal(trace_attach(&place->trace, fd, &error), 0);
    fd_close(&fd);
}

static int set_up(void **state)
{
    struct place *place = calloc(1, sizeof(*place));

    place->directory = unit_temporary_directory();
    snprintf(place->path, sizeof(place->path), "%s/a.trace", place->directory);
    *state = place;
    return 0;
}

static int tear_down(void **state)
{
    struct place *place = *state;

    trace_detach(&place->trace);
    unit_remove_directory(place->directory);
    free(place);
    return 0;
}

static uint64_t long_ago_ns(uint64_t after_us)
{
    static uint64_t base_ns;

    if (base_ns == 0)
        base_ns = clock_monotonic_ns() - clock_monotonic_ns() / 2;
    return base_ns + after_us * NS_PER_US;
}

static void write_operation(struct place *place, enum trace_kind kind, uint64_t after_us,
                            uint32_t number, uint16_t count, uint64_t device_us)
{
    trace_write(&place->trace, &(struct trace_record){.time_ns = long_ago_ns(after_us),
                                                      .device_ns = device_us * NS_PER_US,
                                                      .vm_id = 7,
                                                      .number = number,
                                                      .count = count,
                                                      .kind = (uint8_t)kind});
}

static void write_decision(struct place *place, enum trace_kind kind, uint64_t after_us,
                           uint32_t vm_id, uint16_t count, uint64_t device_us)
{
    trace_write(&place->trace, &(struct trace_record){.time_ns = long_ago_ns(after_us),
                                                      .device_ns = device_us * NS_PER_US,
                                                      .vm_id = vm_id,
                                                      .count = count,
                                                      .kind = (uint8_t)kind,
                                                      .pool = 'A',
                                                      .priority = 1});
}

static void read_trace(const struct place *place, uint32_t vm_id, struct trace_log *ret_log)
{
    struct vgpu_error error;

    *ret_log = (struct trace_log){0};
    assert_int_equal(trace_read_file(ret_log, place->path, vm_id, &everything, &error), 0);
    trace_sort(ret_log);
}

static void overwrite(const struct place *place, long offset, const void *bytes, size_t count)
{
    int fd = open(place->path, O_WRONLY | O_CLOEXEC);

    assert_true(fd >= 0);
    assert_int_equal(fd_pwrite_all(fd, bytes, count, offset), 0);
    fd_close(&fd);
}

/* --- the ring ----------------------------------------------------------------------- */

static void what_was_written_is_read_in_its_order(void **state)
{
    struct place *place = *state;
    struct trace_log log;

    open_trace(place, SMALL_KIB, &vm7);
    write_operation(place, TRACE_ARRIVE, 10, 0, 2, 0);
    write_operation(place, TRACE_COMPLETE, 20, 0, 0, 5);
    write_operation(place, TRACE_COMPLETE, 20, 1, 0, 6);
    read_trace(place, 7, &log);
    assert_int_equal(log.entry_count, 3);
    assert_int_equal(log.entries[0].record.kind, TRACE_ARRIVE);
    assert_int_equal(log.entries[1].record.number, 0);
    assert_int_equal(log.entries[2].record.number, 1);
    assert_int_equal(log.sources[0].owner.weight, 200);
    assert_int_equal(log.sources[0].owner.pool, 'B');
    trace_log_clear(&log);
}

static void the_oldest_are_written_over(void **state)
{
    struct place *place = *state;
    struct trace_log log;

    open_trace(place, SMALL_KIB, &vm7);
    for (uint32_t i = 0; i < 100; i++)
        write_operation(place, TRACE_COMPLETE, i, i, 0, 0);
    read_trace(place, 7, &log);
    /* The place of the next one may be written to at this moment. */
    assert_int_equal(log.entry_count, SMALL_RECORDS - 1);
    assert_int_equal(log.entries[0].record.number, 100 - SMALL_RECORDS + 1);
    assert_int_equal(log.entries[SMALL_RECORDS - 2].record.number, 99);
    assert_int_equal(log.sources[0].lost, 100 - SMALL_RECORDS + 1);
    assert_int_equal(log.sources[0].rejected, 0);
    trace_log_clear(&log);
}

static void a_record_that_was_not_finished_is_not_read(void **state)
{
    struct place *place = *state;
    struct trace_log log;

    open_trace(place, SMALL_KIB, &vm7);
    for (uint32_t i = 0; i < SMALL_RECORDS + 5; i++)
        write_operation(place, TRACE_COMPLETE, i, i, 0, 0);
    /* Its writer has died after the first half of the next one. */
    memset(&place->trace.records[5], 0xee, sizeof(struct trace_record) / 2);
    read_trace(place, 7, &log);
    assert_int_equal(log.entry_count, SMALL_RECORDS - 1);
    assert_int_equal(log.sources[0].rejected, 0);
    assert_int_equal(log.entries[0].record.number, 6);
    trace_log_clear(&log);
}

static void the_next_writer_goes_on_where_the_last_one_was(void **state)
{
    struct place *place = *state;
    struct trace_log log;

    open_trace(place, SMALL_KIB, &vm7);
    write_operation(place, TRACE_COMPLETE, 1, 1, 0, 0);
    trace_detach(&place->trace);
    open_trace(place, SMALL_KIB, &vm7);
    write_operation(place, TRACE_COMPLETE, 2, 2, 0, 0);
    read_trace(place, 7, &log);
    assert_int_equal(log.entry_count, 2);
    trace_log_clear(&log);
}

static void another_size_begins_anew(void **state)
{
    struct place *place = *state;
    struct trace_log log;

    open_trace(place, SMALL_KIB, &vm7);
    write_operation(place, TRACE_COMPLETE, 1, 1, 0, 0);
    trace_detach(&place->trace);
    open_trace(place, 4, &vm7);
    read_trace(place, 7, &log);
    assert_int_equal(log.entry_count, 0);
    trace_log_clear(&log);
}

static void without_a_file_nothing_is_written(void **state)
{
    struct trace none = {0};

    (void)state;
    assert_false(trace_is_on(&none));
    trace_write(&none, &(struct trace_record){.kind = TRACE_ARRIVE});
    trace_detach(&none);
}

/* --- what is believed ---------------------------------------------------------------- */

static void a_workers_word_counts_for_its_vm_only(void **state)
{
    struct place *place = *state;
    struct trace_log log;

    open_trace(place, SMALL_KIB, &vm7);
    write_operation(place, TRACE_COMPLETE, 1, 1, 0, 0);
    write_decision(place, TRACE_GRANT, 2, 7, 0, 10);
    trace_write(&place->trace, &(struct trace_record){
                                   .time_ns = long_ago_ns(3), .vm_id = 8, .kind = TRACE_COMPLETE});
    trace_write(&place->trace,
                &(struct trace_record){.time_ns = UINT64_MAX, .vm_id = 7, .kind = TRACE_COMPLETE});
    trace_write(&place->trace, &(struct trace_record){.time_ns = long_ago_ns(4),
                                                      .device_ns = UINT64_MAX,
                                                      .vm_id = 7,
                                                      .kind = TRACE_COMPLETE});
    read_trace(place, 7, &log);
    assert_int_equal(log.entry_count, 1);
    assert_int_equal(log.sources[0].rejected, 4);
    trace_log_clear(&log);
}

static void a_position_that_is_a_lie_does_no_harm(void **state)
{
    static const uint64_t lies[] = {UINT64_MAX, UINT64_MAX - 7, 1ull << 63, SMALL_RECORDS, 0};
    struct place *place = *state;
    struct trace_log log;

    open_trace(place, SMALL_KIB, &vm7);
    write_operation(place, TRACE_COMPLETE, 1, 1, 0, 0);
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(lies); i++) {
        place->trace.header->position = lies[i];
        read_trace(place, 7, &log);
        assert_true(log.entry_count <= 1);
        trace_log_clear(&log);
    }
}

static void assert_is_refused(const struct place *place, int code)
{
    struct trace_log log = {0};
    struct vgpu_error error;

    assert_int_equal(trace_read_file(&log, place->path, 7, &everything, &error), -1);
    assert_int_equal(error.code, code);
    assert_int_equal(log.source_count, 0);
    trace_log_clear(&log);
}

static void a_file_of_another_kind_is_refused(void **state)
{
    static const uint64_t capacities[] = {0, 3, 64, UINT64_MAX, 1ull << 63, 1ull << 40};
    struct place *place = *state;
    uint32_t magic = 1;

    assert_is_refused(place, ENOENT);
    open_trace(place, SMALL_KIB, &vm7);
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(capacities); i++) {
        overwrite(place, offsetof(struct trace_header, capacity), &capacities[i], 8);
        assert_is_refused(place, EINVAL);
    }
    overwrite(place, 0, &magic, sizeof(magic));
    assert_is_refused(place, EINVAL);
    trace_detach(&place->trace);
    assert_int_equal(truncate(place->path, 10), 0);
    assert_is_refused(place, EIO);
}

/* Whatever stands in the records, the exports are whole. */
static void write_exports(const struct trace_log *log, char **ret_chrome, char **ret_csv)
{
    size_t bytes;
    FILE *file = open_memstream(ret_chrome, &bytes);

    trace_write_chrome(log, file);
    fclose(file);
    file = open_memstream(ret_csv, &bytes);
    trace_write_csv(log, file);
    fclose(file);
}

static uint32_t next_random(uint64_t *seed)
{
    *seed = *seed * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)(*seed >> 33);
}

static void fill_with_noise(struct place *place, uint64_t *seed)
{
    for (uint32_t i = 0; i < SMALL_RECORDS; i++) {
        uint8_t *bytes = (uint8_t *)&place->trace.records[i];

        for (size_t at = 0; at < sizeof(struct trace_record); at++)
            bytes[at] = (uint8_t)next_random(seed);
        /* Near enough to sense that most of it is looked at further. */
        place->trace.records[i].time_ns = long_ago_ns(next_random(seed) % 1000);
        place->trace.records[i].kind %= TRACE_KINDS + 1;
        place->trace.records[i].priority %= 4;
        place->trace.records[i].reason %= 6;
        place->trace.records[i].pool = (uint8_t)('A' + place->trace.records[i].pool % 27);
        place->trace.records[i].what %= 3;
        place->trace.records[i].vm_id = 6 + place->trace.records[i].vm_id % 3;
        if (next_random(seed) % 2)
            place->trace.records[i].device_ns %= 1000000;
    }
    place->trace.header->position = next_random(seed) % 100;
}

static void noise_is_told_as_what_can_be_shown(void **state)
{
    struct place *place = *state;
    uint64_t seed = 1;

    open_trace(place, SMALL_KIB, &mediator);
    for (unsigned run = 0; run < 2000; run++) {
        struct trace_log log;
        char *chrome, *csv;
        json_t *json;

        fill_with_noise(place, &seed);
        read_trace(place, run % 2 ? 7 : 0, &log);
        write_exports(&log, &chrome, &csv);
        json = json_loads(chrome, 0, NULL);
        assert_non_null(json);
        json_decref(json);
        free(chrome);
        free(csv);
        trace_log_clear(&log);
    }
}

/* --- exports ---------------------------------------------------------------------------- */

static void csv_joins_an_operations_arrival_and_end(void **state)
{
    struct place *place = *state;
    struct trace_log log;
    char *chrome, *csv;

    open_trace(place, SMALL_KIB, &vm7);
    write_operation(place, TRACE_ARRIVE, 0, UINT32_MAX, 2, 0); /* the numbers wrap */
    write_operation(place, TRACE_ARRIVE, 50, 1, 1, 0);
    write_operation(place, TRACE_COMPLETE, 100, UINT32_MAX, 0, 90);
    write_operation(place, TRACE_COMPLETE, 200, 0, 0, 100);
    write_operation(place, TRACE_COMPLETE, 300, 1, 0, 30);
    read_trace(place, 7, &log);
    write_exports(&log, &chrome, &csv);
    assert_string_equal(
        csv, "time_us,vm,pool,priority,weight,event,job_us,device,number,device_us,count,reason\n"
             "0,7,B,2,200,arrive,90,,4294967295,,,\n"
             "0,7,B,2,200,arrive,100,,0,,,\n"
             "50,7,B,2,200,arrive,30,,1,,,\n"
             "100,7,B,2,200,complete,,,4294967295,90,0,0\n"
             "200,7,B,2,200,complete,,,0,100,0,0\n"
             "300,7,B,2,200,complete,,,1,30,0,0\n");
    free(chrome);
    free(csv);
    trace_log_clear(&log);
}

static void short_operations_keep_their_sum(void **state)
{
    struct place *place = *state;
    struct trace_log log;
    unsigned long job_us, sum_us = 0;
    char *chrome, *csv, *line;

    open_trace(place, SMALL_KIB, &vm7);
    for (uint32_t i = 0; i < 10; i++)
        trace_write(&place->trace, &(struct trace_record){.time_ns = long_ago_ns(10 * i),
                                                          .device_ns = 1500,
                                                          .vm_id = 7,
                                                          .number = i,
                                                          .kind = TRACE_COMPLETE});
    read_trace(place, 7, &log);
    write_exports(&log, &chrome, &csv);
    for (line = strstr(csv, "arrive,"); line; line = strstr(line + 1, "arrive,")) {
        job_us = strtoul(line + strlen("arrive,"), NULL, 10);
        sum_us += job_us;
    }
    assert_int_equal(sum_us, 15);
    free(chrome);
    free(csv);
    trace_log_clear(&log);
}

static json_t *find_event(json_t *json, const char *name)
{
    json_t *event;
    size_t i;

    json_array_foreach(json_object_get(json, "traceEvents"), i, event)
    {
        if (strcmp(json_string_value(json_object_get(event, "name")), name) == 0)
            return event;
    }
    fail_msg("no event %s", name);
    return NULL;
}

static void chrome_shows_waits_and_grants(void **state)
{
    struct place *place = *state;
    struct trace_log log;
    char *chrome, *csv;
    json_t *json;

    open_trace(place, SMALL_KIB, &mediator);
    write_decision(place, TRACE_WAIT, 0, 3, 1, 0);
    write_decision(place, TRACE_GRANT, 40, 3, 0, 2000);
    write_decision(place, TRACE_REVOKE, 50, 3, 0, 0);
    write_decision(place, TRACE_RETURN, 140, 3, 0, 90);
    read_trace(place, 0, &log);
    write_exports(&log, &chrome, &csv);
    json = json_loads(chrome, 0, NULL);
    assert_non_null(json);
    assert_true(json_number_value(json_object_get(find_event(json, "waits"), "dur")) == 40.0);
    assert_true(json_number_value(json_object_get(find_event(json, "VM 3"), "dur")) == 100.0);
    assert_true(json_number_value(json_object_get(find_event(json, "revoke"), "ts")) == 50.0);
    json_decref(json);
    free(chrome);
    free(csv);
    trace_log_clear(&log);
}

static void a_grant_that_nobody_returned_ends_with_the_next(void **state)
{
    struct place *place = *state;
    struct trace_log log;
    char *chrome, *csv;
    json_t *json;

    open_trace(place, SMALL_KIB, &mediator);
    write_decision(place, TRACE_GRANT, 0, 3, 0, 2000);
    write_decision(place, TRACE_GRANT, 60, 4, 0, 2000);
    write_decision(place, TRACE_RETURN, 100, 4, 0, 30);
    read_trace(place, 0, &log);
    write_exports(&log, &chrome, &csv);
    json = json_loads(chrome, 0, NULL);
    assert_non_null(json);
    assert_int_equal(json_integer_value(json_object_get(
                         json_object_get(find_event(json, "VM 4"), "args"), "used_us")),
                     30);
    free(chrome);
    free(csv);
    json_decref(json);
    trace_log_clear(&log);
}

static void an_empty_log_is_exported_too(void **state)
{
    struct place *place = *state;
    struct trace_log log;
    char *chrome, *csv;
    json_t *json;

    open_trace(place, SMALL_KIB, &mediator);
    read_trace(place, 0, &log);
    write_exports(&log, &chrome, &csv);
    json = json_loads(chrome, 0, NULL);
    assert_non_null(json);
    json_decref(json);
    free(chrome);
    free(csv);
    trace_log_clear(&log);
}

#define CASE(function) cmocka_unit_test_setup_teardown(function, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(what_was_written_is_read_in_its_order),
        CASE(the_oldest_are_written_over),
        CASE(a_record_that_was_not_finished_is_not_read),
        CASE(the_next_writer_goes_on_where_the_last_one_was),
        CASE(another_size_begins_anew),
        CASE(without_a_file_nothing_is_written),
        CASE(a_workers_word_counts_for_its_vm_only),
        CASE(a_position_that_is_a_lie_does_no_harm),
        CASE(a_file_of_another_kind_is_refused),
        CASE(noise_is_told_as_what_can_be_shown),
        CASE(csv_joins_an_operations_arrival_and_end),
        CASE(short_operations_keep_their_sum),
        CASE(chrome_shows_waits_and_grants),
        CASE(a_grant_that_nobody_returned_ends_with_the_next),
        CASE(an_empty_log_is_exported_too),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
