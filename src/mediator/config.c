/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The configuration file: sections [mediator], [pool X] and [vm N], read by
 * inih.  Every key stands once in a table below with what it accepts; a
 * message names file and line, what was expected and what came.
 */
#include "mediator/mediator.h"

#include <errno.h>
#include <ini.h>
#include <pwd.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

/* inih cuts longer lines in two without a word. */
#define CONFIG_LINE_MAX_BYTES 198

#define DEFAULT_STATE_DIR "/var/lib/vgpu"
#define DEFAULT_RUN_DIR "/run/vgpu"
#define DEFAULT_NVML_LIBRARY "libnvidia-ml.so.1"

/* --- values ------------------------------------------------------------------- */

struct choice {
    const char *name;
    int value;
};

static const struct choice log_formats[] = {
    {"text", LOG_FORMAT_TEXT}, {"json", LOG_FORMAT_JSON}, {NULL, 0}};
static const struct choice log_levels[] = {{"error", LOG_LEVEL_ERROR},
                                           {"warning", LOG_LEVEL_WARNING},
                                           {"info", LOG_LEVEL_INFO},
                                           {"debug", LOG_LEVEL_DEBUG},
                                           {NULL, 0}};
static const struct choice pools_modes[] = {
    {"shared", SCHED_POOLS_SHARED}, {"independent", SCHED_POOLS_INDEPENDENT}, {NULL, 0}};
static const struct choice policies[] = {{"strict", SCHED_POLICY_STRICT},
                                         {"wfq", SCHED_POLICY_WFQ},
                                         {"fifo", SCHED_POLICY_FIFO},
                                         {"round-robin", SCHED_POLICY_ROUND_ROBIN},
                                         {NULL, 0}};
static const struct choice pool_policies[] = {
    {"strict", CONFIG_POLICY_STRICT},   {"wfq", CONFIG_POLICY_WFQ},
    {"fifo", CONFIG_POLICY_FIFO},       {"round-robin", CONFIG_POLICY_ROUND_ROBIN},
    {"default", CONFIG_POLICY_DEFAULT}, {NULL, 0}};
static const struct choice yes_no[] = {{"no", false}, {"yes", true}, {NULL, 0}};
static const struct choice channels[] = {
    {"file window", CONFIG_CHANNEL_FILE | CONFIG_CHANNEL_WINDOW},
    {"window file", CONFIG_CHANNEL_FILE | CONFIG_CHANNEL_WINDOW},
    {"window", CONFIG_CHANNEL_WINDOW},
    {"file", CONFIG_CHANNEL_FILE},
    {NULL, 0}};
static const struct choice gpu_missing[] = {{"unavailable", false}, {"cpu", true}, {NULL, 0}};
static const struct choice placements[] = {{"spread", false}, {"pack", true}, {NULL, 0}};
static const struct choice unregistered[] = {{"refuse", false}, {"accept", true}, {NULL, 0}};

static int bad_value(struct vgpu_error *error, const char *key, const char *value,
                     const char *expected)
{
    return error_set(error, EINVAL, "%s = %s: expected %s", key, value, expected);
}

static int parse_choice(const char *key, const char *value, const struct choice *choices,
                        int *ret_value, struct vgpu_error *error)
{
    char expected[128] = "";

    for (const struct choice *choice = choices; choice->name; choice++) {
        size_t used = strlen(expected);

        if (strcmp(value, choice->name) == 0) {
            *ret_value = choice->value;
            return 0;
        }
        snprintf(expected + used, sizeof(expected) - used, "%s%s", used ? " or " : "",
                 choice->name);
    }
    return bad_value(error, key, value, expected);
}

static int parse_number(const char *key, const char *value, uint32_t min, uint32_t max,
                        uint32_t *ret_value, struct vgpu_error *error)
{
    uint64_t number;
    char expected[64];

    if (!text_parse_u64(value, min, max, &number)) {
        snprintf(expected, sizeof(expected), "a whole number from %u to %u", min, max);
        return bad_value(error, key, value, expected);
    }
    *ret_value = (uint32_t)number;
    return 0;
}

static int parse_path(const char *key, const char *value, char target[PATH_MAX],
                      struct vgpu_error *error)
{
    if (value[0] != '/' || strlen(value) >= PATH_MAX)
        return bad_value(error, key, value, "an absolute path");
    text_copy(target, PATH_MAX, value);
    return 0;
}

/* Of a library; a name is searched for as dlopen(3) does. */
static int parse_library(const char *key, const char *value, char target[PATH_MAX],
                         struct vgpu_error *error)
{
    if (value[0] == '\0' || (value[0] != '/' && strchr(value, '/')) || strlen(value) >= PATH_MAX)
        return bad_value(error, key, value, "an absolute path, the name of a library, or none");
    text_copy(target, PATH_MAX, value);
    return 0;
}

