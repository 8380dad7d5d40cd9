/* SPDX-License-Identifier: Apache-2.0 */
/* vgpu-mediator: options and nothing else. */
#include "gpu/gpu.h"
#include "mediator/mediator.h"

#include <argp.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#ifdef VGPU_FAULT_POINTS
#define BUILD_NOTE "\nThis build has fault points: it is for tests only."
#else
#define BUILD_NOTE ""
#endif

const char *argp_program_version = "vgpu-mediator " VGPU_PACKAGE_VERSION BUILD_NOTE;

#define DEFAULT_CONFIG "/etc/vgpu/mediator.conf"

enum option_key {
    OPTION_CHECK_CONFIG = 256,
    OPTION_CHECK_GPU,
    OPTION_CLEANUP,
    OPTION_TEST_MODE,
    OPTION_HOLD_UNTIL,
    OPTION_PREFER_VM,
    OPTION_LOG_FORMAT,
    OPTION_LOG_LEVEL,
    OPTION_POOLS,
    OPTION_STATE_DIR,
};

static const struct argp_option option_table[] = {
    {"config", 'c', "FILE", 0, "Read FILE (default " DEFAULT_CONFIG ", if it is there)", 1},
    {"check-config", OPTION_CHECK_CONFIG, NULL, 0, "Check the configuration and leave", 1},
    {"check-gpu", OPTION_CHECK_GPU, "GPU", OPTION_ARG_OPTIONAL,
     "Check that a GPU computes (index, UUID or PCI address; default: the first) and leave", 1},
    {"share", 's', "DIR", 0, "Directory of the VMs' directories (default /var/vgpu)", 2},
    {"state-dir", OPTION_STATE_DIR, "DIR", 0, "Journals, outside the share (default /var/lib/vgpu)",
     2},
    {"pools", OPTION_POOLS, "MODE", 0,
     "Pools on one device: 'shared' (one queue, default) or 'independent' (in turn)", 2},
    {"log", 'l', "FILE", 0, "Append the log to FILE (default: standard error)", 3},
    {"log-format", OPTION_LOG_FORMAT, "FORMAT", 0, "'text' (default) or 'json', one object a line",
     3},
    {"log-level", OPTION_LOG_LEVEL, "LEVEL", 0, "'error', 'warning', 'info' (default), 'debug'", 3},
    {"cleanup", OPTION_CLEANUP, NULL, 0,
     "When stopped, answer waiting requests with an error and empty all files", 4},
    {"test-mode", OPTION_TEST_MODE, NULL, 0,
     "Hold requests until two VMs wait, then ask on the terminal in which order they go", 5},
    {"hold-until", OPTION_HOLD_UNTIL, "N", 0, "Hold requests until N VMs wait; asks nothing", 5},
    {"prefer-vm", OPTION_PREFER_VM, "ID", 0, "With --hold-until: VM that wins ties", 5},
    {0},
};

/* An option that stands for a key of the configuration file. */
struct override {
    const char *key;
    const char *value;
};

struct arguments {
    const char *config_path;
    bool config_given, check_config, check_gpu;
    const char *gpu; /* NULL: the first */
    struct mediator_options options;
    struct override overrides[8]; /* one an option at most */
    size_t override_count;
};

static void override(struct arguments *arguments, struct argp_state *state, const char *key,
                     const char *value)
{
    if (arguments->override_count == VGPU_ARRAY_LENGTH(arguments->overrides))
        argp_error(state, "too many options: each may be given once");
    arguments->overrides[arguments->override_count++] = (struct override){key, value};
}

/* Paths on the command line may be relative; the daemon's may not. */
static void override_path(struct arguments *arguments, struct argp_state *state, const char *key,
                          const char *value)
{
    char *directory, *path = NULL;

    if (value[0] == '/') {
        override(arguments, state, key, value);
        return;
    }
    directory = get_current_dir_name();
    if (!directory || asprintf(&path, "%s/%s", directory, value) < 0)
        argp_failure(state, EXIT_FAILURE, errno, "cannot tell the current directory");
    free(directory);
    override(arguments, state, key, path); /* lives as long as the process */
}

static uint32_t number_argument(struct argp_state *state, const char *option, const char *text,
                                uint64_t min)
{
    uint64_t number = 0;

    if (!text_parse_u64(text, min, UINT32_MAX, &number))
        argp_error(state, "%s %s: expected a whole number from %llu", option, text,
                   (unsigned long long)min);
    return (uint32_t)number;
}

/* "--check-gpu=1" and "--check-gpu 1"; NULL: none is named. */
static void set_gpu(struct arguments *arguments, struct argp_state *state, const char *selector)
{
    struct vgpu_error error;

    if (gpu_check_selector(selector, &error) < 0)
        argp_error(state, "--check-gpu: %s", error.message);
    arguments->gpu = selector;
}

