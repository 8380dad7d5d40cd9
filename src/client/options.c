/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The command line.  argp stays silent about errors, so that a usage error can
 * be told like every other failure: in plain words, or as JSON.
 *
 * Words after the options are the command, joined by single spaces; a word
 * like -3 after the first is a number, not an option.
 */
#include "client.h"

#include <argp.h>
#include <ctype.h>
#include <stdlib.h>
#include <string.h>

enum {
    KEY_SHARE = 0x100,
    KEY_DIRECTORY,
    KEY_JSON,
    KEY_IN_PLACE,
    KEY_DEVICE,
    KEY_POOL,
    KEY_PRIORITY,
    KEY_VM_ID,
    KEY_SYSFS,
    KEY_USAGE,
    KEY_CHANNEL,
    KEY_SOCKET,
    KEY_SECONDS,
    KEY_MODE,
    KEY_DEPTH,
};

static const struct argp_option option_table[] = {
    {"channel", KEY_CHANNEL, "NAME", 0,
     "auto (default): the window if it opens, else files; window; file", 1},
    {"socket", KEY_SOCKET, "PATH", 0,
     "On the host: this VM's socket (default: the value of VGPU_SOCKET, if it is set)", 1},
    {"share", KEY_SHARE, "DIR", 0,
     "The mounted share; requests go to DIR/vm<id>/ "
     "(default " VGPU_FILE_GUEST_SHARE ")",
     1},
    {"dir", KEY_DIRECTORY, "DIR", 0, "This VM's own directory, instead of --share", 1},
    {"timeout", 't', "SECONDS", 0, "Give up after so long, e.g. 0.5 (default 30; doctor 5)", 1},
    {"in-place", KEY_IN_PLACE, NULL, 0,
     "Write the request in place, not as a temporary file that is renamed", 1},
    {"json", KEY_JSON, NULL, 0, "Print one JSON object", 2},
    {"quiet", 'q', NULL, 0, "Print the answer's text only", 2},
    {"verbose", 'v', NULL, 0, "Tell each step on standard error", 2},
    {"device", KEY_DEVICE, "ADDRESS", 0, "Use this PCI device, e.g. 0000:00:04.0", 3},
    {"pool", KEY_POOL, "LETTER", 0, "Claim this pool, not the device's", 3},
    {"priority", KEY_PRIORITY, "N", 0, "Claim this priority: 0..2, low, medium or high", 3},
    {"vm-id", KEY_VM_ID, "ID", 0,
     "Claim this VM id; with --pool and --priority no device is needed", 3},
    {"sysfs", KEY_SYSFS, "DIR", OPTION_HIDDEN, "Look for devices here instead of /sys", 3},
    {"seconds", KEY_SECONDS, "N", 0, "bench: measure each for so long (default 1)", 4},
    {"mode", KEY_MODE, "NAME", 0,
     "bench: poll, sleep, wake, batch, copy, memcpy, idle, file or all (default all)", 4},
    {"depth", KEY_DEPTH, "N", 0, "bench: operations in a batch, 1 to 512 (default 256)", 4},
    {"help", '?', NULL, 0, "Print this and end", -1},
    {"usage", KEY_USAGE, NULL, 0, "Print a short summary and end", -1},
    {"version", 'V', NULL, 0, "Print the version and end", -1},
    {0},
};

static const char option_text[] =
    "Sends a command to the GPU's host and waits for the answer.\v"
    "COMMAND is VECTOR_ADD (the default), MATRIX_MUL N, GPU_INFO, PING, or any other that the "
    "mediator knows; two numbers (`3 4` or `3:4`) are added.  `info` shows the device, `doctor` "
    "checks device, window, share and mediator and says what to do, `bench` measures.\n\n"
    "Exit status: 0 success, 1 the answer is an error, 2 usage, 3 no device or window, 4 share "
    "missing or not writable, 5 timeout.";

struct parse {
    struct options *options;
    struct failure *failure;
    unsigned words;
    size_t length; /* of the command so far */
    const char *first_word;
    bool all_numbers;
    bool failed;
};

static error_t refuse(struct parse *parse, const char *what, const char *value,
                      const char *expected)
{
    char shown[256];

    text_show(shown, sizeof(shown), value, strlen(value));
    failure_set(parse->failure, FAILURE_USAGE, "%s '%s': expected %s", what, shown, expected);
    parse->failed = true;
    return EINVAL;
}

