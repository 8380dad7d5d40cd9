/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a command means.  A table of names, each with the function that reads
 * its arguments; the two forms without a name (`1`, `2` and `num1:num2`) are
 * told apart by their first character: no name starts with a digit, a sign or
 * a point.
 */
#include "protocol/private.h"

#include <errno.h>
#include <locale.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MATRIX_DEFAULT 64u
#define REDUCE_DEFAULT (1u << 20)
#define WORD_MAX 3 /* more arguments than any command has */

static const char command_list[] = "VECTOR_ADD [a b], MATRIX_MUL [n], REDUCE [n], GPU_INFO, PING "
                                   "[text], SPIN ms, TEST_*, 1, 2 or num1:num2";

struct word {
    const char *at;
    size_t bytes;
};

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

const char *protocol_command_list(void)
{
    return command_list;
}

static const char *skip_blanks(const char *text)
{
    return text + strspn(text, " ");
}

static struct word word_read(const char *text)
{
    return (struct word){text, strcspn(text, " ")};
}

/* Fills up to WORD_MAX words; returns how many there are, at most that. */
static size_t words_split(const char *text, struct word words[WORD_MAX])
{
    size_t count = 0;

    for (text = skip_blanks(text); *text && count < WORD_MAX; text = skip_blanks(text)) {
        words[count] = word_read(text);
        text += words[count++].bytes;
    }
    return count;
}

/* [+-] digits [. digits] [e [+-] digits], with digits before or after the
 * point: no blanks, no hexadecimal, no inf, no nan. */
static bool number_is_decimal(const char *at, size_t bytes)
{
    const char *end = at + bytes;
    size_t digits = 0;

    if (at < end && (*at == '+' || *at == '-'))
        at++;
    for (; at < end && is_digit(*at); at++)
        digits++;
    if (at < end && *at == '.')
        for (at++; at < end && is_digit(*at); at++)
            digits++;
    if (digits == 0)
        return false;
    if (at == end)
        return true;
    if (*at != 'e' && *at != 'E')
        return false;
    at++;
    if (at < end && (*at == '+' || *at == '-'))
        at++;
    if (at == end)
        return false;
    while (at < end && is_digit(*at))
        at++;
    return at == end;
}

/* strtod() of the C locale: elsewhere the decimal point may be a comma. */
static int number_convert(const char *text, double *ret_number, struct vgpu_error *error)
{
    locale_t c_locale = newlocale(LC_ALL_MASK, "C", (locale_t)0);

    if (c_locale == (locale_t)0)
        return error_set_errno(error, "cannot read a number without the C locale");
    *ret_number = strtod_l(text, NULL, c_locale);
    freelocale(c_locale);
    return 0;
}

static int number_read(const char *at, size_t bytes, double *ret_number, struct vgpu_error *error)
{
    char text[VGPU_COMMAND_MAX_BYTES + 1];
    char quote[PROTOCOL_QUOTE_BYTES];
    double number;

    if (bytes >= sizeof(text) || !number_is_decimal(at, bytes))
        return error_set(error, EINVAL, "'%s' is not a decimal number such as 3, -0.5 or 2e6",
                         protocol_quote(quote, at, bytes));
    memcpy(text, at, bytes);
    text[bytes] = '\0';
    if (number_convert(text, &number, error) < 0)
        return -1;
    if (!isfinite(number))
        return error_set(error, ERANGE, "number '%s' is too large: at most 1.79e308 is allowed",
                         protocol_quote(quote, at, bytes));
    *ret_number = number;
    return 0;
}

/* A whole number min..max that is the only argument. */
static int whole_read(const char *name, const char *what, const char *arguments, uint32_t min,
                      uint32_t max, uint32_t *ret_value, struct vgpu_error *error)
{
    struct word words[WORD_MAX];
    char digits[16] = "";
    char quote[PROTOCOL_QUOTE_BYTES];
    uint64_t value;

    if (words_split(arguments, words) == 1 && words[0].bytes < sizeof(digits))
        memcpy(digits, words[0].at, words[0].bytes);
    if (!text_parse_u64(digits, min, max, &value))
        return error_set(error, EINVAL, "%s '%s': expected %s, a whole number of %u to %u", name,
                         protocol_quote(quote, arguments, strlen(arguments)), what, min, max);
    *ret_value = (uint32_t)value;
    return 0;
}

/* --- one function a command: `arguments` is what follows its name ----------- */

static int read_vector_add(const char *arguments, struct protocol_command *command,
                           struct vgpu_error *error)
{
    struct word words[WORD_MAX];
    char quote[PROTOCOL_QUOTE_BYTES];
    size_t count = words_split(arguments, words);

