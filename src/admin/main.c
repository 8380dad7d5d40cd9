/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vgpu-admin COMMAND ...: finds the command in the table and runs it.  Options that
 * all commands have may stand before the command or behind it.  argp stays silent
 * about errors, so that a usage error is told like every other failure: in plain
 * words, or as JSON.
 */
#include "admin/admin.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    KEY_DATABASE = 0x1000,
    KEY_SOCKET,
    KEY_CONFIG,
    KEY_TOOLSTACK,
    KEY_CONNECT,
    KEY_JSON,
    KEY_USAGE,
};

static const struct argp_option common_options[] = {
    {NULL, 0, NULL, 0, "Options of all commands:", -3},
    {"json", KEY_JSON, NULL, 0, "Print JSON: results on standard output, errors on the other", -3},
    {"quiet", 'q', NULL, 0, "Say nothing of what went well", -3},
    {"yes", 'y', NULL, 0, "Answer yes to what would be asked", -3},
    {"database", KEY_DATABASE, "FILE", 0,
     "The registry (default: what the configuration says, or " STORE_DEFAULT_PATH ")", -3},
    {"config", KEY_CONFIG, "FILE", 0,
     "The mediator's configuration (default " ADMIN_DEFAULT_CONFIG ", if it is there)", -3},
    {"socket", KEY_SOCKET, "PATH", 0,
     "The mediator's control socket (default: control.sock in its run_dir)", -3},
    {"toolstack", KEY_TOOLSTACK, "NAME", 0,
     "libvirt, xapi or xl (default: which one is here), or none", -3},
    {"connect", KEY_CONNECT, "URI", 0, "libvirt's connection, e.g. qemu:///system", -3},
    {"help", '?', NULL, 0, "Print this and end", -2},
    {"usage", KEY_USAGE, NULL, 0, "Print a short summary and end", -2},
    {0},
};

static const struct argp_option main_options[] = {
    {"version", 'V', NULL, 0, "Print the version and end", -2},
    {0},
};

/* --- what went wrong --------------------------------------------------------------------- */

static int exit_of(const struct admin *admin, int code)
{
    if (admin->failed_exit)
        return admin->failed_exit;
    switch (code) {
    case EINVAL: /* of a value as such, or of what the database holds */
        return admin->opened ? ADMIN_FAILED : ADMIN_USAGE;
    case ENOENT:
        return ADMIN_NOT_FOUND;
    case EEXIST:
        return ADMIN_EXISTS;
    case EPROTO:
    case EBADMSG:
    case ENOSPC:
        return ADMIN_DATABASE;
    case ECONNREFUSED:
    case ENOTCONN:
        return ADMIN_NOT_RUNNING;
    case ECANCELED:
        return ADMIN_DECLINED;
    default:
        return ADMIN_FAILED;
    }
}

static const char *exit_name(int code)
{
    static const char *const names[] = {
        [ADMIN_OK] = "ok",
        [ADMIN_FAILED] = "failed",
        [ADMIN_USAGE] = "usage",
        [ADMIN_NOT_FOUND] = "not-found",
        [ADMIN_EXISTS] = "exists",
        [ADMIN_DATABASE] = "database",
        [ADMIN_NOT_RUNNING] = "not-running",
        [ADMIN_DECLINED] = "declined",
        [ADMIN_CHECKS_FAILED] = "checks-failed",
    };

    return names[code];
}

static void say_failure(const struct admin *admin, int code, const char *message)
{
    char shown[4 * VGPU_ERROR_BYTES + 512]; /* it may have bytes that are no UTF-8 */
    json_t *object;

    fflush(stdout);
    if (!admin->json) {
        fprintf(stderr, "vgpu-admin: %s\n", message);
        return;
    }
    text_copy_utf8(shown, sizeof(shown), message);
    object = json_pack("{s:{s:s, s:i, s:s}}", "error", "code", exit_name(code), "exit", code,
                       "message", shown);
    json_dumpf(object, stderr, 0);
    fputc('\n', stderr);
    json_decref(object);
}

