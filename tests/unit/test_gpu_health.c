/* SPDX-License-Identifier: Apache-2.0 */
/* The watch over the GPUs, on tests/doubles/fake_nvml.c: what is told, what is unknown. */
#include "unit.h"

#include "gpu/health_private.h"

#include <errno.h>
#include <stdatomic.h>

#define PATIENCE_MS 60000u /* only a failure takes so long */
#define INTERVAL_MS 5u
#define STORM 3000u

struct place {
    char *directory;
    char *path, *conf, *conf_new;
    struct gpu_health *health;
    struct gpu_snapshot now;
    atomic_uint woken;
};

/* --- the place ------------------------------------------------------------------------- */

static void copy_file(const char *from, const char *to)
{
    FILE *in = fopen(from, "re"), *out = fopen(to, "we");
    char buffer[65536];
    size_t bytes;

    assert_non_null(in);
    assert_non_null(out);
    while ((bytes = fread(buffer, 1, sizeof(buffer), in)) > 0)
        assert_int_equal(fwrite(buffer, 1, bytes, out), bytes);
    fclose(in);
    assert_int_equal(fclose(out), 0);
}

/* A library of its own: its file stands beside it. */
static void use_library(struct place *place, const char *variable)
{
    copy_file(getenv(variable), place->path);
}

static int setup(void **state)
{
    struct place *place = calloc(1, sizeof(*place));

    place->directory = unit_temporary_directory();
    if (asprintf(&place->path, "%s/libnvidia-ml.so.1", place->directory) < 0 ||
        asprintf(&place->conf, "%s.conf", place->path) < 0 ||
        asprintf(&place->conf_new, "%s.new", place->path) < 0)
        return -1;
    use_library(place, "VGPU_FAKE_NVML");
    *state = place;
    return 0;
}

static int teardown(void **state)
{
    struct place *place = *state;

    unlink(place->conf); /* nothing hangs from here on */
    gpu_health_close(place->health);
    free(place->path);
    free(place->conf);
    free(place->conf_new);
    unit_remove_directory(place->directory);
    free(place);
    return 0;
}

/* Never half of it is there. */
static void tell(struct place *place, const char *text)
{
    FILE *file = fopen(place->conf_new, "we");

    assert_non_null(file);
    fputs(text, file);
    assert_int_equal(fclose(file), 0);
    assert_int_equal(rename(place->conf_new, place->conf), 0);
}

static void count_wake(void *context)
{
    struct place *place = context;

    place->woken++;
}

static void open_watch(struct place *place)
{
    const struct gpu_health_config config = {.nvml_library = place->path,
                                             .interval_ms = INTERVAL_MS,
                                             .wake = count_wake,
                                             .context = place};
    struct vgpu_error error = {0};

    if (gpu_health_open(&config, &place->health, &error) < 0)
        fail_msg("%s", error.message);
}

static void close_watch(struct place *place)
{
    gpu_health_close(place->health);
    place->health = NULL;
}

static void look(struct place *place)
{
    gpu_health_read(place->health, &place->now);
}

/* A sample that began after this call. */
static void look_anew(struct place *place)
{
    look(place);
    assert_true(gpu_health_wait(place->health, place->now.samples + 2, PATIENCE_MS));
    look(place);
}

static void watch(struct place *place, const char *conf)
{
    tell(place, conf);
    open_watch(place);
    assert_true(gpu_health_wait(place->health, 1, PATIENCE_MS));
    look(place);
}

/* The next event but for those that this test does not ask for. */
static struct gpu_event next_event(struct place *place)
{
    struct gpu_event event = {0};
    bool found = gpu_health_next_event(place->health, &event);

    for (unsigned i = 0; !found && i < PATIENCE_MS; i++) {
        usleep(1000);
        found = gpu_health_next_event(place->health, &event);
    }
    assert_true(found);
    return event;
}

static void assert_value(struct gpu_value value, uint64_t expected)
{
    assert_true(value.known);
    assert_int_equal(value.value, expected);
}

static unsigned count_known(const struct gpu_values *values)
{
    return values->utilization_percent.known + values->memory_total_bytes.known +
           values->memory_used_bytes.known + values->memory_reserved_bytes.known +
           values->temperature_c.known + values->power_mw.known + values->power_limit_mw.known +
           values->ecc_corrected.known + values->ecc_uncorrected.known +
           values->throttle_reasons.known + values->mig_on.known;
}

#define VALUES 11u

