/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Exports of the share: each VM's directory for its own guest alone, all users
 * squashed to one (docs/nfs.md).  Found here: the share as a whole, everybody, a
 * network, root that stays root, users that stay who they say they are.  What exports
 * say only together is found in exports_seen.c.
 *
 *   /etc/exports, /etc/exports.d/ *.exports      /var/vgpu/vm7 10.77.0.7(rw,all_squash,...)
 *   /etc/ganesha/ *.conf and one folder below    EXPORT { Path = ...; CLIENT { ... } }
 *
 * Other exports of this host are not ours to judge.
 */
#include "host/private.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define REMEDY                                                                                     \
    "one export a VM, of its directory alone, for its guest's address alone, with all users "      \
    "squashed to the directory's owner: docs/nfs.md shows it; then export again"

enum relation { UNRELATED, WHOLE, ONE_VM };

/* Of an exported path to the share. */
static enum relation relate(const struct survey *survey, const char *path)
{
    const char *share = survey->host->share;
    size_t share_length = strlen(share), length = strlen(path);

    while (share_length > 1 && share[share_length - 1] == '/')
        share_length--;
    while (length > 1 && path[length - 1] == '/')
        length--;
    if (length > share_length && strncmp(path, share, share_length) == 0 &&
        path[share_length] == '/')
        return ONE_VM;
    if (length == 1 && path[0] == '/')
        return WHOLE;
    if (length <= share_length && strncmp(path, share, length) == 0 &&
        (length == share_length || share[length] == '/'))
        return WHOLE;
    return UNRELATED;
}

/* Without a prefix these are nobody's address, and servers take them for all. */
static bool is_everybody(const char *client)
{
    const char *prefix = strchr(client, '/');

    if (prefix)
        return strcmp(prefix, "/0") == 0 || strcmp(prefix, "/0.0.0.0") == 0;
    return !client[0] || strpbrk(client, "*?") || strcmp(client, "0.0.0.0") == 0 ||
           strcmp(client, "::") == 0 || strcmp(client, "0") == 0;
}

static void judge_client(const char *path, const char *client, struct exports_seen *seen,
                         struct findings *findings)
{
    char shown[96];

    text_escape(shown, sizeof(shown), client, strlen(client));
    if (is_everybody(client))
        host_add(findings->failed, sizeof(findings->failed), "%s is open to everybody (%s)", path,
                 shown[0] ? shown : "no client named");
    else if (strchr(client, '/') || client[0] == '@')
        host_add(findings->warned, sizeof(findings->warned),
                 "%s is open to a whole network or netgroup (%s)", path, shown);
    else
        exports_seen_add(seen, path, shown);
}

static void judge_path(enum relation relation, const char *path, struct findings *findings)
{
    if (relation == WHOLE)
        host_add(findings->failed, sizeof(findings->failed),
                 "%s: one export for the directories of all VMs", path);
}

enum squash { SQUASH_NONE, SQUASH_ROOT, SQUASH_ALL };

static void judge_squash(const char *path, enum squash squash, struct findings *findings)
{
    if (squash == SQUASH_NONE)
        host_add(findings->failed, sizeof(findings->failed), "%s: root of a guest is root there",
                 path);
    else if (squash == SQUASH_ROOT)
        host_add(findings->warned, sizeof(findings->warned),
                 "%s: a guest chooses which user it is (not all are squashed)", path);
}

static void conclude(const struct survey *survey, unsigned count, struct exports_seen *seen,
                     struct findings *findings, const char *file, struct host_check *check)
{
    char well[64];

    exports_seen_judge(survey, seen, findings);
    if (!survey->host->share[0]) {
        check_skip(check, "there is no share: the file channel is off or not configured");
        return;
    }
    if (!count) {
        check_skip(check, "nothing of %s is exported by %s", survey->host->share, file);
        return;
    }
    snprintf(well, sizeof(well), "%u export%s, each of one VM, for one guest", count,
             count == 1 ? "" : "s");
    check_findings(check, findings, well);
    if (check->verdict != HOST_PASS)
        check_remedy(check, REMEDY);
}

/* --- the kernel's server ----------------------------------------------------------------- */

struct kernel_reader {
    const struct survey *survey;
    struct findings findings;
    struct exports_seen seen;
    unsigned count;
};

