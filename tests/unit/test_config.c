/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The configuration: every key, every default, and every error with its file and
 * line, what was expected and what came.
 */
#include "unit.h"

#include "mediator/mediator.h"

#include <errno.h>
#include <fcntl.h>

struct place {
    char *directory;
    char path[512];
    struct config config;
    struct vgpu_error error;
};

static int place_make(void **state)
{
    struct place *place = calloc(1, sizeof(*place));

    place->directory = unit_temporary_directory();
    snprintf(place->path, sizeof(place->path), "%s/mediator.conf", place->directory);
    config_init(&place->config);
    *state = place;
    return 0;
}

static int place_remove(void **state)
{
    struct place *place = *state;

    config_free(&place->config);
    unit_remove_directory(place->directory);
    free(place);
    return 0;
}

static int read_text(struct place *place, const char *text)
{
    FILE *file = fopen(place->path, "we");

    assert_non_null(file);
    fputs(text, file);
    fclose(file);
    memset(&place->error, 0, sizeof(place->error));
    return config_read(&place->config, place->path, &place->error);
}

static void read_right(struct place *place, const char *text)
{
    if (read_text(place, text) < 0)
        fail_msg("%s", place->error.message);
}

/* The message must be `<path>, line <line>: <message>`. */
static void read_wrong(struct place *place, const char *text, unsigned line, const char *message)
{
    char expected[1024];

    assert_int_equal(read_text(place, text), -1);
    snprintf(expected, sizeof(expected), "%s, line %u: %s", place->path, line, message);
    assert_string_equal(place->error.message, expected);
    config_free(&place->config);
    config_init(&place->config);
}

static void complete_right(struct place *place)
{
    assert_int_equal(config_set(&place->config, "worker", "/bin/true", &place->error), 0);
    if (config_complete(&place->config, &place->error) < 0)
        fail_msg("%s", place->error.message);
}

/* What was read and completed before must not count. */
static void begin_anew(struct place *place)
{
    config_free(&place->config);
    config_init(&place->config);
}

static void complete_wrong(struct place *place, const char *message)
{
    assert_int_equal(config_complete(&place->config, &place->error), -1);
    if (!strstr(place->error.message, message))
        fail_msg("'%s' is not in '%s'", message, place->error.message);
}

/* --- what is right ------------------------------------------------------------- */

static void empty_file_leaves_the_defaults(void **state)
{
    struct place *place = *state;
    const struct config *config = &place->config;

    read_right(place, "");
    complete_right(place);
    assert_string_equal(config->share, "/var/vgpu");
    assert_string_equal(config->state_dir, "/var/lib/vgpu");
    assert_string_equal(config->log, "");
    assert_string_equal(config->execution_log, "");
    assert_int_equal(config->log_format, LOG_FORMAT_TEXT);
    assert_int_equal(config->log_level, LOG_LEVEL_INFO);
    assert_int_equal(config->pools_mode, SCHED_POOLS_SHARED);
    assert_int_equal(config->policy, SCHED_POLICY_STRICT);
    assert_false(config->accept_unregistered);
    assert_int_equal(config->max_priority, 1);
    assert_int_equal(config->response_hold_ms, 5000);
    assert_int_equal(config->operation_limit_ms, 60000);
    assert_int_equal(config->pool_count, 2);
    assert_int_equal(config->pools[0].id, 'A');
    assert_int_equal(config->pools[1].id, 'B');
    assert_string_equal(config->pools[0].device, "cpu");
    assert_string_equal(config->pools[1].device, "cpu");
    assert_int_equal(config->vm_count, 0);
}