/* --- the library ------------------------------------------------------------------------- */

static void a_library_that_is_not_there_is_told_with_what_to_do(void **state)
{
    struct place *place = *state;
    struct gpu_health_config config = {.nvml_library = place->path, .interval_ms = INTERVAL_MS};
    struct gpu_health *health = NULL;
    struct vgpu_error error = {0};

    unlink(place->path);
    assert_int_equal(gpu_health_open(&config, &health, &error), -1);
    assert_null(health);
    assert_int_equal(error.code, ENOENT);
    assert_non_null(strstr(error.message, place->path));
    assert_non_null(strstr(error.message, "nvml_library"));
}

static void a_library_that_is_too_old_is_told_with_what_it_lacks(void **state)
{
    struct place *place = *state;
    struct vgpu_error error = {0};
    struct nvml nvml = {0};

    use_library(place, "VGPU_FAKE_NVML_TOO_OLD");
    assert_int_equal(nvml_load(place->path, &nvml, &error), -1);
    assert_null(nvml.handle);
    assert_int_equal(error.code, ENOSYS);
    assert_non_null(strstr(error.message, "nvmlEventSetWait_v2"));
    assert_non_null(strstr(error.message, "450"));
}

static void what_an_old_library_lacks_is_unknown(void **state)
{
    struct place *place = *state;
    const struct gpu_status *gpu = &place->now.gpus[0];

    use_library(place, "VGPU_FAKE_NVML_OLD");
    watch(place, "");
    assert_string_equal(place->now.nvml_version, "");
    assert_string_equal(place->now.driver_version, "550.54.15");
    assert_value(gpu->values.memory_total_bytes, 80ull << 30);
    assert_false(gpu->values.memory_reserved_bytes.known);
    assert_false(gpu->values.power_limit_mw.known);
    assert_false(gpu->values.throttle_reasons.known);
    assert_false(gpu->values.mig_on.known);
    assert_int_equal(count_known(&gpu->values), VALUES - 4);
}

/* --- values -------------------------------------------------------------------------------- */

static void all_values_of_each_gpu_are_told(void **state)
{
    struct place *place = *state;
    const struct gpu_status *gpu = &place->now.gpus[1];

    watch(place, "devices 2\nname 1 Second\nvalue 1 memory_total 1000\nvalue 1 memory_used 400\n"
                 "value 1 memory_reserved 100\nvalue 1 utilization 87\nvalue 1 temperature 71\n"
                 "value 1 power 350500\nvalue 1 power_limit 400000\nvalue 1 ecc_corrected 3\n"
                 "value 1 ecc_uncorrected 1\nvalue 1 throttle 68\n");
    assert_int_equal(place->now.count, 2);
    assert_string_equal(place->now.problem, "");
    assert_string_equal(place->now.driver_version, "550.54.15");
    assert_string_equal(place->now.gpus[0].name, "Fake-GPU");
    assert_int_equal(gpu->index, 1);
    assert_string_equal(gpu->name, "Second");
    assert_string_equal(gpu->uuid, "GPU-00000000-0000-0000-0000-000000000001");
    assert_string_equal(gpu->pci_address, "0000:66:00.0");
    assert_value(gpu->values.memory_total_bytes, 1000);
    assert_value(gpu->values.memory_used_bytes, 400);
    assert_value(gpu->values.memory_reserved_bytes, 100);
    assert_value(gpu->values.utilization_percent, 87);
    assert_value(gpu->values.temperature_c, 71);
    assert_value(gpu->values.power_mw, 350500);
    assert_value(gpu->values.power_limit_mw, 400000);
    assert_value(gpu->values.ecc_corrected, 3);
    assert_value(gpu->values.ecc_uncorrected, 1);
    assert_value(gpu->values.throttle_reasons, NVML_THROTTLE_POWER_CAP | NVML_THROTTLE_HW_THERMAL);
    assert_value(gpu->values.mig_on, 0);
    assert_false(gpu->xid_last.known);
}

static void new_values_are_seen_by_the_next_sample(void **state)
{
    struct place *place = *state;

    watch(place, "value 0 temperature 40\n");
    assert_value(place->now.gpus[0].values.temperature_c, 40);
    tell(place, "value 0 temperature 90\n");
    look_anew(place);
    assert_value(place->now.gpus[0].values.temperature_c, 90);
}

