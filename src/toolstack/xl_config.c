/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The configuration file of an xl domain, as far as we need it (xl.cfg(5)):
 *
 *   name = "vm1"; uuid = '...'      # comment
 *   device_model_args_hvm = [ "-device", "edu",
 *                             "-device", "vgpu-stub,vm_id=1,..." ]
 *
 * The text is walked once, statement by statement; a change replaces bytes of one
 * list and leaves all others alone, because people keep comments in these files.
 * Strings have no escapes that we could need: one with a backslash is not touched.
 */
#include "toolstack/private.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ITEMS_MAX 256
#define ARGUMENTS_KEY "device_model_args_hvm"

/* A piece of the file's text. */
struct span {
    const char *start;
    const char *end;
};

struct config {
    struct span name, uuid; /* inside of their quotes; start NULL: not there */
    struct span list;       /* from [ to behind ] */
    bool added;             /* by += too: more than one list */
    struct span items[ITEMS_MAX];
    size_t item_count;
};

static const char *skip_comment(const char *at)
{
    return at + strcspn(at, "\n");
}

/* Blanks, comments and, between statements, what separates them. */
static const char *skip_blank(const char *at, const char *blanks)
{
    while (*at && (strchr(blanks, *at) || *at == '#'))
        at = *at == '#' ? skip_comment(at) : at + 1;
    return at;
}

/* at: the opening quote.  Returns what is behind the closing one; NULL: there is none. */
static const char *take_string(const char *at, struct span *ret_inside)
{
    char quote = *at++;
    const char *start = at;

    while (*at && *at != quote && *at != '\n')
        at += at[0] == '\\' && at[1] ? 2 : 1;
    if (*at != quote)
        return NULL;
    *ret_inside = (struct span){start, at};
    return at + 1;
}

/* at: the opening bracket.  Fills the items of the outermost list when asked to. */
static const char *take_list(const char *at, struct config *items)
{
    int depth = 0;
    struct span item;

    do {
        at = skip_blank(at, " \t\r\n,");
        if (*at == '[') {
            depth++;
            at++;
        } else if (*at == ']') {
            depth--;
            at++;
        } else if (*at == '"' || *at == '\'') {
            at = take_string(at, &item);
            if (!at)
                return NULL;
            if (items && (depth != 1 || items->item_count == ITEMS_MAX))
                return NULL;
            if (items)
                items->items[items->item_count++] = item;
        } else if (*at) {
            at++; /* a number */
        } else {
            return NULL;
        }
    } while (depth > 0);
    return at;
}

static bool key_is(const struct span *key, const char *name)
{
    return (size_t)(key->end - key->start) == strlen(name) &&
           !strncmp(key->start, name, strlen(name));
}

static const char *take_value(const char *at, const struct span *key, bool adds,
                              struct config *config)
{
    struct span inside;

    if (*at == '[') {
        bool ours = key_is(key, ARGUMENTS_KEY);
        const char *end;

        if (ours && !adds)
            config->item_count = 0; /* the last one counts, as for xl */
        if (ours)
            config->added = adds;
        end = take_list(at, ours ? config : NULL);
        if (ours && end) {
            config->list = (struct span){at, end};
        }
        return end;
    }
    if (*at == '"' || *at == '\'') {
        at = take_string(at, &inside);
        if (at && adds)
            return at;
        if (at && key_is(key, "name"))
            config->name = inside;
        else if (at && key_is(key, "uuid"))
            config->uuid = inside;
        return at;
    }
    return at + strcspn(at, ";\n#");
}

static int read_config(const char *text, struct config *config, struct vgpu_error *error)
{
    const char *at = text;

    memset(config, 0, sizeof(*config));
    while (*(at = skip_blank(at, " \t\r\n;"))) {
        struct span key = {at, at};
        bool adds;

        while (isalnum((unsigned char)*at) || *at == '_')
            at++;
        key.end = at;
        at += strspn(at, " \t");
        adds = *at == '+';
        at += adds;
        if (key.start == key.end || *at != '=')
            return error_set(error, EBADMSG, "KEY=VALUE was expected at '%.24s'", key.start);
        at++;
        at += strspn(at, " \t");
        at = take_value(at, &key, adds, config);
        if (!at)
            return error_set(error, EBADMSG,
                             "the value of '%.*s' has no end, or is a list of lists where one of "
                             "strings was expected",
                             (int)(key.end - key.start > 64 ? 64 : key.end - key.start), key.start);
    }
    return 0;
}