static int parse_priority(const char *key, const char *value, uint8_t *ret_priority,
                          struct vgpu_error *error)
{
    if (!protocol_parse_priority(value, ret_priority))
        return bad_value(error, key, value, "0, 1, 2 or low, medium, high");
    return 0;
}

/* --- [mediator] ------------------------------------------------------------------ */

enum key_type { KEY_PATH, KEY_NUMBER, KEY_CHOICE, KEY_PRIORITY, KEY_NAME, KEY_LIBRARY };

struct mediator_key {
    const char *name;
    enum key_type type;
    size_t offset;
    uint32_t min, max;            /* KEY_NUMBER */
    const struct choice *choices; /* KEY_CHOICE */
    size_t bytes;                 /* KEY_CHOICE: of the field */
};

#define FIELD(field) offsetof(struct config, field)
#define CHOICE(name_, field, choices_)                                                             \
    {                                                                                              \
        .name = (name_), .type = KEY_CHOICE, .offset = FIELD(field), .choices = (choices_),        \
        .bytes = sizeof(((struct config *)NULL)->field)                                            \
    }
#define NUMBER(field, min_, max_)                                                                  \
    {                                                                                              \
        .name = #field, .type = KEY_NUMBER, .offset = FIELD(field), .min = (min_), .max = (max_)   \
    }
#define PATH(field)                                                                                \
    {                                                                                              \
        .name = #field, .type = KEY_PATH, .offset = FIELD(field)                                   \
    }

static const struct mediator_key mediator_keys[] = {
    CHOICE("channels", channels, channels),
    PATH(share),
    PATH(state_dir),
    PATH(run_dir),
    PATH(log),
    PATH(worker),
    PATH(execution_log),
    PATH(cuda_library),
    PATH(database),
    CHOICE("log_format", log_format, log_formats),
    CHOICE("log_level", log_level, log_levels),
    CHOICE("pools", pools_mode, pools_modes),
    CHOICE("policy", policy, policies),
    CHOICE("unregistered", accept_unregistered, unregistered),
    {.name = "max_priority", .type = KEY_PRIORITY, .offset = FIELD(max_priority)},
    NUMBER(poll_min_ms, 1, 1000),
    NUMBER(poll_max_ms, 1, 60000),
    NUMBER(response_hold_ms, 0, 3600000),
    NUMBER(quarantine_faults, 0, 1000),
    NUMBER(quarantine_window_s, 1, 86400),
    NUMBER(quarantine_cooldown_s, 0, 604800),
    NUMBER(unterminated_hold_ms, 100, 3600000),
    NUMBER(operation_limit_ms, 1, 86400000),
    NUMBER(worker_idle_ms, 0, 86400000),
    {.name = "worker_user", .type = KEY_NAME, .offset = FIELD(worker_user)},
    {.name = "control_group", .type = KEY_NAME, .offset = FIELD(control_group)},
    PATH(worker_cgroup),
    NUMBER(worker_memory_mib, 0, 1u << 20),
    NUMBER(device_memory_mib, 1, 1u << 20),
    NUMBER(image_memory_mib, 1, 1u << 20),
    CHOICE("count_contexts", count_contexts, yes_no),
    NUMBER(gpu_check_ms, 100, 600000),
    CHOICE("gpu_missing", gpu_missing_cpu, gpu_missing),
    NUMBER(sessions_max, 1, 64),
    NUMBER(sessions_per_device, 1, 1000000),
    NUMBER(contexts_per_device, 0, 1000000),
    NUMBER(contexts_per_vm, 0, 1000000),
    NUMBER(grant_us, 10, 1000000),
    NUMBER(grant_ops, 1, 1000000),
    NUMBER(grant_min_us, 0, 1000000),
    NUMBER(protect_us, 0, 1000000),
    NUMBER(protect_inflight, 0, 1024),
    NUMBER(protect_ms, 0, 3600000),
    NUMBER(switch_us, 0, 1000000),
    NUMBER(switch_share_percent, 0, 99),
    NUMBER(spin_us, 0, 10000),
    {.name = "nvml_library", .type = KEY_LIBRARY, .offset = FIELD(nvml_library)},
    NUMBER(health_interval_ms, 100, 3600000),
    NUMBER(metrics_port, 0, 65535),
    NUMBER(metrics_vms, 0, 10000),
    NUMBER(trace_kib, 0, TRACE_KIB_MAX),
    NUMBER(trace_session_kib, 0, TRACE_KIB_MAX),
};

/* struct reader keeps a bit a key. */
_Static_assert(VGPU_ARRAY_LENGTH(mediator_keys) <= CONFIG_KEYS_MAX, "keys_seen is too small");

static int set_choice(struct config *config, const struct mediator_key *key, const char *value,
                      struct vgpu_error *error)
{
    char *field = (char *)config + key->offset;
    int number = 0;