static void mig_devices_are_listed(void **state)
{
    struct place *place = *state;
    const struct gpu_values *values = &place->now.gpus[0].values;

    watch(place, "mig 0 MIG-aaaa\nmig 0 MIG-bbbb\n");
    assert_value(values->mig_on, 1);
    assert_int_equal(values->mig_count, 2);
    assert_string_equal(values->migs[0], "MIG-aaaa");
    assert_string_equal(values->migs[1], "MIG-bbbb");
    tell(place, "mig 0 none\n");
    look_anew(place);
    assert_value(values->mig_on, 1);
    assert_int_equal(values->mig_count, 0);
}

/* How many values are unknown when one function fails. */
static const struct {
    const char *function;
    unsigned unknown;
} value_functions[] = {
    {"nvmlDeviceGetMemoryInfo", 0}, /* the newer one answers */
    {"nvmlDeviceGetMemoryInfo_v2", 1},
    {"nvmlDeviceGetUtilizationRates", 1},
    {"nvmlDeviceGetTemperature", 1},
    {"nvmlDeviceGetPowerUsage", 1},
    {"nvmlDeviceGetEnforcedPowerLimit", 1},
    {"nvmlDeviceGetTotalEccErrors", 2},
    {"nvmlDeviceGetCurrentClocksThrottleReasons", 0}, /* the same under its newer name */
    {"nvmlDeviceGetCurrentClocksEventReasons", 0},
    {"nvmlDeviceGetMigMode", 1},
    {"nvmlDeviceGetMaxMigDeviceCount", 0},
    {"nvmlDeviceGetMigDeviceHandleByIndex", 0},
    {"nvmlDeviceGetUUID", 0},
    {"nvmlDeviceGetName", 0},
    {"nvmlDeviceGetPciInfo_v3", 0},
    {"nvmlSystemGetDriverVersion", 0},
    {"nvmlSystemGetNVMLVersion", 0},
    {"nvmlEventSetCreate", 0},
    {"nvmlDeviceRegisterEvents", 0},
    {"nvmlDeviceGetSupportedEventTypes", 0},
    {"nvmlEventSetWait_v2", 0},
    {"nvmlEventSetFree", 0},
    {"nvmlShutdown", 0},
};

static void check_failing(struct place *place, const char *how, const char *code)
{
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(value_functions); i++) {
        char conf[128];

        snprintf(conf, sizeof(conf), "%s %s %s\n", how, value_functions[i].function, code);
        watch(place, conf);
        look_anew(place);
        assert_int_equal(place->now.count, 1);
        assert_false(place->now.gpus[0].lost);
        assert_int_equal(count_known(&place->now.gpus[0].values),
                         VALUES - value_functions[i].unknown);
        close_watch(place);
    }
}

static void each_function_that_fails_makes_its_values_unknown_and_no_others(void **state)
{
    check_failing(*state, "fail", "999");
}

static void each_function_that_is_unsupported_makes_its_values_unknown(void **state)
{
    check_failing(*state, "unsupported", "");
}

static void without_names_a_gpu_is_told_with_what_is_known(void **state)
{
    struct place *place = *state;

    watch(place, "fail nvmlDeviceGetUUID 999\nfail nvmlDeviceGetName 999\n"
                 "fail nvmlDeviceGetPciInfo_v3 999\n");
    assert_int_equal(place->now.count, 1);
    assert_string_equal(place->now.gpus[0].uuid, "");
    assert_string_equal(place->now.gpus[0].name, "");
    assert_string_equal(place->now.gpus[0].pci_address, "");
    assert_int_equal(count_known(&place->now.gpus[0].values), VALUES);
}

/* --- the driver --------------------------------------------------------------------------------
 */

static void a_driver_that_is_not_loaded_is_told_and_tried_again(void **state)
{
    struct place *place = *state;

    watch(place, "fail nvmlInit_v2 9\n");
    assert_int_equal(place->now.count, 0);
    assert_non_null(strstr(place->now.problem, "nvmlInit_v2: Driver Not Loaded (9)"));
    tell(place, "");
    while (place->now.count == 0)
        look_anew(place);
    look_anew(place);
    assert_string_equal(place->now.problem, "");
    assert_int_equal(count_known(&place->now.gpus[0].values), VALUES);
}

static void a_host_without_a_gpu_has_none_and_says_so(void **state)
{
    struct place *place = *state;

    watch(place, "devices 0\n");
    assert_int_equal(place->now.count, 0);
    assert_string_equal(place->now.problem, "the driver knows no GPU");
}