static void every_key_of_the_mediator_is_read(void **state)
{
    struct place *place = *state;
    const struct config *config = &place->config;

    read_right(place, "; a comment\n"
                      "# another\n"
                      "[mediator]\n"
                      "share = /s\n"
                      "state_dir=/t\n"
                      "log = /l  ; why\n"
                      "worker = /bin/true\n"
                      "execution_log = /e\n"
                      "log_format = json\n"
                      "log_level = debug\n"
                      "pools = independent\n"
                      "policy = fifo\n"
                      "unregistered = accept\n"
                      "max_priority = high\n"
                      "poll_min_ms = 3\n"
                      "poll_max_ms = 4\n"
                      "response_hold_ms = 0\n"
                      "unterminated_hold_ms = 100\n"
                      "operation_limit_ms = 86400000\n"
                      "worker_idle_ms = 7\n");
    assert_string_equal(config->share, "/s");
    assert_string_equal(config->state_dir, "/t");
    assert_string_equal(config->log, "/l");
    assert_string_equal(config->worker, "/bin/true");
    assert_string_equal(config->execution_log, "/e");
    assert_int_equal(config->log_format, LOG_FORMAT_JSON);
    assert_int_equal(config->log_level, LOG_LEVEL_DEBUG);
    assert_int_equal(config->pools_mode, SCHED_POOLS_INDEPENDENT);
    assert_int_equal(config->policy, SCHED_POLICY_FIFO);
    assert_true(config->accept_unregistered);
    assert_int_equal(config->max_priority, 2);
    assert_int_equal(config->poll_min_ms, 3);
    assert_int_equal(config->poll_max_ms, 4);
    assert_int_equal(config->response_hold_ms, 0);
    assert_int_equal(config->unterminated_hold_ms, 100);
    assert_int_equal(config->operation_limit_ms, 86400000);
    assert_int_equal(config->worker_idle_ms, 7);
    complete_right(place);
}

static void pools_are_read_with_name_and_device(void **state)
{
    struct place *place = *state;
    const struct config *config = &place->config;

    read_right(place, "[pool C]\nname = big one\ndevice = cpu:63\n[pool A]\ndevice = cpu\n");
    complete_right(place);
    assert_int_equal(config->pool_count, 2);
    assert_int_equal(config->pools[0].id, 'C');
    assert_string_equal(config->pools[0].name, "big one");
    assert_string_equal(config->pools[0].device, "cpu:63");
    assert_int_equal(config->pools[1].id, 'A');
}

static void a_pool_may_have_several_devices(void **state)
{
    struct place *place = *state;
    const struct config *config = &place->config;
    char name[CONFIG_DEVICE_BYTES];

    read_right(place, "[mediator]\nsessions_per_device = 3\ncontexts_per_device = 0\n"
                      "contexts_per_vm = 5\n"
                      "[pool A]\ndevice = cuda:0\t cuda:1\nplacement = pack\n"
                      "[pool B]\ndevice = cpu\nplacement = spread\n");
    complete_right(place);
    assert_int_equal(config->sessions_per_device, 3);
    assert_int_equal(config->contexts_per_device, 0);
    assert_int_equal(config->contexts_per_vm, 5);
    assert_string_equal(config->pools[0].device, "cuda:0 cuda:1");
    assert_true(config->pools[0].pack);
    assert_string_equal(config_pool_device(&config->pools[0], 1, name), "cuda:1");
    assert_null(config_pool_device(&config->pools[0], 2, name));
    assert_false(config->pools[1].pack);
}

static void a_pool_has_the_mediators_policy_or_its_own(void **state)
{
    struct place *place = *state;
    const struct config *config = &place->config;

    read_right(place, "[pool A]\ndevice = cpu\n"
                      "[pool B]\npolicy = round-robin\naging_ms = 500\ndemand = yes\n");
    complete_right(place);
    assert_int_equal(config->pools[0].policy, CONFIG_POLICY_DEFAULT);
    assert_false(config->pools[0].demand);
    assert_int_equal(config->pools[1].policy, CONFIG_POLICY_ROUND_ROBIN);
    assert_int_equal(config->pools[1].aging_ms, 500);
    assert_true(config->pools[1].demand);
}

static void a_policy_or_a_limit_that_is_none_is_refused(void **state)
{
    struct place *place = *state;

    read_wrong(place, "[pool A]\npolicy = fair\n", 2,
               "policy = fair: expected strict or wfq or fifo or round-robin or default");
    read_wrong(place, "[vm 1]\ndevice_share_percent = 101\n", 2,
               "device_share_percent = 101: expected a whole number from 0 to 100");
}