    if (parse_choice(key->name, value, key->choices, &number, error) < 0)
        return -1;
    if (key->bytes == sizeof(bool))
        *(bool *)field = number;
    else
        memcpy(field, &number, sizeof(number)); /* enums have the size of int */
    return 0;
}

static int set_key(struct config *config, const struct mediator_key *key, const char *value,
                   struct vgpu_error *error)
{
    char *field = (char *)config + key->offset;

    switch (key->type) {
    case KEY_PATH:
        return parse_path(key->name, value, field, error);
    case KEY_NUMBER:
        return parse_number(key->name, value, key->min, key->max, (uint32_t *)(void *)field, error);
    case KEY_CHOICE:
        return set_choice(config, key, value, error);
    case KEY_PRIORITY:
        return parse_priority(key->name, value, (uint8_t *)field, error);
    case KEY_NAME:
        if (value[0] == '\0' || strlen(value) >= CONFIG_NAME_BYTES)
            return bad_value(error, key->name, value, "the name of a user or group of this host");
        text_copy(field, CONFIG_NAME_BYTES, value);
        return 0;
    case KEY_LIBRARY:
        return parse_library(key->name, value, field, error);
    }
    return -1;
}

static int find_mediator_key(const char *name)
{
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(mediator_keys); i++) {
        if (strcmp(name, mediator_keys[i].name) == 0)
            return (int)i;
    }
    return -1;
}

int config_set(struct config *config, const char *key, const char *value, struct vgpu_error *error)
{
    int index = find_mediator_key(key);

    if (index < 0)
        return error_set(error, EINVAL, "unknown key '%s' in [mediator]", key);
    return set_key(config, &mediator_keys[index], value, error);
}

/* reload.c applies a change of these to what runs. */
static const char *const keys_at_once[] = {
    "contexts_per_device",
    "contexts_per_vm",
    "grant_us",
    "grant_ops",
    "grant_min_us",
    "protect_us",
    "protect_inflight",
    "protect_ms",
    "switch_us",
    "switch_share_percent",
    "quarantine_faults",
    "quarantine_window_s",
    "quarantine_cooldown_s",
};

static bool counts_at_once(const char *name)
{
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(keys_at_once); i++) {
        if (strcmp(keys_at_once[i], name) == 0)
            return true;
    }
    return false;
}

static bool is_same(const struct mediator_key *key, const struct config *a, const struct config *b)
{
    const char *x = (const char *)a + key->offset, *y = (const char *)b + key->offset;

    switch (key->type) {
    case KEY_NUMBER:
        return memcmp(x, y, sizeof(uint32_t)) == 0;
    case KEY_CHOICE:
        return memcmp(x, y, key->bytes) == 0;
    case KEY_PRIORITY:
        return *x == *y;
    case KEY_PATH:
    case KEY_NAME:
    case KEY_LIBRARY:
        break;
    }
    return strcmp(x, y) == 0;
}

size_t config_next_start(const struct config *now, const struct config *wanted,
                         const char *ret_names[CONFIG_KEYS_MAX])
{
    size_t count = 0;

    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(mediator_keys); i++) {
        const struct mediator_key *key = &mediator_keys[i];

        if (!counts_at_once(key->name) && !is_same(key, now, wanted))
            ret_names[count++] = key->name;
    }
    return count;
}

/* --- [pool X] and [vm N] ------------------------------------------------------------ */

static bool is_numbered(const char *device, const char *kind)
{
    size_t bytes = strlen(kind);
    uint64_t index;

    return strncmp(device, kind, bytes) == 0 && text_parse_u64(device + bytes, 0, 63, &index);
}

/* "-" or ":" and "." between hexadecimal digits, as UUIDs and PCI addresses have them. */
static bool is_hexadecimal(const char *text, const char *separators)
{
    size_t digits = strspn(text, "0123456789abcdefABCDEF");

    if (digits == 0)
        return false;
    if (text[digits] == '\0')
        return true;
    return strchr(separators, text[digits]) && is_hexadecimal(text + digits + 1, separators);
}

bool config_device_is_known(const char *device)
{
    if (strcmp(device, "cpu") == 0 || is_numbered(device, "cpu:") || is_numbered(device, "cuda:"))
        return true;
    if (strncmp(device, "GPU-", 4) == 0 || strncmp(device, "MIG-", 4) == 0)
        return is_hexadecimal(device + 4, "-");
    return strchr(device, ':') && strchr(device, '.') && is_hexadecimal(device, ":.");
}

static bool pool_has_device(const struct config_pool *pool, const char *name)
{
    char known[CONFIG_DEVICE_BYTES];

    for (unsigned i = 0; config_pool_device(pool, i, known); i++) {
        if (strcmp(known, name) == 0)
            return true;
    }
    return false;
}