static void gpus_that_cannot_be_counted_are_a_problem(void **state)
{
    struct place *place = *state;

    watch(place, "fail nvmlDeviceGetCount_v2 999\n");
    assert_int_equal(place->now.count, 0);
    assert_non_null(strstr(place->now.problem, "nvmlDeviceGetCount_v2"));
}

/* --- lost and back
 * -------------------------------------------------------------------------------- */

static void a_gpu_is_lost_and_found_again(void **state)
{
    struct place *place = *state;
    const struct gpu_status *gpu = &place->now.gpus[1];

    watch(place, "devices 2\n");
    tell(place, "devices 2\nlost 1\n");
    while (!gpu->lost)
        look_anew(place);
    assert_int_equal(count_known(&gpu->values), 0);
    assert_string_equal(gpu->uuid, "GPU-00000000-0000-0000-0000-000000000001");
    assert_int_equal(count_known(&place->now.gpus[0].values), VALUES);
    assert_int_equal(next_event(place).type, GPU_EVENT_LOST);
    tell(place, "devices 2\n");
    while (gpu->lost)
        look_anew(place);
    look_anew(place);
    assert_int_equal(count_known(&gpu->values), VALUES);
    assert_int_equal(gpu->losses, 1);
    assert_int_equal(gpu->returns, 1);
    assert_int_equal(next_event(place).type, GPU_EVENT_BACK);
    assert_int_equal(place->now.count, 2);
    assert_int_equal(place->now.gpus[0].losses, 0);
}

static void a_gpu_that_was_lost_before_the_start_is_listed_and_found(void **state)
{
    struct place *place = *state;
    const struct gpu_status *gpu = &place->now.gpus[1];

    watch(place, "devices 2\nlost 0\n");
    assert_int_equal(place->now.count, 2);
    assert_true(gpu->lost);
    assert_int_equal(gpu->index, 0);
    assert_string_equal(gpu->uuid, "");
    tell(place, "devices 2\n");
    while (gpu->lost)
        look_anew(place);
    assert_int_equal(place->now.count, 2);
    assert_string_equal(gpu->uuid, "GPU-00000000-0000-0000-0000-000000000000");
}

static void a_gpu_keeps_its_place_when_the_driver_counts_anew(void **state)
{
    struct place *place = *state;

    watch(place, "devices 2\nuuid 0 GPU-a\nuuid 1 GPU-b\n");
    tell(place, "devices 1\nuuid 0 GPU-b\nlost 0\n");
    while (!place->now.gpus[0].lost || !place->now.gpus[1].lost)
        look_anew(place);
    tell(place, "devices 1\nuuid 0 GPU-b\n");
    while (place->now.gpus[1].lost)
        look_anew(place);
    assert_string_equal(place->now.gpus[0].uuid, "GPU-a");
    assert_true(place->now.gpus[0].lost);
    assert_string_equal(place->now.gpus[1].uuid, "GPU-b");
    assert_int_equal(place->now.gpus[1].index, 0);
    assert_int_equal(place->now.count, 2);
}

static void a_gpu_that_answers_nothing_several_times_is_lost(void **state)
{
    struct place *place = *state;

    watch(place, "");
    tell(place, "fail nvmlDeviceGetMemoryInfo 999\nfail nvmlDeviceGetMemoryInfo_v2 999\n"
                "fail nvmlDeviceGetUtilizationRates 999\nfail nvmlDeviceGetTemperature 999\n"
                "fail nvmlDeviceGetPowerUsage 999\nfail nvmlDeviceGetEnforcedPowerLimit 999\n"
                "fail nvmlDeviceGetTotalEccErrors 999\nfail nvmlDeviceGetMigMode 999\n"
                "fail nvmlDeviceGetCurrentClocksThrottleReasons 999\n"
                "fail nvmlDeviceGetCurrentClocksEventReasons 999\n");
    while (!place->now.gpus[0].lost)
        look_anew(place);
    tell(place, "");
    while (place->now.gpus[0].lost)
        look_anew(place);
    assert_int_equal(place->now.gpus[0].losses, 1);
    assert_int_equal(place->now.gpus[0].returns, 1);
}

/* --- XIDs
 * ------------------------------------------------------------------------------------------ */

