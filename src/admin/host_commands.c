/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the commands of the group Host share: the host as the settings describe it, and
 * the way in which a device is moved, told and put on record.
 */
#include "admin/host_commands.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The configuration of another root is read there too. */
static int read_settings(struct admin *admin, const char *root, struct vgpu_error *error)
{
    char path[4096];
    bool own =
        !admin->config && root[0] &&
        snprintf(path, sizeof(path), "%s%s", root, ADMIN_DEFAULT_CONFIG) < (int)sizeof(path) &&
        access(path, F_OK) == 0;
    int result;

    if (own)
        admin->config = path;
    result = settings_read(admin, error);
    if (own)
        admin->config = NULL;
    return result;
}

int host_settings(const struct host_options *options, struct host *ret_host,
                  struct vgpu_error *error)
{
    struct admin *admin = options->admin;
    const char *root = options->root ? options->root : "";

    if (read_settings(admin, root, error) < 0)
        return -1;
    *ret_host = (struct host){.root = root,
                              .config = admin->config ? admin->config : ADMIN_DEFAULT_CONFIG,
                              .database = admin->database_path,
                              .share = admin->share,
                              .run_dir = admin->run_dir,
                              .exports_dir = admin->exports_dir,
                              .socket = admin->socket_path,
                              .cuda_library = admin->cuda_library};
    return 0;
}

json_t *host_json_text(const char *text)
{
    json_t *string = json_string(text);
    char escaped[4 * HOST_TEXT_BYTES];

    if (string)
        return string;
    text_escape(escaped, sizeof(escaped), text, strlen(text));
    return json_string(escaped);
}

/* --- moving a device -------------------------------------------------------------------- */

enum { KEY_GROUP = HOST_KEY_ROOT + 1 };

struct move_options {
    struct host_options host;
    bool whole_group;
};

static const struct argp_option move_argp_options[] = {
    {"group", KEY_GROUP, NULL, 0, "Move all devices of its IOMMU group, or none", 0},
    HOST_ROOT_OPTION,
    {0},
};

static error_t parse_move(int key, char *value, struct argp_state *state)
{
    struct move_options *options = state->input;

    if (key == KEY_GROUP)
        options->whole_group = true;
    else if (key == HOST_KEY_ROOT)
        options->host.root = value;
    else
        return ARGP_ERR_UNKNOWN;
    return 0;
}

static json_t *binding_json(const struct host_binding *binding)
{
    json_t *moved = json_array();

    for (unsigned i = 0; i < binding->count; i++)
        json_array_append_new(
            moved, json_pack("{s:s, s:s, s:s}", "address", binding->moved[i].address, "before",
                             binding->moved[i].before, "after", binding->moved[i].after));
    return json_pack("{s:i, s:o}", "group", binding->group, "moved", moved);
}

static const char *or_none(const char *driver)
{
    return driver[0] ? driver : "no driver";
}

static void tell(struct admin *admin, const struct host_binding *binding, const char *nothing)
{
    if (admin->json) {
        output_json(binding_json(binding));
        return;
    }
    for (unsigned i = 0; i < binding->count; i++)
        output_say(admin, "%s: from %s to %s (IOMMU group %d)", binding->moved[i].address,
                   or_none(binding->moved[i].before), or_none(binding->moved[i].after),
                   binding->group);
    if (!binding->count)
        output_say(admin, "%s %s", admin->words[0], nothing);
}

static void put_on_record(struct admin *admin, const struct host *host,
                          const struct host_binding *binding)
{
    char before[STORE_STATE_BYTES], after[STORE_STATE_BYTES];

    if (host->root[0])
        return;
    for (unsigned i = 0; i < binding->count; i++) {
        snprintf(before, sizeof(before), "{\"device\":\"%s\",\"driver\":\"%s\"}",
                 binding->moved[i].address, binding->moved[i].before);
        snprintf(after, sizeof(after), "{\"device\":\"%s\",\"driver\":\"%s\"}",
                 binding->moved[i].address, binding->moved[i].after);
        admin_record(admin, before, after);
    }
}

int host_move_command(struct admin *admin, int argc, char **argv, host_move *move,
                      const char *nothing)
{
    const struct argp argp = {move_argp_options, parse_move};
    struct move_options options = {.host = {.admin = admin}};
    int result = admin_parse(admin, &argp, argc, argv, &options);
    struct host_binding binding;
    struct vgpu_error error;
    struct host host;

    if (result)
        return result;
    if (host_settings(&options.host, &host, &error) < 0 ||
        move(&host, admin->words[0], options.whole_group, &binding, &error) < 0)
        return admin_fail(admin, &error);
    put_on_record(admin, &host, &binding);
    tell(admin, &binding, nothing);
    return ADMIN_OK;
}