static int add_device(struct config_pool *pool, const char *name, struct vgpu_error *error)
{
    size_t used = strlen(pool->device);

    if (strlen(name) >= CONFIG_DEVICE_BYTES || !config_device_is_known(name))
        return bad_value(error, "device", name,
                         "cpu, cpu:0 to cpu:63, cuda:0 to cuda:63, GPU-<uuid>, MIG-<uuid> or a PCI "
                         "address such as 0000:65:00.0");
    if (pool_has_device(pool, name))
        return error_set(error, EINVAL,
                         "device = %s: it stands twice in this pool: expected each device once",
                         name);
    snprintf(pool->device + used, sizeof(pool->device) - used, "%s%s", used ? " " : "", name);
    return 0;
}

static int set_device(struct config_pool *pool, const char *value, struct vgpu_error *error)
{
    char text[CONFIG_POOL_DEVICE_BYTES], *rest = text;
    unsigned count = 0;
    const char *name;

    if (strchr(value, ','))
        return bad_value(error, "device", value,
                         "each device once, with spaces between, no commas");
    text_copy(text, sizeof(text), value);
    pool->device[0] = '\0';
    while ((name = strtok_r(rest, " \t", &rest))) {
        if (++count > CONFIG_POOL_DEVICES_MAX || strlen(value) >= sizeof(text))
            return bad_value(error, "device", value, "at most 8 devices");
        if (add_device(pool, name, error) < 0)
            return -1;
    }
    return count > 0 ? 0 : add_device(pool, "", error);
}

static int set_placement(struct config_pool *pool, const char *value, struct vgpu_error *error)
{
    int pack = 0;

    if (parse_choice("placement", value, placements, &pack, error) < 0)
        return -1;
    pool->pack = pack;
    return 0;
}

static int set_name(char target[CONFIG_NAME_BYTES], const char *value, struct vgpu_error *error)
{
    char escaped[2 * CONFIG_NAME_BYTES];

    text_escape(escaped, sizeof(escaped), value, strlen(value));
    if (strlen(value) >= CONFIG_NAME_BYTES || strcmp(escaped, value) != 0)
        return bad_value(error, "name", escaped, "at most 63 printable ASCII characters");
    text_copy(target, CONFIG_NAME_BYTES, value);
    return 0;
}

const char *config_policy_name(enum config_policy policy)
{
    for (const struct choice *choice = pool_policies; choice->name; choice++) {
        if (choice->value == (int)policy)
            return choice->name;
    }
    return "?";
}

static int set_policy(struct config_pool *pool, const char *value, struct vgpu_error *error)
{
    int policy = 0;

    if (parse_choice("policy", value, pool_policies, &policy, error) < 0)
        return -1;
    pool->policy = (enum config_policy)policy;
    return 0;
}

static int set_demand(struct config_pool *pool, const char *value, struct vgpu_error *error)
{
    int demand = 0;

    if (parse_choice("demand", value, yes_no, &demand, error) < 0)
        return -1;
    pool->demand = demand;
    return 0;
}

static const char *const pool_keys[] = {"name",   "device",   "placement", "session_devices",
                                        "policy", "aging_ms", "demand"};

static int set_pool_key(struct config_pool *pool, size_t key, const char *value,
                        struct vgpu_error *error)
{
    switch (key) {
    case 0:
        return set_name(pool->name, value, error);
    case 1:
        return set_device(pool, value, error);
    case 2:
        return set_placement(pool, value, error);
    case 3:
        return parse_number("session_devices", value, 1, CONFIG_POOL_DEVICES_MAX,
                            &pool->session_devices, error);
    case 4:
        return set_policy(pool, value, error);
    case 5:
        return parse_number("aging_ms", value, 0, 86400000, &pool->aging_ms, error);
    default:
        return set_demand(pool, value, error);
    }
}

static int set_owner(struct config_vm *vm, const char *value, struct vgpu_error *error)
{
    if (!account_parse_owner(value, &vm->owner_uid, &vm->owner_gid))
        return bad_value(error, "owner", value,
                         "user or user:group, by name or number, that exists on this host");
    return 0;
}

static int set_mode(struct config_vm *vm, const char *value, struct vgpu_error *error)
{
    char *end;
    unsigned long mode = strtoul(value, &end, 8);

    if (value[0] < '0' || value[0] > '7' || *end != '\0' || mode > 0777 || (mode & 0700) != 0700)
        return bad_value(error, "mode", value, "an octal mode from 0700 to 0777");
    if (mode & 0002)
        return bad_value(error, "mode", value,
                         "a mode that does not let everybody write (least privilege: 0700)");
    vm->mode = (mode_t)mode;
    return 0;
}

