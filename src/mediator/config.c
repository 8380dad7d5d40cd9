/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The configuration file: sections [mediator], [pool X] and [vm N], read by
 * inih.  Every key stands once in a table below with what it accepts; a
 * message names file and line, what was expected and what came.
 */
#include "mediator/mediator.h"

#include <errno.h>
#include <grp.h>
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
static const struct choice policies[] = {
    {"strict", SCHED_POLICY_STRICT}, {"fifo", SCHED_POLICY_FIFO}, {NULL, 0}};
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

static int parse_priority(const char *key, const char *value, uint8_t *ret_priority,
                          struct vgpu_error *error)
{
    if (!protocol_parse_priority(value, ret_priority))
        return bad_value(error, key, value, "0, 1, 2 or low, medium, high");
    return 0;
}

/* --- [mediator] ------------------------------------------------------------------ */

enum key_type { KEY_PATH, KEY_NUMBER, KEY_CHOICE, KEY_PRIORITY };

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
    PATH(share),
    PATH(state_dir),
    PATH(log),
    PATH(worker),
    PATH(execution_log),
    CHOICE("log_format", log_format, log_formats),
    CHOICE("log_level", log_level, log_levels),
    CHOICE("pools", pools_mode, pools_modes),
    CHOICE("policy", policy, policies),
    CHOICE("unregistered", accept_unregistered, unregistered),
    {.name = "max_priority", .type = KEY_PRIORITY, .offset = FIELD(max_priority)},
    NUMBER(poll_min_ms, 1, 1000),
    NUMBER(poll_max_ms, 1, 60000),
    NUMBER(response_hold_ms, 0, 3600000),
    NUMBER(unterminated_hold_ms, 100, 3600000),
    NUMBER(operation_limit_ms, 1, 86400000),
    NUMBER(worker_idle_ms, 0, 86400000),
};

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

/* --- [pool X] and [vm N] ------------------------------------------------------------ */

static int set_device(struct config_pool *pool, const char *value, struct vgpu_error *error)
{
    uint64_t index;

    if (strcmp(value, "cpu") != 0 &&
        (strncmp(value, "cpu:", 4) != 0 || !text_parse_u64(value + 4, 0, 63, &index)))
        return bad_value(error, "device", value,
                         "cpu or cpu:0 to cpu:63 (this version has no other backend)");
    text_copy(pool->device, sizeof(pool->device), value);
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

static const char *const pool_keys[] = {"name", "device"};

static int set_pool_key(struct config_pool *pool, size_t key, const char *value,
                        struct vgpu_error *error)
{
    return key == 0 ? set_name(pool->name, value, error) : set_device(pool, value, error);
}

static bool find_user(const char *text, uid_t *ret_uid, gid_t *ret_gid)
{
    const struct passwd *user;
    uint64_t id;

    if (text_parse_u64(text, 0, UINT32_MAX - 1, &id)) {
        *ret_uid = (uid_t)id;
        *ret_gid = (gid_t)id;
        return true;
    }
    user = getpwnam(text);
    if (!user)
        return false;
    *ret_uid = user->pw_uid;
    *ret_gid = user->pw_gid;
    return true;
}

static bool find_group(const char *text, gid_t *ret_gid)
{
    const struct group *group;
    uint64_t id;

    if (text_parse_u64(text, 0, UINT32_MAX - 1, &id)) {
        *ret_gid = (gid_t)id;
        return true;
    }
    group = getgrnam(text);
    if (group)
        *ret_gid = group->gr_gid;
    return group != NULL;
}

static int set_owner(struct config_vm *vm, const char *value, struct vgpu_error *error)
{
    char text[128];
    char *colon;
    uid_t uid = (uid_t)-1;
    gid_t gid = (gid_t)-1;

    text_copy(text, sizeof(text), value);
    colon = strchr(text, ':');
    if (colon)
        *colon++ = '\0';
    if (!find_user(text, &uid, &gid) || (colon && !find_group(colon, &gid)))
        return bad_value(error, "owner", value,
                         "user or user:group, by name or number, that exists on this host");
    vm->owner_uid = uid;
    vm->owner_gid = gid;
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

static const char *const vm_keys[] = {"pool", "priority", "name", "owner", "mode"};

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
    default:
        return set_mode(vm, value, error);
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
    *pool = (struct config_pool){.id = id[0], .device = "cpu"};
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
    uint32_t keys_seen; /* of this section, by index in its table */
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
    if (reader->keys_seen & (1u << index))
        return error_set(reader->error, EINVAL,
                         "'%s' stands twice in [%s], or its value has "
                         "several lines",
                         key, reader->section);
    reader->keys_seen |= 1u << index;
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

static int check_paths(const struct config *config, struct vgpu_error *error)
{
    if (is_inside(config->state_dir, config->share))
        return error_set(error, EINVAL,
                         "state_dir = %s lies inside share = %s: guests could reach the journal; "
                         "put it elsewhere",
                         config->state_dir, config->share);
    if (access(config->worker, X_OK) < 0)
        return error_set_errno(error, "worker = %s cannot be run", config->worker);
    return 0;
}

int config_complete(struct config *config, struct vgpu_error *error)
{
    struct vgpu_error ignored;

    if (config->pool_count == 0) {
        pool_section(config, "A", &ignored);
        pool_section(config, "B", &ignored);
    }
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
    return check_paths(config, error);
}
