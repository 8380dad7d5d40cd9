/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vgpu-admin events: who changed what, and when; --follow goes on as changes come,
 * woken by the kernel when the database's files change; --prune-before is the one way to
 * delete some, and an event itself.
 */
#include "admin/commands.h"

#include <errno.h>
#include <libgen.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <unistd.h>

/* What was written counts a moment later, by a mark in shared memory, of which the
 * kernel tells nothing: one more look.  The long one is for what it misses. */
#define LOOK_AGAIN_MS 200
#define LOOK_ANYWAY_MS 5000
#define LIMIT_MAX 1000000

enum {
    KEY_VM = 0x100,
    KEY_POOL,
    KEY_ACTION,
    KEY_ACTOR,
    KEY_SINCE,
    KEY_LIMIT,
    KEY_FOLLOW,
    KEY_PRUNE
};

static const struct argp_option options[] = {
    {"vm", KEY_VM, "VM", 0, "Only of this VM; a number also when it is gone", 1},
    {"pool", KEY_POOL, "LETTER", 0, "Only of this pool", 1},
    {"action", KEY_ACTION, "COMMAND", 0, "Only what this command did, e.g. set-pool", 1},
    {"actor", KEY_ACTOR, "NAME", 0, "Only what this user did, as it is shown", 1},
    {"since", KEY_SINCE, "TIME", 0, "From then on: 90s, 15m, 2h, 7d, or 2026-01-31T12:00:00Z", 1},
    {"limit", KEY_LIMIT, "N", 0, "The newest N (default 100; 0 all)", 1},
    {"prune-before", KEY_PRUNE, "TIME", 0, "Delete older ones: 365d, or 2026-01-31; asks first", 3},
    {"follow", KEY_FOLLOW, NULL, 0, "Go on as changes come; under --json a line each", 2},
    {0},
};

struct input {
    struct admin *admin;
    const char *vm, *actor;
    char pool;
    bool follow;
    uint64_t prune_before_us; /* 0: show them */
    struct store_event_filter filter;
    uint64_t last_id; /* the newest that was shown */
};

static int parse_prune(struct input *input, const char *value, struct vgpu_error *error)
{
    uint64_t now_us = clock_realtime_ns() / NS_PER_US;

    if (value_since(value, now_us, &input->prune_before_us, error) < 0)
        return -1;
    return input->prune_before_us <= now_us
               ? 0
               : error_set(error, EINVAL, "'%.64s': expected a time that has passed", value);
}

static int parse_value(struct input *input, int key, const char *value, struct vgpu_error *error)
{
    uint64_t number;

    switch (key) {
    case KEY_POOL:
        return store_check_pool_id(value, &input->pool, error);
    case KEY_PRUNE:
        return parse_prune(input, value, error);
    case KEY_SINCE:
        return value_since(value, clock_realtime_ns() / NS_PER_US, &input->filter.since_us, error);
    default:
        if (!text_parse_u64(value, 0, LIMIT_MAX, &number))
            return error_set(error, EINVAL, "'%s': expected a number from 0 to %d", value,
                             LIMIT_MAX);
        input->filter.limit = (uint32_t)number;
        return 0;
    }
}

static const char *name_of(int key)
{
    size_t i = 0;

    while (options[i].key != key)
        i++;
    return options[i].name;
}

static error_t parse(int key, char *value, struct argp_state *state)
{
    struct input *input = state->input;
    struct vgpu_error error;

    switch (key) {
    case KEY_VM:
        input->vm = value;
        return 0;
    case KEY_ACTION:
        input->filter.action = value;
        return 0;
    case KEY_ACTOR:
        input->actor = value;
        return 0;
    case KEY_FOLLOW:
        input->follow = true;
        return 0;
    case KEY_POOL:
    case KEY_SINCE:
    case KEY_LIMIT:
    case KEY_PRUNE:
        return parse_value(input, key, value, &error) < 0
                   ? admin_usage(input->admin, "--%s: %s", name_of(key), error.message)
                   : 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const struct argp argp = {options, parse};

static bool wanted(const struct input *input, const struct store_event *event)
{
    return event->id > input->last_id && (!input->pool || event->pool == input->pool) &&
           (!input->actor || strcmp(event->actor, input->actor) == 0);
}

/* --- in words ------------------------------------------------------------------------------ */

static void value_text(const json_t *value, char *text, size_t bytes)
{
    char *dumped;

    if (json_is_string(value)) {
        text_copy(text, bytes, json_string_length(value) ? json_string_value(value) : "none");
        return;
    }
    dumped = value ? json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT) : NULL;
    text_copy(text, bytes, dumped ? dumped : "none");
    free(dumped);
}

/* "web1, pool A, high": the little that tells one from another. */
static void summary(const json_t *state, char *text, size_t bytes)
{
    static const char *const keys[] = {"name", "pool", "priority", "device"};
    size_t used = 0;

    text[0] = '\0';
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(keys) && used < bytes; i++) {
        const json_t *value = json_object_get(state, keys[i]);
        char shown[128];

        if (!value || json_is_null(value) || !json_string_length(value))
            continue;
        value_text(value, shown, sizeof(shown));
        used += (size_t)snprintf(text + used, bytes - used, "%s%s %s", used ? ", " : "", keys[i],
                                 shown);
    }
}