/* A word of exports(5): "quoted parts" and \040 are undone.  NULL at the end. */
static char *next_word(char **at)
{
    char *out, *word;
    bool quoted = false;

    *at += strspn(*at, " \t");
    if (!**at)
        return NULL;
    for (word = out = *at; **at && (quoted || (**at != ' ' && **at != '\t')); (*at)++) {
        char *in = *at;

        if (*in == '"') {
            quoted = !quoted;
        } else if (*in == '\\' && in[1] >= '0' && in[1] <= '3' && isdigit((unsigned char)in[2]) &&
                   isdigit((unsigned char)in[3])) {
            *out++ = (char)((in[1] - '0') * 64 + (in[2] - '0') * 8 + (in[3] - '0'));
            *at += 3;
        } else {
            *out++ = *in;
        }
    }
    if (**at)
        (*at)++;
    *out = '\0';
    return word;
}

static enum squash squash_of(const char *options, enum squash squash)
{
    char copy[512], *state;

    text_copy(copy, sizeof(copy), options);
    for (char *word = strtok_r(copy, ",", &state); word; word = strtok_r(NULL, ",", &state)) {
        if (strcmp(word, "no_root_squash") == 0)
            squash = SQUASH_NONE;
        else if (strcmp(word, "all_squash") == 0)
            squash = SQUASH_ALL;
        else if (strcmp(word, "root_squash") == 0 ||
                 (strcmp(word, "no_all_squash") == 0 && squash == SQUASH_ALL))
            squash = SQUASH_ROOT;
    }
    return squash;
}

static void judge_kernel_line(struct kernel_reader *reader, char *line)
{
    char *path = next_word(&line), *word;
    enum relation relation = path ? relate(reader->survey, path) : UNRELATED;
    enum squash common = SQUASH_ROOT;
    unsigned clients = 0;

    if (relation == UNRELATED)
        return;
    reader->count++;
    judge_path(relation, path, &reader->findings);
    while ((word = next_word(&line))) {
        char *options = strchr(word, '(');

        if (word[0] == '-') {
            common = squash_of(word + 1, common);
            continue;
        }
        clients++;
        if (options) {
            *options++ = '\0';
            options[strcspn(options, ")")] = '\0';
        }
        judge_client(path, word, &reader->seen, &reader->findings);
        judge_squash(path, squash_of(options ? options : "", common), &reader->findings);
    }
    if (!clients)
        judge_client(path, "", &reader->seen, &reader->findings);
}

/* Lines that end in a backslash go on. */
static void read_kernel_text(struct kernel_reader *reader, char *text)
{
    char *line = text, *out = text;

    for (char *at = text;; at++) {
        if (at[0] == '\\' && at[1] == '\n') {
            *out++ = ' ';
            at++;
        } else if (*at == '\n' || !*at) {
            bool last = !*at;

            *out = '\0';
            line[strcspn(line, "#")] = '\0';
            judge_kernel_line(reader, line);
            line = out = at + 1;
            if (last)
                return;
        } else {
            *out++ = *at;
        }
    }
}

static void read_kernel_file(struct kernel_reader *reader, const char *path)
{
    char *text = host_read_file(reader->survey->host, "%s", path);

    if (text)
        read_kernel_text(reader, text);
    free(text);
}

static bool ends_with(const char *text, const char *end)
{
    size_t length = strlen(text), end_length = strlen(end);

    return length > end_length && strcmp(text + length - end_length, end) == 0;
}

static void read_kernel_folder(struct kernel_reader *reader, const char *folder)
{
    struct host_names names = host_list(reader->survey->host, "%s", folder);

    for (size_t i = 0; i < names.count; i++) {
        char path[PATH_MAX];

        if (ends_with(names.names[i], ".exports") &&
            snprintf(path, sizeof(path), "%s/%s", folder, names.names[i]) < PATH_MAX)
            read_kernel_file(reader, path);
    }
    host_names_free(&names);
}