static void an_xid_is_told_once_with_its_gpu(void **state)
{
    struct place *place = *state;
    struct gpu_event event;

    watch(place, "devices 2\n");
    tell(place, "devices 2\nxid 1 31\nxid 1 43\n");
    event = next_event(place);
    assert_int_equal(event.type, GPU_EVENT_XID);
    assert_int_equal(event.gpu, 1);
    assert_int_equal(event.xid, 31);
    assert_int_equal(event.untold, 0);
    assert_int_equal(next_event(place).xid, 43);
    look_anew(place);
    assert_false(gpu_health_next_event(place->health, &event));
    assert_int_equal(place->now.gpus[1].xid_count, 2);
    assert_value(place->now.gpus[1].xid_last, 43);
    assert_true(place->now.gpus[1].xid_last_ns > 0);
    assert_int_equal(place->now.gpus[0].xid_count, 0);
}

static void of_a_storm_all_is_counted_little_is_told_and_others_are_heard(void **state)
{
    struct place *place = *state;
    uint64_t told = 0, untold = 0;
    bool other = false;
    char conf[64];

    snprintf(conf, sizeof(conf), "devices 2\nxid 0 31 %u\nxid 1 79\n", STORM);
    watch(place, conf);
    while (told + untold < STORM || !other) {
        struct gpu_event event = next_event(place);

        other |= event.gpu == 1 && event.xid == 79;
        told += event.gpu == 0;
        untold += event.gpu == 0 ? event.untold : 0;
    }
    look(place);
    assert_int_equal(told + untold, STORM);
    assert_true(told < STORM / 2);
    assert_int_equal(place->now.gpus[0].xid_count, STORM);
    assert_int_equal(place->now.gpus[1].xid_count, 1);
}

static void a_reader_who_takes_nothing_still_learns_of_a_loss(void **state)
{
    struct place *place = *state;
    char conf[2048] = "devices 32\n";
    unsigned losses = 0, xids = 0;

    for (unsigned i = 0; i < 32; i++)
        snprintf(conf + strlen(conf), sizeof(conf) - strlen(conf), "xid %u 31 8\n", i);
    watch(place, conf);
    while (place->now.gpus[31].xid_count < 8)
        look_anew(place);
    snprintf(conf + strlen(conf), sizeof(conf) - strlen(conf), "lost 7\n");
    tell(place, conf);
    while (!place->now.gpus[7].lost)
        look_anew(place);
    while (losses == 0) {
        struct gpu_event event = next_event(place);

        losses += event.type == GPU_EVENT_LOST && event.gpu == 7;
        xids += event.type == GPU_EVENT_XID;
    }
    assert_true(xids <= EVENTS_XID_MAX);
}

static void known_xids_are_classed_and_say_what_to_do(void **state)
{
    static const struct {
        uint32_t number;
        enum gpu_xid_class class;
    } expected[] = {{13, GPU_XID_APPLICATION}, {31, GPU_XID_APPLICATION}, {43, GPU_XID_APPLICATION},
                    {45, GPU_XID_APPLICATION}, {68, GPU_XID_APPLICATION}, {69, GPU_XID_APPLICATION},
                    {63, GPU_XID_ATTENTION},   {94, GPU_XID_ATTENTION},   {48, GPU_XID_FATAL},
                    {64, GPU_XID_FATAL},       {79, GPU_XID_FATAL},       {95, GPU_XID_FATAL},
                    {119, GPU_XID_FATAL},      {120, GPU_XID_FATAL},      {0, GPU_XID_UNKNOWN},
                    {999, GPU_XID_UNKNOWN}};

    (void)state;
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(expected); i++)
        assert_int_equal(gpu_xid_find(expected[i].number)->class, expected[i].class);
    for (uint32_t number = 0; number < 1000; number++) {
        const struct gpu_xid *xid = gpu_xid_find(number);

        assert_true(xid->class == GPU_XID_UNKNOWN || xid->number == number);
        assert_true(strlen(xid->meaning) > 10 && strlen(xid->remedy) > 10);
        assert_true(strlen(gpu_xid_class_name(xid->class)) > 0);
    }
}

static void each_throttle_reason_has_a_word(void **state)
{
    uint64_t bits = NVML_THROTTLE_HW_THERMAL | NVML_THROTTLE_POWER_CAP | 1ull << 40 | 1ull << 50;

    (void)state;
    assert_string_equal(gpu_throttle_next(&bits), "power-cap");
    assert_string_equal(gpu_throttle_next(&bits), "hw-thermal");
    assert_string_equal(gpu_throttle_next(&bits), "other");
    assert_null(gpu_throttle_next(&bits));
}

/* --- a driver that hangs
 * ----------------------------------------------------------------------------- */