/* "pool A -> B": what differs. */
static void differences(const json_t *before, json_t *after, char *text, size_t bytes)
{
    const json_t *is;
    const char *key;
    size_t used = 0;

    text[0] = '\0';
    json_object_foreach(after, key, is)
    {
        const json_t *was = json_object_get(before, key);
        char old[128], new[128];

        if (json_equal(was, is) || used >= bytes)
            continue;
        value_text(was, old, sizeof(old));
        value_text(is, new, sizeof(new));
        used += (size_t)snprintf(text + used, bytes - used, "%s%s %s -> %s", used ? ", " : "", key,
                                 old, new);
    }
}

static void change_text(const struct store_event *event, char *text, size_t bytes)
{
    json_t *before = json_loads(event->before, 0, NULL), *after = json_loads(event->after, 0, NULL);

    if (json_is_object(before) && json_is_object(after))
        differences(before, after, text, bytes);
    else
        summary(before ? before : after, text, bytes);
    json_decref(before);
    json_decref(after);
}

static void subject(const struct store_event *event, char text[64])
{
    if (event->vm_id)
        snprintf(text, 64, "VM %u", event->vm_id);
    else if (event->pool)
        snprintf(text, 64, "pool %c", event->pool);
    else
        text[0] = '\0';
}

static const struct output_column columns[] = {
    {"time", "TIME", false},  {"actor", "WHO", false},     {"action", "ACTION", false},
    {"subject", "OF", false}, {"change", "CHANGE", false},
};

static void add_row(struct output *table, const struct store_event *event)
{
    char time[32], of[64], change[512];

    output_time(event->time_us, time);
    subject(event, of);
    change_text(event, change, sizeof(change));
    output_text(table, time);
    output_text(table, event->actor);
    output_text(table, event->action);
    output_text(table, of);
    output_text(table, change);
    output_end_row(table);
}

static void print_table(struct input *input, const struct store_event *events, size_t count)
{
    struct output *table = output_new(input->admin, columns, VGPU_ARRAY_LENGTH(columns));

    for (size_t i = 0; i < count; i++) {
        if (wanted(input, &events[i]))
            add_row(table, &events[i]);
    }
    output_print(table, input->follow ? NULL : "No such event.");
    output_free(table);
}

static void print_json(const struct input *input, const struct store_event *events, size_t count)
{
    json_t *array = json_array();

    for (size_t i = 0; i < count; i++) {
        if (wanted(input, &events[i]))
            json_array_append_new(array, output_event(&events[i]));
    }
    output_json(json_pack("{s:o}", "events", array));
}

/* A line each: the widths of what comes are not known. */
static void print_line(const struct input *input, const struct store_event *event)
{
    char time[32], of[64], change[512];

    if (input->admin->json) {
        output_json(output_event(event));
        return;
    }
    output_time(event->time_us, time);
    subject(event, of);
    change_text(event, change, sizeof(change));
    printf("%s  %s  %s%s%s%s%s\n", time, event->actor, event->action, of[0] ? "  " : "", of,
           change[0] ? "  " : "", change);
}

/* --- reading -----------------------------------------------------------------------------------
 */

/* A VM that is gone has events too. */
static int find_vm(struct input *input, struct store *store, struct vgpu_error *error)
{
    struct vgpu_error ignored;
    struct store_vm vm;

    if (!input->vm || store_check_vm_id(input->vm, &input->filter.vm_id, &ignored) == 0)
        return 0;
    if (store_find_vm(store, input->vm, &vm, error) < 0)
        return -1;
    input->filter.vm_id = vm.vm_id;
    return 0;
}

