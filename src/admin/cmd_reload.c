/* SPDX-License-Identifier: Apache-2.0 */
/* vgpu-admin reload: the mediator reads configuration and database again. */
#include "admin/commands.h"
#include "admin/live_view.h"

#include <stdio.h>
#include <string.h>

static const struct output_column columns[] = {
    {"of", "OF", false},
    {"what", "WHAT", false},
    {"before", "BEFORE", false},
    {"after", "AFTER", false},
};

/* Keys that the mediator reads when it starts. */
static void say_next_start(struct admin *admin, const json_t *keys)
{
    char names[2048] = "";
    const json_t *key;
    size_t i, used = 0;

    json_array_foreach(keys, i, key)
    {
        if (used < sizeof(names))
            used += (size_t)snprintf(names + used, sizeof(names) - used, "%s%s", i ? ", " : "",
                                     json_string_value(key));
    }
    if (used > 0)
        output_say(admin, "%s: from the mediator's next start on.", names);
}

static void print_changes(struct admin *admin, const json_t *applied)
{
    const json_t *changes = json_object_get(applied, "changes"), *change;
    const json_t *next_start = json_object_get(applied, "next_start");
    struct output *table = output_new(admin, columns, VGPU_ARRAY_LENGTH(columns));
    char of[32];
    size_t i;

    json_array_foreach(changes, i, change)
    {
        if (json_object_get(change, "vm_id"))
            snprintf(of, sizeof(of), "VM %llu", (unsigned long long)view_number(change, "vm_id"));
        else if (json_object_get(change, "pool"))
            snprintf(of, sizeof(of), "pool %s", view_text(change, "pool"));
        else
            text_copy(of, sizeof(of), "mediator");
        output_text(table, of);
        output_text(table, view_text(change, "what"));
        output_text(table, view_text(change, "before"));
        output_text(table, view_text(change, "after"));
        output_end_row(table);
    }
    output_print(table, json_array_size(next_start) > 0 ? "Nothing changes at once."
                                                        : "Nothing has changed.");
    output_free(table);
    say_next_start(admin, next_start);
    if (view_number(applied, "count") > json_array_size(changes))
        output_say(admin, "%llu changes in all: the mediator's log has the others.",
                   (unsigned long long)view_number(applied, "count"));
    if (json_object_get(applied, "reason"))
        output_say(admin, "%s.", view_text(applied, "reason"));
    else if (view_flag(applied, "pending"))
        output_say(admin, "The mediator settles what an earlier one left; it reads them right "
                          "after that.");
    else if (!view_flag(applied, "files_done"))
        output_say(admin, "The share does not answer: directories follow when it does.");
}

int cmd_reload(struct admin *admin, int argc, char **argv)
{
    int result = admin_parse(admin, NULL, argc, argv, NULL);
    struct vgpu_error error;
    json_t *applied;

    if (result)
        return result;
    if (live_call(admin, "reload", NULL, &applied, &error) < 0) {
        /* The mediator gives words and no reason: those of the database name its file. */
        if (!admin->failed_exit && strstr(error.message, admin->database_path))
            admin->failed_exit = ADMIN_DATABASE;
        return admin_fail(admin, &error);
    }
    if (admin->json) {
        output_json(applied);
        return ADMIN_OK;
    }
    print_changes(admin, applied);
    json_decref(applied);
    return ADMIN_OK;
}