static void vms_are_read_with_all_their_keys(void **state)
{
    struct place *place = *state;
    const struct config *config = &place->config;

    read_right(place, "[vm 100]\n"
                      "pool = B\n"
                      "priority = high\n"
                      "name = the first\n"
                      "owner = 1000:2000\n"
                      "mode = 0750\n"
                      "weight = 300\n"
                      "request_rate = 10000000\n"
                      "request_burst = 7\n"
                      "device_share_percent = 25\n"
                      "queue_depth_max = 9\n"
                      "inflight_ops_max = 10\n"
                      "inflight_kib_max = 11\n"
                      "\n"
                      "[vm 4294967295]\n"
                      "priority = 0\n");
    complete_right(place);
    assert_int_equal(config->vm_count, 2);
    assert_int_equal(config->vms[0].vm_id, 100);
    assert_int_equal(config->vms[0].pool, 'B');
    assert_int_equal(config->vms[0].priority, 2);
    assert_string_equal(config->vms[0].name, "the first");
    assert_int_equal(config->vms[0].owner_uid, 1000);
    assert_int_equal(config->vms[0].owner_gid, 2000);
    assert_int_equal(config->vms[0].mode, 0750);
    assert_int_equal(config->vms[0].weight, 300);
    assert_int_equal(config->vms[0].request_rate, 10000000);
    assert_int_equal(config->vms[0].request_burst, 7);
    assert_int_equal(config->vms[0].device_share_percent, 25);
    assert_int_equal(config->vms[0].queue_depth_max, 9);
    assert_int_equal(config->vms[0].inflight_ops_max, 10);
    assert_int_equal(config->vms[0].inflight_kib_max, 11);
    assert_int_equal(config->vms[1].vm_id, 4294967295u);
    assert_int_equal(config->vms[1].pool, 'A');
    assert_int_equal(config->vms[1].priority, 0);
    assert_int_equal(config->vms[1].owner_uid, (uid_t)-1);
    assert_int_equal(config->vms[1].mode, 0700);
}

static void owner_may_be_a_name_and_brings_its_group(void **state)
{
    struct place *place = *state;
    const struct config *config = &place->config;

    read_right(place, "[vm 1]\nowner = root\n[vm 2]\nowner = 77\n[vm 3]\nowner = 77:root\n");
    assert_int_equal(config->vms[0].owner_uid, 0);
    assert_int_equal(config->vms[0].owner_gid, 0);
    assert_int_equal(config->vms[1].owner_uid, 77);
    assert_int_equal(config->vms[1].owner_gid, 77);
    assert_int_equal(config->vms[2].owner_uid, 77);
    assert_int_equal(config->vms[2].owner_gid, 0);
}

static void thousand_vms_are_read(void **state)
{
    struct place *place = *state;
    char *text = NULL;
    size_t bytes;
    FILE *memory = open_memstream(&text, &bytes);

    for (unsigned i = 1; i <= 1000; i++)
        fprintf(memory, "[vm %u]\npool = %c\n", i, "AB"[i % 2]);
    fclose(memory);
    read_right(place, text);
    free(text);
    complete_right(place);
    assert_int_equal(place->config.vm_count, 1000);
    assert_int_equal(place->config.vms[999].vm_id, 1000);
    assert_int_equal(place->config.vms[999].pool, 'A');
}

static void last_line_needs_no_newline(void **state)
{
    struct place *place = *state;

    read_right(place, "[vm 7]\npool = B");
    assert_int_equal(place->config.vm_count, 1);
    assert_int_equal(place->config.vms[0].pool, 'B');
}

/* --- what is wrong --------------------------------------------------------------- */