    if (count == 0)
        return 0;
    if (count != 2)
        return error_set(error, EINVAL,
                         "VECTOR_ADD '%s': expected two numbers, e.g. VECTOR_ADD 3 4, or none",
                         protocol_quote(quote, arguments, strlen(arguments)));
    for (size_t i = 0; i < 2; i++) {
        if (number_read(words[i].at, words[i].bytes, &command->numbers[i], error) < 0)
            return -1;
    }
    command->has_numbers = true;
    return 0;
}

static int read_matrix_mul(const char *arguments, struct protocol_command *command,
                           struct vgpu_error *error)
{
    command->size = MATRIX_DEFAULT;
    if (*arguments == '\0')
        return 0;
    return whole_read("MATRIX_MUL", "the matrix's rows", arguments, 1, PROTOCOL_MATRIX_MAX,
                      &command->size, error);
}

static int read_nothing(const char *arguments, struct protocol_command *command,
                        struct vgpu_error *error)
{
    char quote[PROTOCOL_QUOTE_BYTES];

    (void)command;
    if (*arguments)
        return error_set(error, EINVAL, "'%s' is too much: this command takes no arguments",
                         protocol_quote(quote, arguments, strlen(arguments)));
    return 0;
}

static int read_ping(const char *arguments, struct protocol_command *command,
                     struct vgpu_error *error)
{
    (void)error;
    command->text = arguments;
    return 0;
}

static int read_reduce(const char *arguments, struct protocol_command *command,
                       struct vgpu_error *error)
{
    command->size = REDUCE_DEFAULT;
    if (*arguments == '\0')
        return 0;
    return whole_read("REDUCE", "the vector's elements", arguments, 1, PROTOCOL_REDUCE_MAX,
                      &command->size, error);
}

static int read_spin(const char *arguments, struct protocol_command *command,
                     struct vgpu_error *error)
{
    return whole_read("SPIN", "milliseconds", arguments, 0, PROTOCOL_SPIN_MAX_MS, &command->size,
                      error);
}

static const struct {
    const char *name;
    enum protocol_operation operation;
    int (*read)(const char *arguments, struct protocol_command *command, struct vgpu_error *error);
} commands[] = {
    {"VECTOR_ADD", OPERATION_VECTOR_ADD, read_vector_add},
    {"MATRIX_MUL", OPERATION_MATRIX_MUL, read_matrix_mul},
    {"REDUCE", OPERATION_REDUCE, read_reduce},
    {"GPU_INFO", OPERATION_GPU_INFO, read_nothing},
    {"PING", OPERATION_PING, read_ping},
    {"SPIN", OPERATION_SPIN, read_spin},
    /* The first protocol's numbers. */
    {"1", OPERATION_VECTOR_ADD, read_nothing},
    {"2", OPERATION_GPU_INFO, read_nothing},
};

static int read_pair(const char *text, const char *colon, struct protocol_command *command,
                     struct vgpu_error *error)
{
    command->operation = OPERATION_VECTOR_ADD;
    command->has_numbers = true;
    if (number_read(text, (size_t)(colon - text), &command->numbers[0], error) < 0)
        return -1;
    return number_read(colon + 1, strlen(colon + 1), &command->numbers[1], error);
}

static int read_named(const char *text, struct protocol_command *command, struct vgpu_error *error)
{
    const char *test = "TEST_";
    struct word name = word_read(text);
    char quote[PROTOCOL_QUOTE_BYTES];

    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(commands); i++) {
        if (protocol_same_name(name.at, name.bytes, commands[i].name)) {
            command->operation = commands[i].operation;
            return commands[i].read(skip_blanks(name.at + name.bytes), command, error);
        }
    }
    if (name.bytes >= strlen(test) && protocol_same_name(name.at, strlen(test), test)) {
        command->operation = OPERATION_TEST;
        command->text = text;
        return 0;
    }
    return error_set(error, EINVAL, "unknown command '%s': use %s",
                     protocol_quote(quote, name.at, name.bytes), command_list);
}

int protocol_parse_command(const char *command, struct protocol_command *ret_command,
                           struct vgpu_error *error)
{
    struct protocol_command result = {.text = ""};
    const char *text = skip_blanks(command);
    const char *colon = strchr(text, ':');
    bool is_pair = colon && *text && strchr("0123456789+-.", *text);

    if (*text == '\0')
        return error_set(error, EINVAL, "command is empty: use %s", command_list);
    if ((is_pair ? read_pair(text, colon, &result, error) : read_named(text, &result, error)) < 0)
        return -1;
    *ret_command = result;
    return 0;
}