static bool is_number(const char *word)
{
    bool digit = false;

    word += *word == '-' || *word == '+';
    for (; *word; word++) {
        digit |= isdigit((unsigned char)*word) != 0;
        if (!isdigit((unsigned char)*word) && !strchr(".eE+-", *word))
            return false;
    }
    return digit;
}

static error_t add_word(struct parse *parse, const char *word)
{
    size_t bytes = strlen(word);
    struct options *options = parse->options;

    for (const char *at = word; *at; at++) {
        if ((unsigned char)*at < 0x20 || (unsigned char)*at >= 0x7f)
            return refuse(parse, "command", word, "printable ASCII only, nothing was sent");
    }
    if (parse->length + (parse->words > 0) + bytes > VGPU_COMMAND_MAX_BYTES)
        return refuse(parse, "command", word, "at most 255 bytes in all, nothing was sent");
    if (parse->words == 0) {
        parse->first_word = word;
        parse->all_numbers = true;
    } else {
        options->command[parse->length++] = ' ';
    }
    memcpy(options->command + parse->length, word, bytes + 1);
    parse->length += bytes;
    parse->words++;
    parse->all_numbers &= is_number(word);
    return 0;
}

static error_t take_words(struct parse *parse, char *word, struct argp_state *state)
{
    error_t error = add_word(parse, word);

    while (!error && state->next < state->argc && state->argv[state->next][0] == '-' &&
           is_number(state->argv[state->next]))
        error = add_word(parse, state->argv[state->next++]);
    return error;
}

static error_t finish(struct parse *parse)
{
    struct options *options = parse->options;

    if (parse->words == 0) {
        strcpy(options->command, "VECTOR_ADD");
        return 0;
    }
    if (parse->length == 0)
        return refuse(parse, "command", "", "a command, e.g. VECTOR_ADD");
    if (strcmp(parse->first_word, "info") == 0)
        options->action = ACTION_INFO;
    else if (strcmp(parse->first_word, "doctor") == 0)
        options->action = ACTION_DOCTOR;
    else if (strcmp(parse->first_word, "bench") == 0)
        options->action = ACTION_BENCH;
    if (options->action != ACTION_REQUEST && parse->words > 1)
        return refuse(parse, "command", options->command,
                      "no argument after info, doctor or bench");
    if (parse->words == 2 && parse->all_numbers)
        *strchr(options->command, ' ') = ':';
    return 0;
}