static void wrong_value_names_file_line_key_and_what_was_expected(void **state)
{
    static const struct {
        const char *line, *message;
    } cases[] = {
        {"share = relative", "share = relative: expected an absolute path"},
        {"state_dir = ", "state_dir = : expected an absolute path"},
        {"log = l", "log = l: expected an absolute path"},
        {"worker = w", "worker = w: expected an absolute path"},
        {"execution_log = e", "execution_log = e: expected an absolute path"},
        {"log_format = xml", "log_format = xml: expected text or json"},
        {"log_level = all", "log_level = all: expected error or warning or info or debug"},
        {"pools = Shared", "pools = Shared: expected shared or independent"},
        {"policy = fair", "policy = fair: expected strict or wfq or fifo or round-robin"},
        {"unregistered = yes", "unregistered = yes: expected refuse or accept"},
        {"max_priority = 3", "max_priority = 3: expected 0, 1, 2 or low, medium, high"},
        {"poll_min_ms = 0", "poll_min_ms = 0: expected a whole number from 1 to 1000"},
        {"poll_max_ms = 60001", "poll_max_ms = 60001: expected a whole number from 1 to 60000"},
        {"response_hold_ms = -1",
         "response_hold_ms = -1: expected a whole number from 0 to 3600000"},
        {"unterminated_hold_ms = 99",
         "unterminated_hold_ms = 99: expected a whole number from 100 to 3600000"},
        {"operation_limit_ms = 1.5",
         "operation_limit_ms = 1.5: expected a whole number from 1 to 86400000"},
        {"worker_idle_ms = 10s",
         "worker_idle_ms = 10s: expected a whole number from 0 to 86400000"},
        {"worker_idle_ms = 99999999999999999999",
         "worker_idle_ms = 99999999999999999999: expected a whole number from 0 to 86400000"},
    };
    char text[256];

    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(cases); i++) {
        snprintf(text, sizeof(text), "# line 1\n[mediator]\n%s\n", cases[i].line);
        read_wrong(*state, text, 3, cases[i].message);
    }
}

static void wrong_pool_section_says_what_was_expected(void **state)
{
    read_wrong(*state, "[pool]\ndevice = cpu\n", 2,
               "unknown section [pool]: expected [mediator], [pool X] or [vm N]");
    read_wrong(*state, "[pool a]\ndevice = cpu\n", 2,
               "section [pool a]: expected one letter, A to Z");
    read_wrong(*state, "[pool AB]\ndevice = cpu\n", 2,
               "section [pool AB]: expected one letter, A to Z");
    static const char *const wrong_devices[] = {"cuda",   "cuda:64", "cpu:64",   "GPU-", "GPU-12xy",
                                                "MIG--1", "0000:65", "65:00.0.", "gpu:0"};
    char text[128], message[256];

    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(wrong_devices); i++) {
        snprintf(text, sizeof(text), "[pool A]\ndevice = %s\n", wrong_devices[i]);
        snprintf(message, sizeof(message),
                 "device = %s: expected cpu, cpu:0 to cpu:63, cuda:0 to cuda:63, GPU-<uuid>, "
                 "MIG-<uuid> or a PCI address such as 0000:65:00.0",
                 wrong_devices[i]);
        read_wrong(*state, text, 2, message);
    }
    read_wrong(*state, "[pool A]\nsize = 1\n", 2,
               "unknown key 'size' in [pool A]: it may have name, device, placement, "
               "session_devices, policy, aging_ms, demand");
    read_wrong(*state, "[pool A]\ndevice = cpu:0 cpu:1 cpu:0\n", 2,
               "device = cpu:0: it stands twice in this pool: expected each device once");
    read_wrong(*state, "[pool A]\ndevice = cpu, cpu\n", 2,
               "device = cpu, cpu: expected each device once, with spaces between, no commas");
    read_wrong(*state, "[pool A]\ndevice = cpu cpu:1 cpu:2 cpu:3 cpu:4 cpu:5 cpu:6 cpu:7 cpu:8\n",
               2,
               "device = cpu cpu:1 cpu:2 cpu:3 cpu:4 cpu:5 cpu:6 cpu:7 cpu:8: expected at most 8 "
               "devices");
    read_wrong(*state, "[pool A]\nplacement = both\n", 2,
               "placement = both: expected spread or pack");
    read_wrong(*state, "[pool A]\nname = tab\there\n", 2,
               "name = tab\\x09here: expected at most 63 printable ASCII characters");
}