int admin_fail(struct admin *admin, const struct vgpu_error *error)
{
    int code = exit_of(admin, error->code);

    say_failure(admin, code, error->message);
    return code;
}

int admin_decline(struct admin *admin)
{
    const struct vgpu_error error = {ECANCELED, "nothing was done, as the answer was no"};

    admin->failed_exit = 0;
    return admin_fail(admin, &error);
}

int admin_fail_applied(struct admin *admin, const struct vgpu_error *error)
{
    struct vgpu_error whole;

    error_fill(&whole, error->code,
               "the database is changed, but the mediator could not apply it: %.400s",
               error->message);
    admin->failed_exit = ADMIN_FAILED;
    return admin_fail(admin, &whole);
}

error_t admin_usage(struct admin *admin, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vsnprintf(admin->usage, sizeof(admin->usage), format, args);
    va_end(args);
    return EINVAL;
}

static int fail_usage(const struct admin *admin)
{
    char message[VGPU_ERROR_BYTES + 128];

    snprintf(message, sizeof(message), "%s (see vgpu-admin%s%s --help)", admin->usage,
             admin->command ? " " : "", admin->command ? admin->command->name : "");
    say_failure(admin, ADMIN_USAGE, message);
    return ADMIN_USAGE;
}

int admin_refuse(struct admin *admin, const char *message)
{
    admin_usage(admin, "%s", message);
    return fail_usage(admin);
}

/* --- options of all commands ---------------------------------------------------------------- */

static error_t take_value(struct admin *admin, const char **field, const char *value)
{
    if (!value[0])
        return admin_usage(admin, "an option has an empty value: expected a name or a path");
    *field = value;
    return 0;
}

