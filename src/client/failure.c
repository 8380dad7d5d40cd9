/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Failures: each has a code with a stable name and an exit status, a text that
 * says what was looked for and where, and a remedy.
 */
#include "client.h"

#include <stdarg.h>

static const struct {
    const char *name;
    enum client_exit exit_code;
} failure_table[FAILURE_COUNT] = {
    [FAILURE_NONE] = {"none", CLIENT_EXIT_SUCCESS},
    [FAILURE_ERROR_ANSWER] = {"error-answer", CLIENT_EXIT_ANSWER},
    [FAILURE_BAD_ANSWER] = {"bad-answer", CLIENT_EXIT_ANSWER},
    [FAILURE_USAGE] = {"usage", CLIENT_EXIT_USAGE},
    [FAILURE_SEVERAL_DEVICES] = {"several-devices", CLIENT_EXIT_USAGE},
    [FAILURE_NO_DEVICE] = {"no-device", CLIENT_EXIT_DEVICE},
    [FAILURE_DEVICE_ACCESS] = {"device-access", CLIENT_EXIT_DEVICE},
    [FAILURE_DEVICE_VALUES] = {"device-values", CLIENT_EXIT_DEVICE},
    [FAILURE_SHARE_MISSING] = {"share-missing", CLIENT_EXIT_SHARE},
    [FAILURE_SHARE_DENIED] = {"share-denied", CLIENT_EXIT_SHARE},
    [FAILURE_SHARE_BROKEN] = {"share-broken", CLIENT_EXIT_SHARE},
    [FAILURE_TIMEOUT_BUSY] = {"timeout-busy", CLIENT_EXIT_TIMEOUT},
    [FAILURE_TIMEOUT_SHARE] = {"timeout-share", CLIENT_EXIT_TIMEOUT},
    [FAILURE_TIMEOUT_NOT_TAKEN] = {"timeout-not-taken", CLIENT_EXIT_TIMEOUT},
    [FAILURE_TIMEOUT_NO_ANSWER] = {"timeout-no-answer", CLIENT_EXIT_TIMEOUT},
    [FAILURE_WINDOW_MISSING] = {"window-missing", CLIENT_EXIT_DEVICE},
    [FAILURE_WINDOW_DENIED] = {"window-denied", CLIENT_EXIT_DEVICE},
    [FAILURE_WINDOW_BUSY] = {"window-busy", CLIENT_EXIT_DEVICE},
    [FAILURE_WINDOW_HOST] = {"window-no-host", CLIENT_EXIT_DEVICE},
    [FAILURE_WINDOW_ENDED] = {"window-ended", CLIENT_EXIT_DEVICE},
    [FAILURE_WINDOW_STATUS] = {"window-status", CLIENT_EXIT_ANSWER},
    [FAILURE_INTERRUPTED] = {"interrupted", 128},
    [FAILURE_SYSTEM] = {"system", CLIENT_EXIT_SYSTEM},
};

int failure_set(struct failure *failure, enum failure_code code, const char *format, ...)
{
    va_list args;

    failure->code = code;
    failure->exit_code = failure_table[code].exit_code;
    failure->remedy[0] = '\0';
    va_start(args, format);
    vsnprintf(failure->text, sizeof(failure->text), format, args);
    va_end(args);
    return -1;
}

int failure_remedy(struct failure *failure, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vsnprintf(failure->remedy, sizeof(failure->remedy), format, args);
    va_end(args);
    return -1;
}

const char *failure_name(enum failure_code code)
{
    return code < FAILURE_COUNT ? failure_table[code].name : "unknown";
}

enum client_exit failure_exit(enum failure_code code)
{
    return code < FAILURE_COUNT ? failure_table[code].exit_code : CLIENT_EXIT_SYSTEM;
}