/* Not to be read twice: not `usual` itself, nor so many folders below it. */
static bool is_elsewhere(const struct host *host, const char *usual, unsigned depth)
{
    const char *folder = host->exports_dir, *below = folder + strlen(usual);
    unsigned folders = 0;

    if (!folder[0])
        return false;
    if (strncmp(folder, usual, strlen(usual)) != 0 || (*below && *below != '/'))
        return true;
    while (*(below += strspn(below, "/"))) {
        folders++;
        below += strcspn(below, "/");
    }
    return folders > depth;
}

void check_kernel_exports(const struct survey *survey, struct host_check *check)
{
    struct kernel_reader reader = {.survey = survey};

    if (survey->host->share[0]) {
        read_kernel_file(&reader, "/etc/exports");
        read_kernel_folder(&reader, "/etc/exports.d");
        if (is_elsewhere(survey->host, "/etc/exports.d", 0))
            read_kernel_folder(&reader, survey->host->exports_dir);
    }
    conclude(survey, reader.count, &reader.seen, &reader.findings, "/etc/exports", check);
}

/* --- nfs-ganesha ---------------------------------------------------------------------------- */

#define CLIENTS_MAX 32
#define DEPTH_MAX 8

struct ganesha_export {
    char path[PATH_MAX];
    char access[32];
    enum squash squash;
    struct {
        char names[256];
        enum squash squash;
    } clients[CLIENTS_MAX];
    unsigned client_count;
};

struct ganesha_reader {
    const struct survey *survey;
    struct findings findings;
    struct exports_seen seen;
    unsigned count;
    const char *at;
    char default_access[32];
    enum squash default_squash;
    struct ganesha_export export;
};

static void skip_blanks(struct ganesha_reader *reader)
{
    for (;;) {
        reader->at += strspn(reader->at, " \t\r\n;");
        if (*reader->at != '#')
            return;
        reader->at += strcspn(reader->at, "\n");
    }
}

static void read_name(struct ganesha_reader *reader, char *name, size_t bytes)
{
    size_t length = strcspn(reader->at, " \t\r\n;={}#");

    snprintf(name, bytes, "%.*s", (int)length, reader->at);
    reader->at += length;
}

/* Up to the semicolon, without quotes and comments. */
static void read_value(struct ganesha_reader *reader, char *value, size_t bytes)
{
    size_t used = 0;

    while (*reader->at && *reader->at != ';' && *reader->at != '}') {
        if (*reader->at == '#') {
            reader->at += strcspn(reader->at, "\n");
            continue;
        }
        if (*reader->at != '"' && *reader->at != '\'' && used + 1 < bytes)
            value[used++] = isspace((unsigned char)*reader->at) ? ' ' : *reader->at;
        reader->at++;
    }
    while (used && value[used - 1] == ' ')
        used--;
    value[used] = '\0';
    memmove(value, value + strspn(value, " "), strlen(value + strspn(value, " ")) + 1);
}

static enum squash ganesha_squash(const char *value)
{
    if (strncasecmp(value, "all", 3) == 0)
        return SQUASH_ALL;
    if (strncasecmp(value, "root", 4) == 0)
        return SQUASH_ROOT;
    return SQUASH_NONE;
}

static void judge_clients(struct ganesha_reader *reader, const char *names)
{
    const char *path = reader->export.path;
    char copy[256], *state;

    text_copy(copy, sizeof(copy), names);
    for (char *one = strtok_r(copy, ", ", &state); one; one = strtok_r(NULL, ", ", &state))
        judge_client(path, one, &reader->seen, &reader->findings);
}

static void end_export(struct ganesha_reader *reader)
{
    const struct ganesha_export *export = &reader->export;
    enum relation relation = relate(reader->survey, export->path);

    if (!export->path[0] || relation == UNRELATED)
        return;
    reader->count++;
    judge_path(relation, export->path, &reader->findings);
    if (strcasecmp(export->access, "none") != 0) {
        judge_client(export->path, "", &reader->seen, &reader->findings);
        judge_squash(export->path, export->squash, &reader->findings);
    }
    for (unsigned i = 0; i < export->client_count; i++) {
        judge_clients(reader, export->clients[i].names);
        judge_squash(export->path, export->clients[i].squash, &reader->findings);
    }
}