static error_t parse_common(struct admin *admin, int key, char *value)
{
    switch (key) {
    case KEY_DATABASE:
        return take_value(admin, &admin->database, value);
    case KEY_SOCKET:
        return take_value(admin, &admin->socket, value);
    case KEY_CONFIG:
        return take_value(admin, &admin->config, value);
    case KEY_TOOLSTACK:
        return take_value(admin, &admin->toolstack, value);
    case KEY_CONNECT:
        return take_value(admin, &admin->uri, value);
    case KEY_JSON:
        admin->json = true;
        return 0;
    case 'y':
        admin->yes = true;
        return 0;
    case 'q':
        admin->quiet = true;
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

/* --- a command's words and options --------------------------------------------------------------
 */

struct parse {
    struct admin *admin;
    void *input;
    const struct argp *whole;
    bool own;
    char *name; /* "vgpu-admin set-pool" */
};

/* "VM POOL [NAME]": 2 needed, 3 at most. */
static void count_words(const char *arguments, unsigned *ret_needed, unsigned *ret_most)
{
    unsigned needed = 0, most = 0;

    for (const char *at = arguments ? arguments : ""; *at;) {
        size_t length = strcspn(at, " ");

        most++;
        needed += *at != '[';
        at += length;
        at += strspn(at, " ");
    }
    *ret_needed = needed;
    *ret_most = most;
}

static error_t too_few_words(struct admin *admin)
{
    unsigned count = admin->word_count;

    return admin_usage(admin, "%s needs %s: %u word%s came", admin->command->name,
                       admin->command->arguments, count, count == 1 ? "" : "s");
}

static error_t take_word(struct admin *admin, const char *word, unsigned at)
{
    unsigned needed, most;

    count_words(admin->command->arguments, &needed, &most);
    if (at >= most || at >= ADMIN_WORDS_MAX)
        return admin_usage(admin, "'%s' is one word too many: expected %s%s%s", word,
                           admin->command->name, most ? " " : "",
                           most ? admin->command->arguments : " and options alone");
    admin->words[at] = word;
    admin->word_count = at + 1;
    return 0;
}

static void say_help_and_end(const struct parse *parse, unsigned flags)
{
    argp_help(parse->whole, stdout, flags, parse->name);
    exit(fflush(stdout) == 0 ? ADMIN_OK : ADMIN_FAILED);
}

/* The root of a command's parsers has nothing itself: below it are the command's own
 * and the one of what all commands have. */
static error_t parse_root(int key, char *value, struct argp_state *state)
{
    struct parse *parse = state->input;

    (void)value;
    if (key != ARGP_KEY_INIT)
        return ARGP_ERR_UNKNOWN;
    state->child_inputs[0] = parse->own ? parse->input : parse;
    if (parse->own)
        state->child_inputs[1] = parse;
    return 0;
}

static error_t parse_words(int key, char *value, struct argp_state *state)
{
    struct parse *parse = state->input;
    unsigned needed, most;

    switch (key) {
    case '?':
        say_help_and_end(parse, ARGP_HELP_STD_HELP & ~(unsigned)ARGP_HELP_EXIT_OK);
        return 0;
    case KEY_USAGE:
        say_help_and_end(parse, ARGP_HELP_USAGE);
        return 0;
    case ARGP_KEY_ARG:
        return take_word(parse->admin, value, state->arg_num);
    case ARGP_KEY_END:
        count_words(parse->admin->command->arguments, &needed, &most);
        return parse->admin->word_count < needed ? too_few_words(parse->admin) : 0;
    default:
        return parse_common(parse->admin, key, value);
    }
}

static bool takes_value(const struct argp_option *options, const char *word)
{
    size_t length = strlen(word);

    for (; options && (options->name || options->key || options->doc); options++) {
        if (options->name && options->arg && length > 2 &&
            strncmp(options->name, word + 2, length - 2) == 0)
            return true;
    }
    return false;
}

/* argp says only where it stopped. */
static void explain_stop(struct admin *admin, const struct argp *own, const char *word)
{
    if (admin->usage[0])
        return;
    if (strncmp(word, "--", 2) == 0 && !strchr(word, '=') &&
        (takes_value(common_options, word) || (own && takes_value(own->options, word))))
        admin_usage(admin, "option '%s' needs a value", word);
    else
        admin_usage(admin, "option '%s' is unknown, not unique, or takes no value", word);
}

int admin_parse(struct admin *admin, const struct argp *argp, int argc, char **argv, void *input)
{
    struct argp words = {common_options, parse_words};
    struct argp own = argp ? *argp : (struct argp){0};
    const struct argp_child children[] = {
        {argp ? &own : &words, 0, NULL, 0}, {argp ? &words : NULL, 0, NULL, 0}, {0}};
    struct argp whole = {
        .parser = parse_root, .args_doc = admin->command->arguments, .children = children};
    struct parse parse = {admin, input, &whole, argp != NULL, argv[0]};
    char doc[2048];
    int next = argc;

    snprintf(doc, sizeof(doc), "%s.%s%s", admin->command->summary, own.doc ? "\v" : "",
             own.doc ? own.doc : "");
    whole.doc = doc;
    own.doc = own.args_doc = NULL;
    if (argp_parse(&whole, argc, argv, ARGP_NO_ERRS | ARGP_NO_HELP, &next, &parse) == 0)
        return 0;
    explain_stop(admin, argp, next > 0 && next <= argc ? argv[next - 1] : "");
    return fail_usage(admin);
}

/* --- the main program
 * ------------------------------------------------------------------------------ */

struct main_parse {
    struct admin *admin;
    int command_at; /* 0: none */
};

static void list_commands(void)
{
    static const char *const groups[] = {"VMs", "Pools", "Live", "Host", "Database"};

    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(groups); i++) {
        bool some = false;

        for (const struct admin_command *at = admin_commands; at->name; at++) {
            char usage[64];

            if (!at->run || !at->group || strcmp(at->group, groups[i]) != 0)
                continue;
            if (!some)
                printf("\n%s:\n", groups[i]);
            some = true;
            snprintf(usage, sizeof(usage), "%s %s", at->name, at->arguments ? at->arguments : "");
            printf("  %-28s %s\n", usage, at->summary);
        }
    }
    printf("\nVM is a number, a UUID or a name; POOL is a letter or a name.\n"
           "vgpu-admin COMMAND --help tells more.\n\n");
}

static error_t parse_main(int key, char *value, struct argp_state *state);
static const struct argp main_common_argp = {common_options, parse_main};
static const struct argp_child main_children[] = {{&main_common_argp, 0, NULL, 0}, {0}};
static const struct argp main_argp = {main_options, parse_main, "COMMAND [ARGUMENT...]", NULL,
                                      main_children};

static void say_main_help_and_end(int key)
{
    static char name[] = "vgpu-admin";

    if (key == 'V') {
        puts("vgpu-admin " VGPU_PACKAGE_VERSION);
    } else if (key == KEY_USAGE) {
        argp_help(&main_argp, stdout, ARGP_HELP_USAGE, name);
    } else {
        puts("Usage: vgpu-admin [OPTION...] COMMAND [ARGUMENT...]\n"
             "Decides which VM belongs to which pool, with which priority and limits.");
        list_commands();
        argp_help(&main_argp, stdout, ARGP_HELP_LONG, name);
    }
    exit(fflush(stdout) == 0 ? ADMIN_OK : ADMIN_FAILED);
}

static error_t parse_main(int key, char *value, struct argp_state *state)
{
    struct main_parse *parse = state->input;

    switch (key) {
    case ARGP_KEY_INIT:
        if (state->root_argp->children && state->child_inputs)
            state->child_inputs[0] = parse;
        return 0;
    case 'V':
    case '?':
    case KEY_USAGE:
        say_main_help_and_end(key);
        return 0;
    case ARGP_KEY_ARG:
        parse->command_at = state->next - 1;
        state->next = state->argc; /* the rest is the command's */
        return 0;
    default:
        return parse_common(parse->admin, key, value);
    }
}

/* A usage error may come before --json was reached. */
static bool wants_json(int argc, char **argv)
{
    for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++) {
        if (strcmp(argv[i], "--json") == 0)
            return true;
    }
    return false;
}