static void a_slow_call_blocks_no_reader(void **state)
{
    struct place *place = *state;
    struct gpu_event event;

    tell(place, "devices 2\ndelay nvmlDeviceGetTemperature 3600000\n");
    open_watch(place);
    for (int i = 0; i < 100; i++) {
        look(place);
        assert_false(gpu_health_next_event(place->health, &event));
        gpu_health_sample(place->health);
    }
    assert_false(gpu_health_wait(place->health, 1, 1));
    assert_int_equal(count_known(&place->now.gpus[0].values), 0);
    tell(place, "devices 2\n");
    assert_true(gpu_health_wait(place->health, 1, PATIENCE_MS));
    look(place);
    assert_int_equal(count_known(&place->now.gpus[1].values), VALUES);
}

static void a_watch_is_closed_while_the_driver_hangs(void **state)
{
    struct place *place = *state;
    unsigned woken;

    watch(place, "");
    tell(place, "delay nvmlDeviceGetTemperature 3600000\n");
    while (gpu_health_wait(place->health, place->now.samples + 1, 100))
        look(place);
    close_watch(place);
    woken = place->woken;
    tell(place, "");
    usleep(20000); /* a late call would be seen, most likely */
    assert_int_equal(place->woken, woken);
}

static void values_that_are_too_old_are_unknown(void **state)
{
    struct gpu_status gpu = {.sampled_ns = 1000, .values.temperature_c = {true, 40}};

    (void)state;
    health_judge_age(&gpu, 1500, 500);
    assert_false(gpu.silent);
    assert_value(gpu.values.temperature_c, 40);
    health_judge_age(&gpu, 1501, 500);
    assert_true(gpu.silent);
    assert_int_equal(count_known(&gpu.values), 0);
}

static void the_reader_is_woken_by_samples_and_events(void **state)
{
    struct place *place = *state;
    unsigned before;

    watch(place, "");
    before = place->woken;
    assert_true(before > 0);
    tell(place, "xid 0 13\n");
    next_event(place);
    look_anew(place);
    assert_true(place->woken > before);
}

static void a_sample_is_taken_before_its_time_when_it_is_wanted(void **state)
{
    struct place *place = *state;
    const struct gpu_health_config config = {.nvml_library = place->path, .interval_ms = 3600000};
    struct vgpu_error error = {0};

    assert_int_equal(gpu_health_open(&config, &place->health, &error), 0);
    assert_true(gpu_health_wait(place->health, 1, PATIENCE_MS));
    gpu_health_sample(place->health);
    assert_true(gpu_health_wait(place->health, 2, PATIENCE_MS));
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_library_that_is_not_there_is_told_with_what_to_do),
        TEST(a_library_that_is_too_old_is_told_with_what_it_lacks),
        TEST(what_an_old_library_lacks_is_unknown),
        TEST(all_values_of_each_gpu_are_told),
        TEST(new_values_are_seen_by_the_next_sample),
        TEST(mig_devices_are_listed),
        TEST(each_function_that_fails_makes_its_values_unknown_and_no_others),
        TEST(each_function_that_is_unsupported_makes_its_values_unknown),
        TEST(without_names_a_gpu_is_told_with_what_is_known),
        TEST(a_driver_that_is_not_loaded_is_told_and_tried_again),
        TEST(a_host_without_a_gpu_has_none_and_says_so),
        TEST(gpus_that_cannot_be_counted_are_a_problem),
        TEST(a_gpu_is_lost_and_found_again),
        TEST(a_gpu_that_was_lost_before_the_start_is_listed_and_found),
        TEST(a_gpu_keeps_its_place_when_the_driver_counts_anew),
        TEST(a_gpu_that_answers_nothing_several_times_is_lost),
        TEST(an_xid_is_told_once_with_its_gpu),
        TEST(of_a_storm_all_is_counted_little_is_told_and_others_are_heard),
        TEST(a_reader_who_takes_nothing_still_learns_of_a_loss),
        cmocka_unit_test(known_xids_are_classed_and_say_what_to_do),
        cmocka_unit_test(each_throttle_reason_has_a_word),
        TEST(a_slow_call_blocks_no_reader),
        TEST(a_watch_is_closed_while_the_driver_hangs),
        cmocka_unit_test(values_that_are_too_old_are_unknown),
        TEST(the_reader_is_woken_by_samples_and_events),
        TEST(a_sample_is_taken_before_its_time_when_it_is_wanted),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