static void copy_span(const struct span *span, char *text, size_t bytes)
{
    if (span->start)
        snprintf(text, bytes, "%.*s", (int)(span->end - span->start), span->start);
    else
        text[0] = '\0';
}

static void free_arguments(char **arguments, size_t count)
{
    for (size_t i = 0; i < count; i++)
        free(arguments[i]);
    free(arguments);
}

static char **copy_arguments(const struct config *config)
{
    char **arguments = calloc(config->item_count + 1, sizeof(*arguments));

    for (size_t i = 0; arguments && i < config->item_count; i++) {
        const struct span *item = &config->items[i];

        arguments[i] = strndup(item->start, (size_t)(item->end - item->start));
        if (!arguments[i]) {
            free_arguments(arguments, i);
            return NULL;
        }
    }
    return arguments;
}

int xl_config_read(const char *text, struct toolstack_vm *ret_vm, struct vgpu_error *error)
{
    struct toolstack_vm vm = {.state = TOOLSTACK_OFF};
    struct device_arguments found;
    struct config config;
    char **arguments;

    if (read_config(text, &config, error) < 0)
        return -1;
    if (!config.name.start)
        return error_set(error, ENOENT, "it has no name=");
    copy_span(&config.name, vm.name, sizeof(vm.name));
    copy_span(&config.uuid, vm.uuid, sizeof(vm.uuid));
    if (!toolstack_is_uuid(vm.uuid))
        vm.uuid[0] = '\0';
    arguments = copy_arguments(&config);
    if (!arguments)
        return error_set(error, ENOMEM, "no memory");
    device_read_arguments((const char *const *)arguments, config.item_count, &found);
    device_describe(&found, &vm);
    free_arguments(arguments, config.item_count);
    *ret_vm = vm;
    return 0;
}

/* --- writing ---------------------------------------------------------------------- */

static void put_item(FILE *out, bool *first, const char *text)
{
    fprintf(out, "%s\"%s\"", *first ? "" : ", ", text);
    *first = false;
}

/* The list anew: what is not ours with its own quotes, then ours. */
static void put_list(FILE *out, const struct config *config, char **arguments,
                     const struct device_arguments *found, const struct toolstack_device *device)
{
    char text[DEVICE_TEXT_BYTES];
    bool first = true;

    fputs("[ ", out);
    for (size_t i = 0; i < config->item_count; i++) {
        const struct span *item = &config->items[i];

        if (device_owns_argument(found, (const char *const *)arguments, config->item_count, i)) {
            i++;
            continue;
        }
        /* With the quotes around it. */
        fprintf(out, "%s%.*s", first ? "" : ", ", (int)(item->end - item->start + 2),
                item->start - 1);
        first = false;
    }
    if (device) {
        device_format(device, found->extra, text);
        put_item(out, &first, "-device");
        put_item(out, &first, text);
    }
    fputs(" ]", out);
}

static void put_text(FILE *out, const char *text, const struct config *config, char **arguments,
                     const struct device_arguments *found, const struct toolstack_device *device)
{
    if (config->list.start) {
        fprintf(out, "%.*s", (int)(config->list.start - text), text);
        put_list(out, config, arguments, found, device);
        fputs(config->list.end, out);
        return;
    }
    fputs(text, out);
    if (!device)
        return;
    fprintf(out, "%s" ARGUMENTS_KEY " = ", *text && text[strlen(text) - 1] != '\n' ? "\n" : "");
    put_list(out, config, arguments, found, device);
    fputc('\n', out);
}

int xl_config_write(const char *text, const struct toolstack_device *device, char **ret_text,
                    struct vgpu_error *error)
{
    struct device_arguments found;
    struct config config;
    char **arguments;
    char *made = NULL;
    size_t bytes = 0;
    FILE *out;

    if (device && device_check(device, error) < 0)
        return -1;
    if (read_config(text, &config, error) < 0)
        return -1;
    if (config.added)
        return error_set(error, ENOTSUP,
                         ARGUMENTS_KEY " += adds to an earlier list: write it as one list, with =, "
                                       "and publish again");
    arguments = copy_arguments(&config);
    out = open_memstream(&made, &bytes);
    if (arguments && out) {
        device_read_arguments((const char *const *)arguments, config.item_count, &found);
        put_text(out, text, &config, arguments, &found, device);
    }
    free_arguments(arguments, arguments ? config.item_count : 0);
    if (!out || fclose(out) != 0 || !arguments) {
        free(made);
        return error_set(error, ENOMEM, "no memory");
    }
    *ret_text = made;
    return 0;
}