static const struct admin_command *find_command(const char *name)
{
    for (const struct admin_command *at = admin_commands; at->name; at++) {
        if (at->run && strcmp(at->name, name) == 0)
            return at;
    }
    return NULL;
}

static int run_command(struct admin *admin, int argc, char **argv)
{
    char name[64];
    int result;

    snprintf(name, sizeof(name), "vgpu-admin %s", admin->command->name);
    argv[0] = name;
    result = admin->command->run(admin, argc, argv);
    if (fflush(stdout) != 0 || ferror(stdout)) {
        fprintf(stderr, "vgpu-admin: cannot write the result: %s\n", strerror(errno));
        return result ? result : ADMIN_FAILED;
    }
    return result;
}

int main(int argc, char **argv)
{
    struct admin admin = {.json = wants_json(argc, argv)};
    struct main_parse parse = {.admin = &admin};
    int next = argc;

    signal(SIGXFSZ, SIG_IGN); /* a file that may not grow is told as a full disk is */
    if (argp_parse(&main_argp, argc, argv, ARGP_NO_ERRS | ARGP_NO_HELP | ARGP_IN_ORDER, &next,
                   &parse) != 0) {
        explain_stop(&admin, NULL, next > 0 && next <= argc ? argv[next - 1] : "");
        return fail_usage(&admin);
    }
    if (!parse.command_at) {
        admin_usage(&admin, "which command?");
        return fail_usage(&admin);
    }
    admin.command = find_command(argv[parse.command_at]);
    if (!admin.command) {
        admin_usage(&admin, "there is no command '%s'", argv[parse.command_at]);
        return fail_usage(&admin);
    }
    return run_command(&admin, argc - parse.command_at, argv + parse.command_at);
}