static void wrong_vm_section_says_what_was_expected(void **state)
{
    read_wrong(*state, "[vm 0]\npool = A\n", 2,
               "section [vm 0]: expected a number from 1 to 4294967295");
    read_wrong(*state, "[vm 4294967296]\npool = A\n", 2,
               "section [vm 4294967296]: expected a number from 1 to 4294967295");
    read_wrong(*state, "[vm web]\npool = A\n", 2,
               "section [vm web]: expected a number from 1 to 4294967295");
    read_wrong(*state, "[vm 1]\npool = a\n", 2, "pool = a: expected one letter, A to Z");
    read_wrong(*state, "[vm 1]\npool = AB\n", 2, "pool = AB: expected one letter, A to Z");
    read_wrong(*state, "[vm 1]\npriority = urgent\n", 2,
               "priority = urgent: expected 0, 1, 2 or low, medium, high");
    read_wrong(*state, "[vm 1]\nowner = no-such-user\n", 2,
               "owner = no-such-user: expected user or user:group, by name or number, that exists "
               "on this host");
    read_wrong(*state, "[vm 1]\nowner = 0:no-such-group\n", 2,
               "owner = 0:no-such-group: expected user or user:group, by name or number, that "
               "exists on this host");
    read_wrong(*state, "[vm 1]\nmode = 0600\n", 2,
               "mode = 0600: expected an octal mode from 0700 "
               "to 0777");
    read_wrong(*state, "[vm 1]\nmode = 888\n", 2,
               "mode = 888: expected an octal mode from 0700 to "
               "0777");
    read_wrong(*state, "[vm 1]\nmode = 0777\n", 2,
               "mode = 0777: expected a mode that does not let everybody write (least privilege: "
               "0700)");
    read_wrong(*state, "[vm 1]\nsize = 1\n", 2,
               "unknown key 'size' in [vm 1]: it may have pool, priority, name, owner, mode, "
               "weight, request_rate, request_burst, device_share_percent, queue_depth_max, "
               "inflight_ops_max, inflight_kib_max");
}

static void section_without_a_key_is_refused_not_forgotten(void **state)
{
    read_wrong(*state, "[vm 7]\n", 1, "section [vm 7] has no key and would not count: give it one");
    read_wrong(*state, "[vm 7]\n[vm 8]\npool = A\n", 1,
               "section [vm 7] has no key and would not count: give it one");
    read_wrong(*state, "[vm 8]\npool = A\n\n[pool B]\n", 4,
               "section [pool B] has no key and would not count: give it one");
}

static void section_that_stands_twice_is_refused(void **state)
{
    read_wrong(*state, "[vm 7]\npool = A\n[vm 8]\npool = A\n[vm 7]\npriority = 2\n", 5,
               "section [vm 7] stands twice");
    read_wrong(*state, "[vm 7]\npool = A\n[vm 7]\npriority = 2\n", 3,
               "section [vm 7] stands twice");
    read_wrong(*state, "[vm 7]\npool = A\n[vm 007]\npriority = 2\n", 3,
               "section [vm 007] stands twice");
    read_wrong(*state, "[pool A]\nname = a\n[vm 8]\npool = A\n[pool A]\ndevice = cpu\n", 5,
               "section [pool A] stands twice");
    read_wrong(*state, "[mediator]\nshare = /s\n[vm 8]\npool = A\n[mediator]\nshare = /t\n", 5,
               "section [mediator] stands twice");
}

static void key_that_stands_twice_is_refused(void **state)
{
    read_wrong(*state, "[mediator]\nshare = /s\nshare = /t\n", 3,
               "'share' stands twice in [mediator], or its value has several lines");
    read_wrong(*state, "[vm 7]\npool = A\n  B\n", 3,
               "'pool' stands twice in [vm 7], or its value has several lines");
}

static void unknown_names_are_refused(void **state)
{
    read_wrong(*state, "[mediator]\nshares = /s\n", 2,
               "unknown key 'shares' in [mediator]: see vgpu-mediator.conf(5)");
    read_wrong(*state, "[general]\nshare = /s\n", 2,
               "unknown section [general]: expected [mediator], [pool X] or [vm N]");
    read_wrong(*state, "share = /s\n", 1,
               "'share' stands before the first section: put [mediator], [pool X] or [vm N] above "
               "it");
}

