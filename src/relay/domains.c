/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The file that says which domain serves which pool, read by inih:
 *
 *   [pools]
 *   A = gpu1
 *   B = gpu1
 */
#include "relay/relay.h"

#include <errno.h>
#include <ini.h>
#include <stdio.h>
#include <string.h>

struct reader {
    struct relay_domains *domains;
    struct vgpu_error *error; /* the first one's */
    bool failed;
};

static struct relay_worker *worker_named(struct relay_domains *domains, const char *name)
{
    for (unsigned i = 0; i < domains->count; i++) {
        if (strcmp(domains->workers[i].name, name) == 0)
            return &domains->workers[i];
    }
    if (domains->count == RELAY_WORKERS_MAX)
        return NULL;
    domains->workers[domains->count].listener.fd = -1;
    text_copy(domains->workers[domains->count].name, RELAY_NAME_BYTES, name);
    return &domains->workers[domains->count++];
}

/* Its name is that of a directory too. */
static bool is_domain_name(const char *name)
{
    size_t bytes = strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
                                "-_.+");

    return bytes > 0 && name[bytes] == '\0' && bytes < RELAY_NAME_BYTES && name[0] != '.';
}

static int take_pool(struct reader *reader, const char *key, const char *value)
{
    struct relay_worker *worker;
    char shown[64];

    if (key[0] < 'A' || key[0] > 'Z' || key[1] != '\0') {
        text_escape(shown, sizeof(shown), key, strlen(key));
        return error_set(reader->error, EINVAL, "'%s' is no pool: expected one letter, A to Z",
                         shown);
    }
    if (relay_domains_find(reader->domains, key[0]))
        return error_set(reader->error, EINVAL, "pool %c stands twice", key[0]);
    if (!is_domain_name(value)) {
        text_escape(shown, sizeof(shown), value, strlen(value));
        return error_set(reader->error, EINVAL,
                         "%c = '%s': expected the name or the UUID of a domain: at most 63 "
                         "letters, digits and - _ . +",
                         key[0], shown);
    }
    worker = worker_named(reader->domains, value);
    if (!worker)
        return error_set(reader->error, EINVAL,
                         "%c = %s is one domain too many: expected at most "
                         "%u",
                         key[0], value, RELAY_WORKERS_MAX);
    worker->pools[strlen(worker->pools)] = key[0];
    return 0;
}

static int on_key(void *user, const char *section, const char *key, const char *value)
{
    struct reader *reader = user;

    if (reader->failed)
        return 0; /* the first error is the one to tell */
    if (strcmp(section, "pools") == 0)
        reader->failed = take_pool(reader, key, value) < 0;
    else
        reader->failed =
            error_set(reader->error, EINVAL, "expected the section [pools] and no other") < 0;
    return !reader->failed;
}

int relay_domains_read(struct relay_domains *domains, const char *path, struct vgpu_error *error)
{
    struct vgpu_error inner = {0};
    struct reader reader = {.domains = domains, .error = &inner};
    FILE *file = fopen(path, "re");
    int line;

    memset(domains, 0, sizeof(*domains));
    if (!file)
        return error_set_errno(error, "cannot open '%s', which says which domain serves which pool",
                               path);
    line = ini_parse_file(file, on_key, &reader);
    fclose(file);
    if (line < 0)
        return error_set(error, EIO, "cannot read '%s'", path);
    if (line > 0)
        return error_set(error, EINVAL, "%s, line %d: %s", path, line,
                         reader.failed ? inner.message : "expected [pools] or POOL = DOMAIN");
    if (domains->count == 0)
        return error_set(error, EINVAL,
                         "%s names no pool: expected [pools] and POOL = DOMAIN below", path);
    return 0;
}

struct relay_worker *relay_domains_find(struct relay_domains *domains, char pool)
{
    for (unsigned i = 0; i < domains->count; i++) {
        if (strchr(domains->workers[i].pools, pool))
            return &domains->workers[i];
    }
    return NULL;
}