static int set_vm_pool(struct config_vm *vm, const char *value, struct vgpu_error *error)
{
    if (value[0] < 'A' || value[0] > 'Z' || value[1] != '\0')
        return bad_value(error, "pool", value, "one letter, A to Z");
    vm->pool = value[0];
    return 0;
}

static const char *const vm_keys[] = {"pool",
                                      "priority",
                                      "name",
                                      "owner",
                                      "mode",
                                      "weight",
                                      "request_rate",
                                      "request_burst",
                                      "device_share_percent",
                                      "queue_depth_max",
                                      "inflight_ops_max",
                                      "inflight_kib_max"};

/* From the sixth of vm_keys on. */
static const struct {
    size_t offset;
    uint32_t max;
} vm_limits[] = {
    {offsetof(struct config_vm, weight), 1000},
    {offsetof(struct config_vm, request_rate), 10000000},
    {offsetof(struct config_vm, request_burst), 10000000},
    {offsetof(struct config_vm, device_share_percent), 100},
    {offsetof(struct config_vm, queue_depth_max), 1000000},
    {offsetof(struct config_vm, inflight_ops_max), 65536},
    {offsetof(struct config_vm, inflight_kib_max), 1u << 30},
};

#define FIRST_VM_LIMIT (VGPU_ARRAY_LENGTH(vm_keys) - VGPU_ARRAY_LENGTH(vm_limits))

static int set_vm_limit(struct config_vm *vm, size_t key, const char *value,
                        struct vgpu_error *error)
{
    size_t index = key - FIRST_VM_LIMIT;

    return parse_number(vm_keys[key], value, 0, vm_limits[index].max,
                        (uint32_t *)(void *)((char *)vm + vm_limits[index].offset), error);
}

static int set_vm_key(struct config_vm *vm, size_t key, const char *value, struct vgpu_error *error)
{
    switch (key) {
    case 0:
        return set_vm_pool(vm, value, error);
    case 1:
        return parse_priority("priority", value, &vm->priority, error);
    case 2:
        return set_name(vm->name, value, error);
    case 3:
        return set_owner(vm, value, error);
    case 4:
        return set_mode(vm, value, error);
    default:
        return set_vm_limit(vm, key, value, error);
    }
}

static struct config_pool *pool_section(struct config *config, const char *id,
                                        struct vgpu_error *error)
{
    struct config_pool *pool;

    if (id[0] < 'A' || id[0] > 'Z' || id[1] != '\0') {
        error_set(error, EINVAL, "section [pool %s]: expected one letter, A to Z", id);
        return NULL;
    }
    for (size_t i = 0; i < config->pool_count; i++) {
        if (config->pools[i].id == id[0])
            return &config->pools[i];
    }
    pool = &config->pools[config->pool_count++];
    *pool = (struct config_pool){.id = id[0], .device = "cpu", .session_devices = 1};
    return pool;
}

static struct config_vm *vm_section(struct config *config, const char *id, unsigned line,
                                    struct vgpu_error *error)
{
    struct config_vm *vms;
    uint64_t vm_id;

    if (!text_parse_u64(id, 1, UINT32_MAX, &vm_id)) {
        error_set(error, EINVAL, "section [vm %s]: expected a number from 1 to 4294967295", id);
        return NULL;
    }
    for (size_t i = 0; i < config->vm_count; i++) {
        if (config->vms[i].vm_id == vm_id)
            return &config->vms[i];
    }
    vms = reallocarray(config->vms, config->vm_count + 1, sizeof(*vms));
    if (!vms) {
        error_set(error, ENOMEM, "no memory for VM %s", id);
        return NULL;
    }
    config->vms = vms;
    vms[config->vm_count] = (struct config_vm){.vm_id = (uint32_t)vm_id,
                                               .pool = 'A',
                                               .priority = 1,
                                               .owner_uid = (uid_t)-1,
                                               .owner_gid = (gid_t)-1,
                                               .mode = 0700,
                                               .line = line};
    return &vms[config->vm_count++];
}

/* --- the file -------------------------------------------------------------------------- */

struct reader {
    struct config *config;
    FILE *file;
    unsigned line;
    unsigned error_line; /* 0: none yet */
    struct vgpu_error *error;
    char section[64];
    uint64_t keys_seen; /* of this section, by index in its table */
    char header[64];    /* the last line with brackets, as it stands there */
    unsigned header_line;
    bool header_used; /* a key came behind it */
    bool mediator_seen;
};

static int list_position(const char *const *names, size_t count, const char *name)
{
    for (size_t i = 0; i < count; i++) {
        if (strcmp(names[i], name) == 0)
            return (int)i;
    }
    return -1;
}

static void list_names(char *text, size_t bytes, const char *const *names, size_t count)
{
    text[0] = '\0';
    for (size_t i = 0; i < count; i++) {
        size_t used = strlen(text);

        snprintf(text + used, bytes - used, "%s%s", i ? ", " : "", names[i]);
    }
}

