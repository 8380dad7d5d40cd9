/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What commands print.  A table is filled cell by cell and printed once, when the
 * widths of its columns are known; under --json it is an array of objects.
 */
#include "admin/admin.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define GAP 2 /* blanks between columns */

struct cell {
    char *text;      /* NULL: nothing, shown as "-" */
    uint64_t number; /* JSON, where is_number */
    bool is_number;
};

struct output {
    struct admin *admin;
    const struct output_column *columns;
    size_t count;
    struct cell *cells;
    size_t used, room;
};

/* Without memory there is no way to tell the result. */
static void *must(void *memory)
{
    if (!memory) {
        fputs("vgpu-admin: no memory\n", stderr);
        abort();
    }
    return memory;
}

struct output *output_new(struct admin *admin, const struct output_column *columns, size_t count)
{
    struct output *output = must(calloc(1, sizeof(*output)));

    *output = (struct output){.admin = admin, .columns = columns, .count = count};
    return output;
}

void output_free(struct output *output)
{
    if (!output)
        return;
    for (size_t i = 0; i < output->used; i++)
        free(output->cells[i].text);
    free(output->cells);
    free(output);
}

static struct cell *next_cell(struct output *output)
{
    if (output->used == output->room) {
        output->room = output->room ? 2 * output->room : 64;
        output->cells = must(reallocarray(output->cells, output->room, sizeof(*output->cells)));
    }
    output->cells[output->used] = (struct cell){0};
    return &output->cells[output->used++];
}

void output_text(struct output *output, const char *text)
{
    struct cell *cell = next_cell(output);

    if (text && text[0])
        cell->text = must(strdup(text));
}

void output_number(struct output *output, uint64_t number)
{
    struct cell *cell = next_cell(output);
    char text[24];

    snprintf(text, sizeof(text), "%llu", (unsigned long long)number);
    cell->text = must(strdup(text));
    cell->number = number;
    cell->is_number = true;
}

void output_end_row(struct output *output)
{
    while (output->used % output->count)
        next_cell(output);
}

static const char *shown(const struct cell *cell)
{
    return cell->text ? cell->text : "-";
}

static size_t column_width(const struct output *output, size_t column)
{
    size_t width = strlen(output->columns[column].header);

    for (size_t i = column; i < output->used; i += output->count) {
        size_t length = strlen(shown(&output->cells[i]));

        width = length > width ? length : width;
    }
    return width;
}

/* No blanks behind the last column. */
static void print_cell(const struct output *output, size_t column, size_t width, const char *text)
{
    bool last = column + 1 == output->count;

    if (output->columns[column].right)
        printf("%*s", (int)width, text);
    else
        printf("%-*s", last ? 0 : (int)width, text);
    if (last)
        putchar('\n');
    else
        printf("%*s", GAP, "");
}

static void print_table(const struct output *output)
{
    size_t *widths = must(calloc(output->count, sizeof(*widths)));

    for (size_t i = 0; i < output->count; i++)
        widths[i] = column_width(output, i);
    for (size_t i = 0; i < output->count; i++)
        print_cell(output, i, widths[i], output->columns[i].header);
    for (size_t i = 0; i < output->used; i++)
        print_cell(output, i % output->count, widths[i % output->count], shown(&output->cells[i]));
    free(widths);
}

static json_t *cell_json(const struct cell *cell)
{
    if (cell->is_number)
        return json_integer((json_int_t)cell->number);
    return cell->text ? json_string(cell->text) : json_null();
}

static void print_json(const struct output *output)
{
    json_t *rows = json_array();

    for (size_t i = 0; i < output->used; i += output->count) {
        json_t *row = json_object();

        for (size_t j = 0; j < output->count; j++)
            json_object_set_new(row, output->columns[j].key, cell_json(&output->cells[i + j]));
        json_array_append_new(rows, row);
    }
    output_json(rows);
}

void output_print(struct output *output, const char *none)
{
    if (output->admin->json)
        print_json(output);
    else if (output->used)
        print_table(output);
    else if (none)
        output_say(output->admin, "%s", none);
}

void output_json(json_t *object)
{
    json_dumpf(must(object), stdout, 0);
    putchar('\n');
    json_decref(object);
}

void output_say(struct admin *admin, const char *format, ...)
{
    va_list args;

    if (admin->json || admin->quiet)
        return;
    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    putchar('\n');
}

void output_quote(const char *text, char *quoted, size_t bytes)
{
    static const char plain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";
    size_t used = 0;

    if (text[strspn(text, plain)] == '\0') {
        text_copy(quoted, bytes, text);
        return;
    }
    quoted[used++] = '\'';
    for (; *text && used + 6 < bytes; text++) {
        if (*text == '\'')
            used += (size_t)snprintf(quoted + used, bytes - used, "'\\''");
        else
            quoted[used++] = *text;
    }
    quoted[used++] = '\'';
    quoted[used] = '\0';
}