static void line_that_is_neither_section_nor_key_is_refused(void **state)
{
    read_wrong(*state, "[vm 7\npool = A\n", 1, "expected [section] or key = value");
    read_wrong(*state, "[mediator]\nshare\n", 2, "expected [section] or key = value");
}

static void first_error_is_the_one_that_is_told(void **state)
{
    read_wrong(*state, "[mediator]\nshare = s\nlog = l\n", 2,
               "share = s: expected an absolute path");
    read_wrong(*state, "[mediator]\nshare\nlog = l\n", 2, "expected [section] or key = value");
    read_wrong(*state, "[mediator]\nlog = l\nshare\n", 2, "log = l: expected an absolute path");
}

static void line_that_is_too_long_is_refused(void **state)
{
    char text[512] = "[mediator]\nshare = /";
    size_t start = strlen(text);

    memset(text + start, 'x', 198 - strlen("share = /"));
    strcat(text, "\n");
    read_right(*state, text);
    memset(text + start, 'x', 400);
    read_wrong(*state, text, 2, "line is longer than 198 bytes");
}

static void missing_file_is_an_error_with_its_name(void **state)
{
    struct place *place = *state;

    assert_int_equal(config_read(&place->config, "/nonexistent/conf", &place->error), -1);
    assert_string_equal(place->error.message, "cannot open configuration file '/nonexistent/conf': "
                                              "No such file or directory");
}

static void directory_is_no_configuration_file(void **state)
{
    struct place *place = *state;

    assert_int_equal(config_read(&place->config, place->directory, &place->error), -1);
    assert_non_null(strstr(place->error.message, place->directory));
    assert_non_null(strstr(place->error.message, "Is a directory"));
}

/* --- one key, as the command line sets it ------------------------------------------- */

static void single_keys_are_set_and_judged_as_in_the_file(void **state)
{
    struct place *place = *state;

    assert_int_equal(config_set(&place->config, "pools", "independent", &place->error), 0);
    assert_int_equal(place->config.pools_mode, SCHED_POOLS_INDEPENDENT);
    assert_int_equal(config_set(&place->config, "pools", "some", &place->error), -1);
    assert_string_equal(place->error.message, "pools = some: expected shared or independent");
    assert_int_equal(place->config.pools_mode, SCHED_POOLS_INDEPENDENT);
    assert_int_equal(config_set(&place->config, "pool", "A", &place->error), -1);
    assert_string_equal(place->error.message, "unknown key 'pool' in [mediator]");
}

/* --- the whole ------------------------------------------------------------------------ */

static void vm_in_a_pool_that_does_not_exist_is_refused_with_its_line(void **state)
{
    struct place *place = *state;

    read_right(place, "[pool A]\ndevice = cpu\n[vm 5]\npriority = 1\npool = B\n");
    complete_wrong(place, "[vm 5] (line 3): pool B does not exist: add [pool B] or choose another");
}

static void worker_that_cannot_be_run_is_refused(void **state)
{
    struct place *place = *state;

    read_right(place, "[mediator]\nworker = /nonexistent/worker\n");
    complete_wrong(place, "worker = /nonexistent/worker cannot be run: No such file");
}

static void polling_interval_that_shrinks_is_refused(void **state)
{
    struct place *place = *state;

    read_right(place, "[mediator]\nworker = /bin/true\npoll_min_ms = 50\npoll_max_ms = 20\n");
    complete_wrong(place, "poll_min_ms = 50 is more than poll_max_ms = 20");
}

static void state_directory_inside_the_share_is_refused(void **state)
{
    static const char *const inside[][2] = {
        {"/s", "/s"}, {"/s", "/s/t"}, {"/s/", "/s/t"}, {"/s//", "/s"}, {"/", "/t"}};
    static const char *const outside[][2] = {{"/s", "/st"}, {"/s/t", "/s"}, {"/s", "/t/s"}};
    struct place *place = *state;
    char text[256];

    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(inside); i++) {
        snprintf(text, sizeof(text), "[mediator]\nworker = /bin/true\nshare = %s\nstate_dir = %s\n",
                 inside[i][0], inside[i][1]);
        begin_anew(place);
        read_right(place, text);
        complete_wrong(place, "guests could reach the journal");
    }
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(outside); i++) {
        snprintf(text, sizeof(text), "[mediator]\nworker = /bin/true\nshare = %s\nstate_dir = %s\n",
                 outside[i][0], outside[i][1]);
        begin_anew(place);
        read_right(place, text);
        complete_right(place);
    }
}