static int show(struct input *input, struct store *store, bool lines, struct vgpu_error *error)
{
    struct store_event *events;
    size_t count;

    if (store_list_events(store, &input->filter, &events, &count, error) < 0)
        return -1;
    if (!lines && input->admin->json)
        print_json(input, events, count);
    else if (!lines)
        print_table(input, events, count);
    for (size_t i = 0; lines && i < count; i++) {
        if (wanted(input, &events[i]))
            print_line(input, &events[i]);
    }
    if (count && events[count - 1].id > input->last_id) {
        input->last_id = events[count - 1].id;
        input->filter.since_us = events[count - 1].time_us;
        input->filter.limit = 0;
    }
    free(events);
    return 0;
}

static int watch_database(const char *path, struct vgpu_error *error)
{
    char copy[PATH_MAX];
    int fd = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);

    text_copy(copy, sizeof(copy), path);
    if (fd < 0 ||
        inotify_add_watch(fd, dirname(copy), IN_MODIFY | IN_CLOSE_WRITE | IN_MOVED_TO) < 0) {
        error_set_errno(error, "cannot watch the directory of '%s'", path);
        fd_close(&fd);
        return -1;
    }
    return fd;
}

static int follow(struct input *input, struct store *store, struct vgpu_error *error)
{
    int fd = watch_database(input->admin->database_path, error), result = fd < 0 ? -1 : 0;
    int patience_ms = LOOK_ANYWAY_MS;

    while (result == 0 && fflush(stdout) == 0) {
        struct pollfd fds[] = {{.fd = fd, .events = POLLIN}, {.fd = STDOUT_FILENO}};
        char events[4096];

        result = show(input, store, true, error);
        if (result < 0 || fflush(stdout) != 0)
            break;
        patience_ms =
            poll(fds, VGPU_ARRAY_LENGTH(fds), patience_ms) > 0 ? LOOK_AGAIN_MS : LOOK_ANYWAY_MS;
        if (fds[1].revents & (POLLERR | POLLHUP)) /* whoever read has gone */
            break;
        while (read(fd, events, sizeof(events)) > 0)
            ;
    }
    fd_close(&fd);
    return result;
}

/* --- pruning ------------------------------------------------------------------------------- */

static int prune(struct input *input, struct vgpu_error *error)
{
    struct admin *admin = input->admin;
    struct store *store;
    uint64_t count;
    char time[32];
    int result;

    output_time(input->prune_before_us, time);
    if (admin_open_store(admin, STORE_WRITE, &store, error) < 0)
        return -1;
    result = store_prune_events(store, input->prune_before_us, &count, error);
    store_close(store);
    if (result < 0)
        return -1;
    if (admin->json)
        output_json(json_pack("{s:I, s:s}", "pruned", (json_int_t)count, "before", time));
    output_say(admin, "%llu events from before %s are deleted.", (unsigned long long)count, time);
    return 0;
}

static int prune_asked(struct input *input)
{
    struct vgpu_error error;
    char time[32], question[128];
    int yes;

    if (input->vm || input->pool || input->actor || input->follow || input->filter.action ||
        input->filter.since_us)
        return admin_refuse(input->admin, "--prune-before deletes all events that are older: it "
                                          "takes no filter");
    output_time(input->prune_before_us, time);
    snprintf(question, sizeof(question), "All events from before %s are deleted. Do it?", time);
    yes = ask_yes(input->admin, question, &error);
    if (yes < 0)
        return admin_fail(input->admin, &error);
    if (yes == 0)
        return admin_decline(input->admin);
    return prune(input, &error) < 0 ? admin_fail(input->admin, &error) : ADMIN_OK;
}

int cmd_events(struct admin *admin, int argc, char **argv)
{
    struct input input = {.admin = admin, .filter.limit = 100};
    int result = admin_parse(admin, &argp, argc, argv, &input);
    struct vgpu_error error;
    struct store *store;

    if (result)
        return result;
    if (input.prune_before_us)
        return prune_asked(&input);
    if (admin_open_store(admin, STORE_READ, &store, &error) < 0)
        return admin_fail(admin, &error);
    result = find_vm(&input, store, &error);
    if (result == 0)
        result = input.follow ? follow(&input, store, &error) : show(&input, store, false, &error);
    store_close(store);
    return result < 0 ? admin_fail(admin, &error) : ADMIN_OK;
}