/* Returns the key's place in the section's table, or -1 with *error filled. */
static int judge_key(struct reader *reader, const char *const *names, size_t count, const char *key)
{
    char known[256];
    int index = names ? list_position(names, count, key) : find_mediator_key(key);

    if (index < 0 && names) {
        list_names(known, sizeof(known), names, count);
        return error_set(reader->error, EINVAL, "unknown key '%s' in [%s]: it may have %s", key,
                         reader->section, known);
    }
    if (index < 0)
        return error_set(reader->error, EINVAL,
                         "unknown key '%s' in [mediator]: see vgpu-mediator.conf(5)", key);
    if (reader->keys_seen & (1ull << index))
        return error_set(reader->error, EINVAL,
                         "'%s' stands twice in [%s], or its value has "
                         "several lines",
                         key, reader->section);
    reader->keys_seen |= 1ull << index;
    return index;
}

static int apply_key(struct reader *reader, const char *section, const char *key, const char *value)
{
    struct config *config = reader->config;
    struct config_pool *pool;
    struct config_vm *vm;
    int index;

    if (strcmp(section, "mediator") == 0) {
        index = judge_key(reader, NULL, 0, key);
        return index < 0 ? -1 : set_key(config, &mediator_keys[index], value, reader->error);
    }
    if (strncmp(section, "pool ", 5) == 0) {
        index = judge_key(reader, pool_keys, VGPU_ARRAY_LENGTH(pool_keys), key);
        pool = index < 0 ? NULL : pool_section(config, section + 5, reader->error);
        return pool ? set_pool_key(pool, (size_t)index, value, reader->error) : -1;
    }
    if (strncmp(section, "vm ", 3) == 0) {
        index = judge_key(reader, vm_keys, VGPU_ARRAY_LENGTH(vm_keys), key);
        vm = index < 0 ? NULL : vm_section(config, section + 3, reader->header_line, reader->error);
        return vm ? set_vm_key(vm, (size_t)index, value, reader->error) : -1;
    }
    if (strcmp(section, "admin") == 0)
        return 0; /* vgpu-admin's own */
    if (section[0] == '\0')
        return error_set(reader->error, EINVAL,
                         "'%s' stands before the first section: put [mediator], [pool X] or [vm N] "
                         "above it",
                         key);
    return error_set(reader->error, EINVAL,
                     "unknown section [%s]: expected [mediator], [pool X] or [vm N]", section);
}

static int on_key(void *user, const char *section, const char *key, const char *value)
{
    struct reader *reader = user;

    if (reader->error_line)
        return 0; /* the first error is the one to tell */
    reader->header_used = true;
    if (strcmp(section, reader->section) != 0) {
        text_copy(reader->section, sizeof(reader->section), section);
        reader->keys_seen = 0;
    }
    if (apply_key(reader, section, key, value) == 0)
        return 1;
    reader->error_line = reader->line;
    return 0;
}

/* inih tells of keys only: a VM whose section has none would be forgotten. */
static void judge_last_header(struct reader *reader)
{
    if (reader->header_line == 0 || reader->header_used || reader->error_line ||
        strcmp(reader->header, "mediator") == 0)
        return;
    reader->error_line = reader->header_line;
    error_set(reader->error, EINVAL, "section [%s] has no key and would not count: give it one",
              reader->header);
}

static bool section_exists(const struct reader *reader)
{
    const struct config *config = reader->config;
    const char *name = reader->header;
    uint64_t vm_id;

    if (strcmp(name, "mediator") == 0)
        return reader->mediator_seen;
    for (size_t i = 0; strncmp(name, "pool ", 5) == 0 && i < config->pool_count; i++) {
        if (name[5] == config->pools[i].id && name[6] == '\0')
            return true;
    }
    if (strncmp(name, "vm ", 3) != 0 || !text_parse_u64(name + 3, 1, UINT32_MAX, &vm_id))
        return false;
    for (size_t i = 0; i < config->vm_count; i++) {
        if (config->vms[i].vm_id == vm_id)
            return true;
    }
    return false;
}

/* The second one would change what the first one says, far from it. */
static void judge_header(struct reader *reader)
{
    if (!reader->error_line && section_exists(reader)) {
        reader->error_line = reader->header_line;
        error_set(reader->error, EINVAL, "section [%s] stands twice", reader->header);
    }
    if (strcmp(reader->header, "mediator") == 0)
        reader->mediator_seen = true;
}

static void note_header(struct reader *reader, const char *line)
{
    size_t bytes = strcspn(line + 1, "]\n") + 1; /* with its NUL */

    judge_last_header(reader);
    text_copy(reader->header, bytes < sizeof(reader->header) ? bytes : sizeof(reader->header),
              line + 1);
    reader->header_line = reader->line;
    reader->header_used = false;
    judge_header(reader);
}