static void run_directory_inside_the_share_is_refused(void **state)
{
    struct place *place = *state;

    read_right(place, "[mediator]\nworker = /bin/true\nshare = /s\nrun_dir = /s/run\n");
    complete_wrong(place, "guests could reach the sockets");
}

static void run_directory_follows_another_state_directory(void **state)
{
    struct place *place = *state;

    read_right(place, "[mediator]\nstate_dir = /elsewhere\n");
    complete_right(place);
    assert_string_equal(place->config.run_dir, "/elsewhere/run");
    begin_anew(place);
    read_right(place, "");
    complete_right(place);
    assert_string_equal(place->config.run_dir, "/run/vgpu");
}

static void channels_can_be_one_or_both(void **state)
{
    static const struct {
        const char *text;
        int channels;
    } cases[] = {{"file", CONFIG_CHANNEL_FILE},
                 {"window", CONFIG_CHANNEL_WINDOW},
                 {"file window", CONFIG_CHANNEL_FILE | CONFIG_CHANNEL_WINDOW},
                 {"window file", CONFIG_CHANNEL_FILE | CONFIG_CHANNEL_WINDOW}};
    struct place *place = *state;
    char text[64];

    assert_int_equal(place->config.channels, CONFIG_CHANNEL_FILE | CONFIG_CHANNEL_WINDOW);
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(cases); i++) {
        snprintf(text, sizeof(text), "[mediator]\nchannels = %s\n", cases[i].text);
        begin_anew(place);
        read_right(place, text);
        assert_int_equal(place->config.channels, cases[i].channels);
    }
    read_wrong(place, "[mediator]\nchannels = nfs\n", 2,
               "channels = nfs: expected file window or window file or window or file");
}

static void keys_of_windows_have_their_ranges(void **state)
{
    struct place *place = *state;

    read_right(place, "[mediator]\nsessions_max = 3\ngrant_us = 500\ngrant_ops = 1\nspin_us = 0\n"
                      "worker_memory_mib = 0\ndevice_memory_mib = 64\nimage_memory_mib = 300\n"
                      "count_contexts = yes\n"
                      "worker_user = nobody\nworker_cgroup = /c\n");
    assert_int_equal(place->config.sessions_max, 3);
    assert_int_equal(place->config.grant_us, 500);
    assert_int_equal(place->config.grant_ops, 1);
    assert_int_equal(place->config.spin_us, 0);
    assert_int_equal(place->config.worker_memory_mib, 0);
    assert_int_equal(place->config.device_memory_mib, 64);
    assert_int_equal(place->config.image_memory_mib, 300);
    assert_true(place->config.count_contexts);
    assert_string_equal(place->config.worker_user, "nobody");
    assert_string_equal(place->config.worker_cgroup, "/c");
    read_wrong(place, "[mediator]\nsessions_max = 0\n", 2,
               "sessions_max = 0: expected a whole number from 1 to 64");
    read_wrong(place, "[mediator]\ngrant_us = 9\n", 2,
               "grant_us = 9: expected a whole number from 10 to 1000000");
    read_wrong(place, "[mediator]\nimage_memory_mib = 0\n", 2,
               "image_memory_mib = 0: expected a whole number from 1 to 1048576");
}

