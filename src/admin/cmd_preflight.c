/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vgpu-admin preflight: looks at the host and says what is to be mended, changing
 * nothing.  Exit code 8 when a check failed; warnings alone are 0.
 */
#include "admin/commands.h"
#include "admin/host_commands.h"

#include <stdio.h>
#include <string.h>

enum { KEY_ONLY = HOST_KEY_ROOT + 1, KEY_LIST };

struct options {
    struct host_options host;
    const char *only;
    bool list;
};

static const struct argp_option argp_options[] = {
    {"only", KEY_ONLY, "NAME", 0, "Run this one check", 0},
    {"list", KEY_LIST, NULL, 0, "Print the checks' names and end", 0},
    HOST_ROOT_OPTION,
    {0},
};

static bool is_check(const char *name)
{
    for (size_t i = 0; host_check_name(i); i++) {
        if (strcmp(host_check_name(i), name) == 0)
            return true;
    }
    return false;
}

static error_t parse(int key, char *value, struct argp_state *state)
{
    struct options *options = state->input;

    switch (key) {
    case KEY_ONLY:
        if (!is_check(value))
            return admin_usage(options->host.admin,
                               "there is no check '%.64s': see vgpu-admin preflight --list", value);
        options->only = value;
        return 0;
    case KEY_LIST:
        options->list = true;
        return 0;
    case HOST_KEY_ROOT:
        options->host.root = value;
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static int list_checks(struct admin *admin)
{
    json_t *names = json_array();

    for (size_t i = 0; host_check_name(i); i++) {
        json_array_append_new(names, json_string(host_check_name(i)));
        if (!admin->json)
            puts(host_check_name(i));
    }
    if (admin->json)
        output_json(json_pack("{s:o}", "checks", names));
    else
        json_decref(names);
    return ADMIN_OK;
}

static void print_json(const struct host *host, const struct host_check *checks, size_t count,
                       const unsigned counts[4])
{
    json_t *array = json_array();

    for (size_t i = 0; i < count; i++) {
        json_t *check = json_pack("{s:s, s:s}", "name", checks[i].name, "verdict",
                                  host_verdict_name(checks[i].verdict));

        json_object_set_new(check, "found", host_json_text(checks[i].found));
        json_object_set_new(check, "remedy",
                            checks[i].remedy[0] ? host_json_text(checks[i].remedy) : json_null());
        json_array_append_new(array, check);
    }
    output_json(json_pack("{s:s, s:o, s:i, s:i, s:i, s:i}", "mode", host_mode_name(host_mode(host)),
                          "checks", array, "passed", counts[HOST_PASS], "warned", counts[HOST_WARN],
                          "failed", counts[HOST_FAIL], "skipped", counts[HOST_SKIP]));
}

static void print_text(const struct admin *admin, const struct host_check *checks, size_t count,
                       const unsigned counts[4])
{
    for (size_t i = 0; i < count; i++) {
        bool trouble = checks[i].verdict == HOST_WARN || checks[i].verdict == HOST_FAIL;

        if (admin->quiet && !trouble)
            continue;
        printf("%-5s %-20s %s\n", host_verdict_name(checks[i].verdict), checks[i].name,
               checks[i].found);
        if (checks[i].remedy[0])
            printf("%-5s %-20s %s %s\n", "", "", trouble ? "remedy:" : "hint:", checks[i].remedy);
    }
    if (!admin->quiet && count > 1)
        printf("\n%u passed, %u to think about, %u failed, %u do not apply\n", counts[HOST_PASS],
               counts[HOST_WARN], counts[HOST_FAIL], counts[HOST_SKIP]);
}

int cmd_preflight(struct admin *admin, int argc, char **argv)
{
    const struct argp argp = {argp_options, parse};
    struct options options = {.host = {.admin = admin}};
    int result = admin_parse(admin, &argp, argc, argv, &options);
    struct host_check checks[HOST_CHECKS_MAX];
    unsigned counts[4] = {0};
    struct vgpu_error error;
    struct host host;
    size_t count;

    if (result)
        return result;
    if (options.list)
        return list_checks(admin);
    if (host_settings(&options.host, &host, &error) < 0)
        return admin_fail(admin, &error);
    count = host_preflight(&host, options.only, checks);
    for (size_t i = 0; i < count; i++)
        counts[checks[i].verdict]++;
    if (admin->json)
        print_json(&host, checks, count, counts);
    else
        print_text(admin, checks, count, counts);
    return counts[HOST_FAIL] ? ADMIN_CHECKS_FAILED : ADMIN_OK;
}
