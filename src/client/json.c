/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A writer for one JSON object on one line.  Strings may hold any byte: what
 * is no UTF-8 becomes U+FFFD, so the output is valid whatever came.
 */
#include "client.h"

#include <inttypes.h>
#include <string.h>

static void write_string(FILE *out, const char *text)
{
    size_t bytes = strlen(text);

    putc('"', out);
    while (bytes > 0) {
        size_t length = text_utf8_length(text, bytes);

        if (length == 0)
            fputs("\\ufffd", out);
        else if (*text == '"' || *text == '\\')
            fprintf(out, "\\%c", *text);
        else if ((unsigned char)*text < 0x20 || *text == 0x7f)
            fprintf(out, "\\u%04x", (unsigned char)*text);
        else
            fwrite(text, 1, length, out);
        length += length == 0;
        text += length;
        bytes -= length;
    }
    putc('"', out);
}

static void write_key(struct json *json, const char *key)
{
    if (json->comma)
        fputs(", ", json->out);
    json->comma = true;
    if (key) {
        write_string(json->out, key);
        fputs(": ", json->out);
    }
}

void json_open(struct json *json, const char *key, char bracket)
{
    write_key(json, key);
    putc(bracket, json->out);
    json->comma = false;
}

void json_close(struct json *json, char bracket)
{
    putc(bracket, json->out);
    json->comma = true;
}

void json_string(struct json *json, const char *key, const char *value)
{
    write_key(json, key);
    write_string(json->out, value);
}

void json_integer(struct json *json, const char *key, int64_t value)
{
    write_key(json, key);
    fprintf(json->out, "%" PRId64, value);
}

void json_milliseconds(struct json *json, const char *key, int64_t ns)
{
    write_key(json, key);
    fprintf(json->out, "%.3f", (double)ns / 1e6);
}

void json_number(struct json *json, const char *key, double value)
{
    write_key(json, key);
    fprintf(json->out, "%.3f", value);
}

void json_bool(struct json *json, const char *key, bool value)
{
    write_key(json, key);
    fputs(value ? "true" : "false", json->out);
}

void json_null(struct json *json, const char *key)
{
    write_key(json, key);
    fputs("null", json->out);
}

void json_failure(struct json *json, const struct failure *failure)
{
    json_open(json, "error", '{');
    json_string(json, "code", failure_name(failure->code));
    json_string(json, "text", failure->text);
    json_string(json, "remedy", failure->remedy);
    json_close(json, '}');
}

void json_begin(struct json *json, FILE *out)
{
    *json = (struct json){.out = out};
    json_open(json, NULL, '{');
    json_string(json, "program", "vgpu-client");
    json_string(json, "version", VGPU_PACKAGE_VERSION);
}

void json_end(struct json *json, int exit_code, const struct failure *failure)
{
    if (failure)
        json_failure(json, failure);
    json_bool(json, "ok", exit_code == CLIENT_EXIT_SUCCESS);
    json_integer(json, "exit_code", exit_code);
    json_close(json, '}');
    putc('\n', json->out);
}