static char *read_line(char *text, int bytes, void *stream)
{
    struct reader *reader = stream;
    char *line = fgets(text, bytes, reader->file);

    if (!line)
        return NULL;
    reader->line++;
    if (line[0] == '[')
        note_header(reader, line);
    if (strcspn(line, "\n") > CONFIG_LINE_MAX_BYTES && !reader->error_line) {
        reader->error_line = reader->line;
        error_set(reader->error, EINVAL, "line is longer than %d bytes", CONFIG_LINE_MAX_BYTES);
    }
    return line;
}

int config_read(struct config *config, const char *path, struct vgpu_error *error)
{
    struct vgpu_error inner = {0};
    struct reader reader = {.config = config, .error = &inner};
    int first_bad, failure;

    reader.file = fopen(path, "re");
    if (!reader.file)
        return error_set_errno(error, "cannot open configuration file '%s'", path);
    first_bad = ini_parse_stream(read_line, &reader, on_key, &reader);
    failure = ferror(reader.file) ? errno : 0;
    fclose(reader.file);
    if (failure)
        return error_set(error, failure, "cannot read configuration file '%s': %s", path,
                         strerror(failure));
    if (first_bad == 0)
        judge_last_header(&reader);
    /* What inih could not read may come first. */
    if (reader.error_line && (first_bad == 0 || (unsigned)first_bad >= reader.error_line))
        return error_set(error, EINVAL, "%s, line %u: %s", path, reader.error_line, inner.message);
    if (first_bad != 0)
        return error_set(error, EINVAL, "%s, line %d: expected [section] or key = value", path,
                         first_bad);
    return 0;
}

/* --- the whole ---------------------------------------------------------------------------- */

void config_init(struct config *config)
{
    *config = (struct config){
        .control_group = "vgpu",
        .channels = CONFIG_CHANNEL_FILE | CONFIG_CHANNEL_WINDOW,
        .share = VGPU_FILE_HOST_SHARE,
        .state_dir = DEFAULT_STATE_DIR,
        .log_level = LOG_LEVEL_INFO,
        .accept_unregistered = false,
        .max_priority = 1,
        .poll_min_ms = 2,
        .poll_max_ms = 100,
        .response_hold_ms = 5000,
        .unterminated_hold_ms = 10000,
        .operation_limit_ms = 60000,
        .worker_idle_ms = 30000,
        .worker_memory_mib = 4096,
        .device_memory_mib = 1024,
        .image_memory_mib = 512,
        .gpu_check_ms = 30000,
        .sessions_max = VGPU_SLOTS_DEFAULT,
        .sessions_per_device = 8,
        .contexts_per_device = 64,
        .quarantine_faults = 10,
        .quarantine_window_s = 60,
        .quarantine_cooldown_s = 300,
        .contexts_per_vm = 16,
        .grant_us = 2000,
        .grant_ops = 4096,
        .protect_us = 1000,
        .protect_inflight = 2,
        .protect_ms = 100,
        .switch_share_percent = 5,
        .spin_us = 50,
        .nvml_library = DEFAULT_NVML_LIBRARY,
        .health_interval_ms = 5000,
        .metrics_vms = 200,
        .trace_kib = 256,
        .trace_session_kib = 64,
    };
}

void config_free(struct config *config)
{
    free(config->vms);
    config->vms = NULL;
    config->vm_count = 0;
}

/* Next to the mediator's own program in a build tree, else where it is installed. */
static void find_worker(char path[PATH_MAX])
{
    char self[PATH_MAX];
    ssize_t bytes = readlink("/proc/self/exe", self, sizeof(self) - 1);
    char *slash;

    if (bytes > 0) {
        self[bytes] = '\0';
        slash = strrchr(self, '/');
        *slash = '\0';
        static const char *const places[] = {"vgpu-worker", "../exec/vgpu-worker"};

        for (size_t i = 0; i < VGPU_ARRAY_LENGTH(places); i++) {
            if (snprintf(path, PATH_MAX, "%s/%s", self, places[i]) < PATH_MAX &&
                access(path, X_OK) == 0)
                return;
        }
    }
    text_copy(path, PATH_MAX, VGPU_LIBEXEC_DIR "/vgpu-worker");
}

static const struct config_pool *find_pool(const struct config *config, char id)
{
    for (size_t i = 0; i < config->pool_count; i++) {
        if (config->pools[i].id == id)
            return &config->pools[i];
    }
    return NULL;
}

static bool is_inside(const char *path, const char *directory)
{
    size_t length = strlen(directory);

    while (length > 0 && directory[length - 1] == '/')
        length--;
    return strncmp(path, directory, length) == 0 && (path[length] == '/' || path[length] == '\0');
}