static void keys_of_grants_have_their_ranges(void **state)
{
    struct place *place = *state;

    read_right(place, "[vm 7]\npool = A\n");
    assert_int_equal(place->config.grant_min_us, 0);
    assert_int_equal(place->config.protect_us, 1000);
    assert_int_equal(place->config.protect_inflight, 2);
    assert_int_equal(place->config.protect_ms, 100);
    assert_int_equal(place->config.switch_us, 0);
    assert_int_equal(place->config.switch_share_percent, 5);
    begin_anew(place);
    read_right(place, "[mediator]\npolicy = wfq\ngrant_min_us = 100\nprotect_us = 0\n"
                      "protect_inflight = 0\nprotect_ms = 0\nswitch_us = 150\n"
                      "switch_share_percent = 99\n");
    assert_int_equal(place->config.policy, SCHED_POLICY_WFQ);
    assert_int_equal(place->config.grant_min_us, 100);
    assert_int_equal(place->config.protect_us, 0);
    assert_int_equal(place->config.protect_inflight, 0);
    assert_int_equal(place->config.protect_ms, 0);
    assert_int_equal(place->config.switch_us, 150);
    assert_int_equal(place->config.switch_share_percent, 99);
    read_wrong(place, "[mediator]\nprotect_inflight = 1025\n", 2,
               "protect_inflight = 1025: expected a whole number from 0 to 1024");
    read_wrong(place, "[mediator]\nswitch_share_percent = 100\n", 2,
               "switch_share_percent = 100: expected a whole number from 0 to 99");
}

static void keys_of_gpus_are_judged(void **state)
{
    struct place *place = *state;

    read_right(place, "[vm 7]\npool = A\n");
    assert_string_equal(place->config.nvml_library, "libnvidia-ml.so.1");
    assert_int_equal(place->config.health_interval_ms, 5000);
    begin_anew(place);
    read_right(place, "[mediator]\nnvml_library = none\nhealth_interval_ms = 100\n");
    assert_string_equal(place->config.nvml_library, "none");
    assert_int_equal(place->config.health_interval_ms, 100);
    begin_anew(place);
    read_right(place, "[mediator]\nnvml_library = /opt/lib/libnvidia-ml.so.1\n");
    assert_string_equal(place->config.nvml_library, "/opt/lib/libnvidia-ml.so.1");
    read_wrong(place, "[mediator]\nnvml_library = lib/x.so\n", 2,
               "nvml_library = lib/x.so: expected an absolute path, the name of a library, or "
               "none");
    read_wrong(place, "[mediator]\nhealth_interval_ms = 99\n", 2,
               "health_interval_ms = 99: expected a whole number from 100 to 3600000");
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, place_make, place_remove)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(empty_file_leaves_the_defaults),
        CASE(every_key_of_the_mediator_is_read),
        CASE(pools_are_read_with_name_and_device),
        CASE(a_pool_may_have_several_devices),
        CASE(a_pool_has_the_mediators_policy_or_its_own),
        CASE(a_policy_or_a_limit_that_is_none_is_refused),
        CASE(vms_are_read_with_all_their_keys),
        CASE(owner_may_be_a_name_and_brings_its_group),
        CASE(thousand_vms_are_read),
        CASE(last_line_needs_no_newline),
        CASE(wrong_value_names_file_line_key_and_what_was_expected),
        CASE(wrong_pool_section_says_what_was_expected),
        CASE(wrong_vm_section_says_what_was_expected),
        CASE(section_without_a_key_is_refused_not_forgotten),
        CASE(section_that_stands_twice_is_refused),
        CASE(key_that_stands_twice_is_refused),
        CASE(unknown_names_are_refused),
        CASE(line_that_is_neither_section_nor_key_is_refused),
        CASE(first_error_is_the_one_that_is_told),
        CASE(line_that_is_too_long_is_refused),
        CASE(missing_file_is_an_error_with_its_name),
        CASE(directory_is_no_configuration_file),
        CASE(single_keys_are_set_and_judged_as_in_the_file),
        CASE(vm_in_a_pool_that_does_not_exist_is_refused_with_its_line),
        CASE(worker_that_cannot_be_run_is_refused),
        CASE(polling_interval_that_shrinks_is_refused),
        CASE(state_directory_inside_the_share_is_refused),
        CASE(run_directory_inside_the_share_is_refused),
        CASE(run_directory_follows_another_state_directory),
        CASE(channels_can_be_one_or_both),
        CASE(keys_of_windows_have_their_ranges),
        CASE(keys_of_grants_have_their_ranges),
        CASE(keys_of_gpus_are_judged),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