static void set_value(struct ganesha_reader *reader, const char *block, const char *name,
                      const char *value)
{
    struct ganesha_export *export = &reader->export;
    unsigned last = export->client_count - 1;

    if (strcasecmp(block, "EXPORT_DEFAULTS") == 0) {
        if (strcasecmp(name, "Access_Type") == 0)
            text_copy(reader->default_access, sizeof(reader->default_access), value);
        else if (strcasecmp(name, "Squash") == 0)
            reader->default_squash = ganesha_squash(value);
    } else if (strcasecmp(block, "EXPORT") == 0) {
        if (strcasecmp(name, "Path") == 0)
            text_copy(export->path, sizeof(export->path), value);
        else if (strcasecmp(name, "Access_Type") == 0)
            text_copy(export->access, sizeof(export->access), value);
        else if (strcasecmp(name, "Squash") == 0)
            export->squash = ganesha_squash(value);
    } else if (strcasecmp(block, "CLIENT") == 0 && export->client_count) {
        if (strcasecmp(name, "Clients") == 0)
            text_copy(export->clients[last].names, sizeof(export->clients[last].names), value);
        else if (strcasecmp(name, "Squash") == 0)
            export->clients[last].squash = ganesha_squash(value);
    }
}

static void begin_block(struct ganesha_reader *reader, const char *block)
{
    struct ganesha_export *export = &reader->export;

    if (strcasecmp(block, "EXPORT") == 0) {
        *export = (struct ganesha_export){.squash = reader->default_squash};
        text_copy(export->access, sizeof(export->access), reader->default_access);
    } else if (strcasecmp(block, "CLIENT") == 0 && export->client_count < CLIENTS_MAX) {
        export->clients[export->client_count++].squash = export->squash;
    }
}

/* The inside of one block, up to its brace. */
static void read_block(struct ganesha_reader *reader, const char *block, unsigned depth)
{
    while (depth < DEPTH_MAX) {
        char name[64], value[PATH_MAX];
        const char *before = reader->at;

        skip_blanks(reader);
        if (!*reader->at || *reader->at == '}')
            break;
        read_name(reader, name, sizeof(name));
        skip_blanks(reader);
        if (*reader->at == '{') {
            reader->at++;
            begin_block(reader, name);
            read_block(reader, name, depth + 1);
            if (strcasecmp(name, "EXPORT") == 0)
                end_export(reader);
        } else if (*reader->at == '=') {
            reader->at++;
            read_value(reader, value, sizeof(value));
            set_value(reader, block, name, value);
        } else if (reader->at == before) {
            reader->at++; /* what no configuration has */
        }
    }
    if (depth && *reader->at == '}')
        reader->at++;
}

static void read_ganesha_text(struct ganesha_reader *reader, const char *text)
{
    reader->at = text;
    while (*reader->at) {
        read_block(reader, "", 0);
        if (*reader->at) /* a brace too many */
            reader->at++;
    }
}

static void read_ganesha_folder(struct ganesha_reader *reader, const char *folder, unsigned depth)
{
    struct host_names names = host_list(reader->survey->host, "%s", folder);

    for (size_t i = 0; i < names.count; i++) {
        char path[PATH_MAX], *text = NULL;

        if (snprintf(path, sizeof(path), "%s/%s", folder, names.names[i]) >= PATH_MAX)
            continue;
        if (ends_with(path, ".conf"))
            text = host_read_file(reader->survey->host, "%s", path);
        else if (depth == 0)
            read_ganesha_folder(reader, path, depth + 1);
        if (text)
            read_ganesha_text(reader, text);
        free(text);
    }
    host_names_free(&names);
}

void check_ganesha_exports(const struct survey *survey, struct host_check *check)
{
    struct ganesha_reader *reader = calloc(1, sizeof(*reader));

    if (!reader) {
        check_skip(check, "no memory");
        return;
    }
    reader->survey = survey;
    reader->default_squash = SQUASH_ROOT;
    text_copy(reader->default_access, sizeof(reader->default_access), "None");
    if (survey->host->share[0]) {
        read_ganesha_folder(reader, "/etc/ganesha", 0);
        if (is_elsewhere(survey->host, "/etc/ganesha", 1))
            read_ganesha_folder(reader, survey->host->exports_dir, 1);
    }
    conclude(survey, reader->count, &reader->seen, &reader->findings, "/etc/ganesha", check);
    free(reader);
}