/* A mediator with a state directory of its own has its sockets there as well, so
 * that two on one host do not meet. */
static void find_run_dir(struct config *config)
{
    if (config->run_dir[0])
        return;
    if (strcmp(config->state_dir, DEFAULT_STATE_DIR) == 0) {
        text_copy(config->run_dir, sizeof(config->run_dir), DEFAULT_RUN_DIR);
        return;
    }
    /* state_dir is shorter than a path may be by this much, or no lock fits. */
    snprintf(config->run_dir, PATH_MAX, "%.*s/run", PATH_MAX - 8, config->state_dir);
}

static int check_paths(const struct config *config, struct vgpu_error *error)
{
    if (is_inside(config->state_dir, config->share))
        return error_set(error, EINVAL,
                         "state_dir = %s lies inside share = %s: guests could reach the journal; "
                         "put it elsewhere",
                         config->state_dir, config->share);
    if (is_inside(config->run_dir, config->share))
        return error_set(error, EINVAL,
                         "run_dir = %s lies inside share = %s: guests could reach the sockets; put "
                         "it elsewhere",
                         config->run_dir, config->share);
    if (access(config->worker, X_OK) < 0)
        return error_set_errno(error, "worker = %s cannot be run", config->worker);
    return 0;
}

/* A process sees one MIG instance only. */
static int check_session_devices(const struct config_pool *pool, struct vgpu_error *error)
{
    char name[CONFIG_DEVICE_BYTES];
    unsigned count = 0;
    bool mig = false;

    for (; config_pool_device(pool, count, name); count++)
        mig = mig || strncmp(name, "MIG-", 4) == 0;
    if (pool->session_devices > count)
        return error_set(error, EINVAL,
                         "[pool %c]: session_devices = %u, and device = %s are %u: expected at "
                         "most as many as the pool has",
                         pool->id, pool->session_devices, pool->device, count);
    if (pool->session_devices > 1 && mig)
        return error_set(error, EINVAL,
                         "[pool %c]: session_devices = %u with MIG instances: expected 1, as a "
                         "session can have one of them only",
                         pool->id, pool->session_devices);
    return 0;
}

/* Pools and VMs have one place where they are kept. */
static int complete_pools(struct config *config, struct vgpu_error *error)
{
    struct vgpu_error ignored;

    if (config->database[0] && config->pool_count + config->vm_count > 0)
        return error_set(error, EINVAL,
                         "database = %s and sections [pool X] or [vm N]: pools and VMs stand in "
                         "one place; take the sections out, and register the VMs with vgpu-admin",
                         config->database);
    if (config->database[0])
        return registry_read(config, error);
    if (config->pool_count == 0) {
        pool_section(config, "A", &ignored);
        pool_section(config, "B", &ignored);
    }
    for (size_t i = 0; i < config->pool_count; i++) {
        config->pools[i].mode = config->pools_mode;
        if (check_session_devices(&config->pools[i], error) < 0)
            return -1;
    }
    return 0;
}

int config_complete(struct config *config, struct vgpu_error *error)
{
    if (complete_pools(config, error) < 0)
        return -1;
    if (config->worker[0] == '\0')
        find_worker(config->worker);
    if (config->poll_min_ms > config->poll_max_ms)
        return error_set(error, EINVAL, "poll_min_ms = %u is more than poll_max_ms = %u",
                         config->poll_min_ms, config->poll_max_ms);
    for (size_t i = 0; i < config->vm_count; i++) {
        const struct config_vm *vm = &config->vms[i];

        if (!find_pool(config, vm->pool))
            return error_set(error, EINVAL,
                             "[vm %u] (line %u): pool %c does not exist: add [pool %c] or choose "
                             "another",
                             vm->vm_id, vm->line, vm->pool, vm->pool);
    }
    find_run_dir(config);
    return check_paths(config, error);
}

/* Root runs workers as somebody who owns nothing. */
int config_worker_user(const struct config *config, uid_t *ret_uid, gid_t *ret_gid,
                       struct vgpu_error *error)
{
    const char *name = config->worker_user;
    const struct passwd *user;

    if (!name[0] && geteuid() != 0) {
        *ret_uid = (uid_t)-1;
        *ret_gid = (gid_t)-1;
        return 0;
    }
    user = getpwnam(name[0] ? name : "nobody");
    if (!user)
        return error_set(error, ENOENT, "worker_user = %s: this host has no such user", name);
    if (user->pw_uid != geteuid() && geteuid() != 0)
        return error_set(error, EPERM,
                         "worker_user = %s: only root can run workers as another user", name);
    *ret_uid = user->pw_uid == geteuid() ? (uid_t)-1 : user->pw_uid;
    *ret_gid = user->pw_uid == geteuid() ? (gid_t)-1 : user->pw_gid;
    return 0;
}