static error_t parse_option(int key, char *value, struct argp_state *state)
{
    struct arguments *arguments = state->input;

    switch (key) {
    case 'c':
        arguments->config_path = value;
        arguments->config_given = true;
        return 0;
    case 's':
        override_path(arguments, state, "share", value);
        return 0;
    case OPTION_STATE_DIR:
        override_path(arguments, state, "state_dir", value);
        return 0;
    case 'l':
        override_path(arguments, state, "log", value);
        return 0;
    case OPTION_LOG_FORMAT:
        override(arguments, state, "log_format", value);
        return 0;
    case OPTION_LOG_LEVEL:
        override(arguments, state, "log_level", value);
        return 0;
    case OPTION_POOLS:
        override(arguments, state, "pools", value);
        return 0;
    case OPTION_CHECK_CONFIG:
        arguments->check_config = true;
        return 0;
    case OPTION_CHECK_GPU:
        arguments->check_gpu = true;
        set_gpu(arguments, state, value);
        return 0;
    case OPTION_CLEANUP:
        arguments->options.cleanup = true;
        return 0;
    case OPTION_TEST_MODE:
        arguments->options.test_mode = true;
        return 0;
    case OPTION_HOLD_UNTIL:
        arguments->options.hold_until = number_argument(state, "--hold-until", value, 1);
        return 0;
    case OPTION_PREFER_VM:
        arguments->options.prefer_vm = number_argument(state, "--prefer-vm", value, 1);
        return 0;
    case ARGP_KEY_ARG:
        if (arguments->check_gpu && !arguments->gpu) {
            set_gpu(arguments, state, value);
            return 0;
        }
        argp_error(state, "unexpected argument '%s': this program takes only options", value);
        return 0;
    case ARGP_KEY_END:
        if (arguments->options.prefer_vm && !arguments->options.hold_until)
            argp_error(state, "--prefer-vm needs --hold-until N");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const struct argp argp = {
    .options = option_table,
    .parser = parse_option,
    .doc = "Queues the GPU requests of virtual machines by pool and priority, runs each in its "
           "VM's own worker process, and answers."
           "\vSIGINT and SIGTERM: running work is answered, waiting requests are kept for the next "
           "start.  SIGHUP: the log file is opened again, pools and priorities of the "
           "configuration are read again.  See vgpu-mediator(8), "
           "vgpu-mediator.conf(5)."};

static int load_config(struct config *config, const void *context, struct vgpu_error *error)
{
    const struct arguments *arguments = context;
    struct stat info;

    config_init(config);
    if ((arguments->config_given || stat(arguments->config_path, &info) == 0) &&
        config_read(config, arguments->config_path, error) < 0)
        return -1;
    for (size_t i = 0; i < arguments->override_count; i++) {
        const struct override *override = &arguments->overrides[i];

        if (config_set(config, override->key, override->value, error) < 0)
            return -1;
    }
    return config_complete(config, error);
}

static int fail(const struct vgpu_error *error)
{
    fprintf(stderr, "vgpu-mediator: %s\n", error->message);
    return EXIT_FAILURE;
}

/* One JSON line where the log would have them, else a sentence for people. */
static int tell_gpu(const struct gpu_gate_report *report, enum log_format format)
{
    int result = report->ok ? EXIT_SUCCESS : EXIT_FAILURE;
    char text[2 * VGPU_ERROR_BYTES], *line;

    if (format == LOG_FORMAT_JSON) {
        line = gpu_gate_print(report);
        puts(line ? line : "");
        free(line);
        return result;
    }
    gpu_gate_describe(report, text, sizeof(text));
    if (report->ok)
        puts(text);
    else
        fprintf(stderr, "vgpu-mediator: %s\nwhat to do: %s\n", text, report->remedy);
    return result;
}

/* As a worker would use it: what only root may do is no answer. */
static int check_gpu(const struct config *config, const char *selector)
{
    struct gpu_gate_config gate = {
        .cuda_library = config->cuda_library[0] ? config->cuda_library : NULL,
        .selector = selector,
        .deadline_ms = config->gpu_check_ms,
    };
    struct gpu_gate_report report;
    struct vgpu_error error;
    char user[32];
    uid_t uid;
    gid_t gid;

    if (config_worker_user(config, &uid, &gid, &error) < 0)
        return fail(&error);
    if (uid != (uid_t)-1) {
        snprintf(user, sizeof(user), "%u:%u", (unsigned)uid, (unsigned)gid);
        gate.user = user;
    }
    gpu_gate(&gate, &report);
    return tell_gpu(&report, config->log_format);
}

int main(int argc, char **argv)
{
    struct arguments arguments = {.config_path = DEFAULT_CONFIG, .options = {.load = load_config}};
    struct config config;
    struct vgpu_error error;
    int result = EXIT_SUCCESS;

    argp_err_exit_status = 2;
    argp_parse(&argp, argc, argv, 0, NULL, &arguments);
    arguments.options.load_context = &arguments;
    umask(0022); /* every file is made with a mode of its own */
    if (load_config(&config, &arguments, &error) < 0) {
        config_free(&config);
        return fail(&error);
    }
    if (arguments.check_gpu) {
        result = check_gpu(&config, arguments.gpu);
    } else if (arguments.check_config) {
        printf("configuration is right: %zu pools, %zu VMs\n", config.pool_count, config.vm_count);
    } else if (log_open(config.log[0] ? config.log : NULL, config.log_format, config.log_level,
                        &error) < 0 ||
               mediator_run(&config, &arguments.options, &error) < 0) {
        log_error("%s", error.message);
        if (config.log[0])
            fail(&error);
        result = EXIT_FAILURE;
    }
    log_close();
    config_free(&config);
    return result;
}