static error_t parse_identity(struct parse *parse, int key, char *value)
{
    struct options *options = parse->options;
    unsigned priority;

    switch (key) {
    case KEY_POOL:
        if (value[0] < 'A' || value[0] > 'Z' || value[1])
            return refuse(parse, "--pool", value, "one letter A to Z");
        options->pool = value[0];
        return 0;
    case KEY_PRIORITY:
        if (!text_parse_priority(value, &priority))
            return refuse(parse, "--priority", value, "0, 1, 2, low, medium or high");
        options->priority = (int)priority;
        return 0;
    case KEY_VM_ID:
        if (!text_parse_u32(value, 1, UINT32_MAX, &options->vm_id))
            return refuse(parse, "--vm-id", value, "a number from 1 to 4294967295");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static error_t parse_channel(struct parse *parse, const char *value)
{
    static const char *const names[] = {"auto", "window", "file"};

    for (unsigned i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        if (strcmp(value, names[i]) == 0) {
            parse->options->channel = (enum client_channel)i;
            return 0;
        }
    }
    return refuse(parse, "--channel", value, "auto, window or file");
}

static error_t parse_bench(struct parse *parse, int key, char *value)
{
    struct options *options = parse->options;

    switch (key) {
    case KEY_SECONDS:
        if (!text_parse_seconds(value, &options->bench_ns))
            return refuse(parse, "--seconds", value, "seconds from 0.001 to 86400");
        return 0;
    case KEY_MODE:
        if (!bench_knows(value))
            return refuse(parse, "--mode", value,
                          "poll, sleep, wake, batch, copy, memcpy, idle, file or all");
        options->bench_mode = value;
        return 0;
    default:
        if (!text_parse_u32(value, 1, 512, &options->bench_depth))
            return refuse(parse, "--depth", value, "a number from 1 to 512");
        return 0;
    }
}

static error_t parse_place(struct parse *parse, int key, char *value)
{
    struct options *options = parse->options;

    if (!*value)
        return refuse(parse, "value of an option", value, "a name, it is empty");
    switch (key) {
    case KEY_SHARE:
        options->share = value;
        options->share_given = true;
        return 0;
    case KEY_SOCKET:
        options->socket = value;
        return 0;
    case KEY_DIRECTORY:
        options->directory = value;
        return 0;
    case KEY_DEVICE:
        options->device = value;
        return 0;
    default:
        options->sysfs = value;
        return 0;
    }
}

static error_t parse_option(int key, char *value, struct argp_state *state);

static const struct argp client_argp = {option_table, parse_option, "[COMMAND [ARGUMENT...]]",
                                        option_text};

/* argp's own --help is silent when its errors are, so this is ours. */
static error_t say_and_end(int key)
{
    static char name[] = "vgpu-client";

    if (key == 'V')
        puts("vgpu-client " VGPU_PACKAGE_VERSION);
    else
        argp_help(&client_argp, stdout,
                  key == KEY_USAGE ? ARGP_HELP_USAGE : ARGP_HELP_STD_HELP & ~ARGP_HELP_EXIT_OK,
                  name);
    exit(fflush(stdout) == 0 ? CLIENT_EXIT_SUCCESS : CLIENT_EXIT_SYSTEM);
}

static error_t parse_option(int key, char *value, struct argp_state *state)
{
    struct parse *parse = state->input;
    struct options *options = parse->options;

    switch (key) {
    case KEY_SHARE:
    case KEY_DIRECTORY:
    case KEY_DEVICE:
    case KEY_SYSFS:
    case KEY_SOCKET:
        return parse_place(parse, key, value);
    case KEY_CHANNEL:
        return parse_channel(parse, value);
    case KEY_SECONDS:
    case KEY_MODE:
    case KEY_DEPTH:
        return parse_bench(parse, key, value);
    case 't':
        if (!text_parse_seconds(value, &options->timeout_ns))
            return refuse(parse, "--timeout", value, "seconds from 0.001 to 86400");
        options->timeout_given = true;
        return 0;
    case KEY_JSON:
        options->json = true;
        return 0;
    case KEY_IN_PLACE:
        options->in_place = true;
        return 0;
    case 'q':
        options->quiet = true;
        return 0;
    case '?':
    case 'V':
    case KEY_USAGE:
        return say_and_end(key);
    case 'v':
        options->verbose = true;
        return 0;
    case ARGP_KEY_ARG:
        return take_words(parse, value, state);
    case ARGP_KEY_END:
        return finish(parse);
    default:
        return parse_identity(parse, key, value);
    }
}

/* A socket that the environment names is meant, unless files are. */
static void take_environment(struct options *options)
{
    const char *path = getenv("VGPU_SOCKET");

    if (options->socket || !path || !path[0] || options->channel == CHANNEL_FILE ||
        window_file_option(options))
        return;
    options->socket = path;
    options->socket_is_environment = true;
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

int options_parse(int argc, char **argv, struct options *ret_options, struct failure *failure)
{
    struct parse parse = {.options = ret_options, .failure = failure};
    int next = argc;

    *ret_options = (struct options){
        .share = VGPU_FILE_GUEST_SHARE,
        .sysfs = "/sys",
        .timeout_ns = 30 * CLIENT_NS_PER_S,
        .json = wants_json(argc, argv),
        .priority = -1,
        .spin_us = -1,
        .bench_ns = CLIENT_NS_PER_S,
        .bench_depth = 256,
    };
    if (argp_parse(&client_argp, argc, argv, ARGP_NO_ERRS | ARGP_NO_HELP | ARGP_IN_ORDER, &next,
                   &parse) == 0) {
        take_environment(ret_options);
        return 0;
    }
    if (!parse.failed) {
        const char *last = next > 1 && next <= argc ? argv[next - 1] : "";

        refuse(&parse, "argument", last, "a known option with its value, or a command");
    }
    return failure_remedy(failure, "see `vgpu-client --help` or `man vgpu-client`");
}
