/* SPDX-License-Identifier: Apache-2.0 */
#include "unit.h"

#include "protocol/protocol.h"

#include <errno.h>
#include <locale.h>
#include <math.h>

static const struct protocol_context own = {.vm_id = 7, .pools = "AB"};

/* --- the request file --------------------------------------------------------- */

static enum protocol_verdict parse(const char *text, struct protocol_request *request,
                                   struct vgpu_error *error)
{
    memset(request, 0x5a, sizeof(*request));
    memset(error, 0x5a, sizeof(*error));
    return protocol_parse_request(text, strlen(text), &own, request, error);
}

static void expect_request(const char *text, char pool, unsigned priority, const char *command)
{
    struct protocol_request request;
    struct vgpu_error error;

    assert_int_equal(parse(text, &request, &error), PROTOCOL_REQUEST);
    assert_int_equal(request.pool, pool);
    assert_int_equal(request.priority, priority);
    assert_int_equal(request.vm_id, 7);
    assert_string_equal(request.command, command);
}

/* Not a request, and nothing was written to the outputs. */
static void expect_nothing(const char *text, enum protocol_verdict verdict)
{
    struct protocol_request request, before;
    struct vgpu_error error, error_before;

    memset(&before, 0x5a, sizeof(before));
    memset(&error_before, 0x5a, sizeof(error_before));
    assert_int_equal(parse(text, &request, &error), verdict);
    assert_memory_equal(&request, &before, sizeof(request));
    assert_memory_equal(&error, &error_before, sizeof(error));
}

static void expect_malformed_bytes(const char *text, size_t bytes, const char *message)
{
    struct protocol_request request, before;
    struct vgpu_error error;

    memset(&request, 0x5a, sizeof(request));
    before = request;
    assert_int_equal(protocol_parse_request(text, bytes, &own, &request, &error),
                     PROTOCOL_MALFORMED);
    assert_string_equal(error.message, message);
    assert_int_not_equal(error.code, 0);
    assert_memory_equal(&request, &before, sizeof(request));
    assert_int_equal(protocol_parse_request(text, bytes, &own, &request, NULL), PROTOCOL_MALFORMED);
}

static void expect_malformed(const char *text, const char *message)
{
    expect_malformed_bytes(text, strlen(text), message);
}

static void a_request_line_fills_all_fields(void **state)
{
    (void)state;
    expect_request("A:2:7:VECTOR_ADD\n", 'A', 2, "VECTOR_ADD");
    expect_request("B:0:7:MATRIX_MUL 64\n", 'B', 0, "MATRIX_MUL 64");
}

static void the_command_is_all_after_the_third_colon(void **state)
{
    (void)state;
    expect_request("A:1:7:3:4\n", 'A', 1, "3:4");
    expect_request("A:1:7:PING a:b::c\n", 'A', 1, "PING a:b::c");
    expect_request("A:1:7::\n", 'A', 1, ":");
}

static void an_unknown_command_is_still_a_request(void **state)
{
    (void)state;
    expect_request("A:1:7:FOO\n", 'A', 1, "FOO");
}

static void white_space_around_the_line_is_ignored(void **state)
{
    (void)state;
    expect_request("A:2:7:PING\r\n", 'A', 2, "PING");
    expect_request("  \tA:2:7:PING x \t \r\n", 'A', 2, "PING x");
    expect_request("\n\r\n \nA:2:7:PING\n\n \r\n\t", 'A', 2, "PING");
    expect_request("A:2:7:   PING  a  b\n", 'A', 2, "PING  a  b");
}

static void nothing_but_white_space_is_empty(void **state)
{
    (void)state;
    expect_nothing("", PROTOCOL_EMPTY);
    expect_nothing("\n", PROTOCOL_EMPTY);
    expect_nothing("\r\n\n \t\n", PROTOCOL_EMPTY);
    expect_nothing("  ", PROTOCOL_EMPTY);
}

static void half_a_line_is_incomplete_whatever_it_says(void **state)
{
    (void)state;
    expect_nothing("A", PROTOCOL_INCOMPLETE);
    expect_nothing("A:2:7:PING", PROTOCOL_INCOMPLETE);
    expect_nothing("A:2:7:PING\r", PROTOCOL_INCOMPLETE);
    expect_nothing("\nA:2:7:PING ", PROTOCOL_INCOMPLETE);
    expect_nothing("no such pool", PROTOCOL_INCOMPLETE);
}

static void half_a_line_longer_than_any_request_is_refused(void **state)
{
    char text[VGPU_REQUEST_MAX_BYTES + 2];

    (void)state;
    memset(text, 'x', sizeof(text));
    text[VGPU_REQUEST_MAX_BYTES] = '\0';
    expect_nothing(text, PROTOCOL_INCOMPLETE);
    text[VGPU_REQUEST_MAX_BYTES] = 'x';
    text[VGPU_REQUEST_MAX_BYTES + 1] = '\0';
    expect_malformed(text, "request has 271 bytes and no newline: at most 270 are allowed");
}

static void a_pool_that_does_not_exist_is_refused(void **state)
{
    struct protocol_context context = {.vm_id = 7, .pools = "A"};
    struct protocol_request request;
    struct vgpu_error error;

    (void)state;
    expect_malformed("Q:2:7:PING\n", "pool 'Q' does not exist: use A or B");
    expect_malformed("a:2:7:PING\n", "pool 'a' does not exist: use A or B");
    expect_malformed("AB:2:7:PING\n", "pool 'AB' does not exist: use A or B");
    expect_malformed(":2:7:PING\n", "pool '' does not exist: use A or B");
    expect_malformed("A :2:7:PING\n", "pool 'A ' does not exist: use A or B");

    assert_int_equal(protocol_parse_request("B:2:7:PING\n", 11, &context, &request, &error),
                     PROTOCOL_MALFORMED);
    assert_string_equal(error.message, "pool 'B' does not exist: use A");
    context.pools = "ACD";
    assert_int_equal(protocol_parse_request("B:2:7:PING\n", 11, &context, &request, &error),
                     PROTOCOL_MALFORMED);
    assert_string_equal(error.message, "pool 'B' does not exist: use A, C or D");
}

static void every_letter_can_be_a_pool_and_is_named(void **state)
{
    struct protocol_context context = {.vm_id = 7, .pools = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"};
    struct protocol_request request;
    struct vgpu_error error;

    (void)state;
    assert_int_equal(protocol_parse_request("Z:2:7:PING\n", 11, &context, &request, &error),
                     PROTOCOL_REQUEST);
    assert_int_equal(request.pool, 'Z');
    assert_int_equal(protocol_parse_request("z:2:7:PING\n", 11, &context, &request, &error),
                     PROTOCOL_MALFORMED);
    assert_non_null(strstr(error.message, "use A, B, C,"));
    assert_non_null(strstr(error.message, "X, Y or Z"));
}

static void a_priority_other_than_0_1_2_is_refused(void **state)
{
    (void)state;
    expect_malformed("A:7:7:PING\n", "priority '7' is not 0 (low), 1 (medium) or 2 (high)");
    expect_malformed("A:3:7:PING\n", "priority '3' is not 0 (low), 1 (medium) or 2 (high)");
    expect_malformed("A::7:PING\n", "priority '' is not 0 (low), 1 (medium) or 2 (high)");
    expect_malformed("A:-1:7:PING\n", "priority '-1' is not 0 (low), 1 (medium) or 2 (high)");
    expect_malformed("A:02:7:PING\n", "priority '02' is not 0 (low), 1 (medium) or 2 (high)");
    expect_malformed("A:high:7:PING\n", "priority 'high' is not 0 (low), 1 (medium) or 2 (high)");
}

static void a_foreign_vm_id_is_refused(void **state)
{
    struct vgpu_error error;
    struct protocol_request request;

    (void)state;
    expect_malformed("A:2:12:PING\n", "vm_id 12 is not this directory's vm_id 7");
    expect_malformed("A:2:4294967295:PING\n", "vm_id 4294967295 is not this directory's vm_id 7");
    assert_int_equal(parse("A:2:12:PING\n", &request, &error), PROTOCOL_MALFORMED);
    assert_int_equal(error.code, EPERM);
}

static void a_vm_id_that_is_no_number_is_refused(void **state)
{
    (void)state;
    expect_malformed("A:2:x:PING\n", "vm_id 'x' is not a number of 0 to 4294967295: "
                                     "this directory's vm_id is 7");
    expect_malformed("A:2::PING\n", "vm_id '' is not a number of 0 to 4294967295: "
                                    "this directory's vm_id is 7");
    /* 2^32 + 7 must not wrap to 7 */
    expect_malformed("A:2:4294967303:PING\n",
                     "vm_id '4294967303' is not a number of 0 to 4294967295: "
                     "this directory's vm_id is 7");
    expect_malformed("A:2:+7:PING\n", "vm_id '+7' is not a number of 0 to 4294967295: "
                                      "this directory's vm_id is 7");
    expect_malformed("A:2:00000000007:PING\n",
                     "vm_id '00000000007' is not a number of 0 to 4294967295: "
                     "this directory's vm_id is 7");
}

static void missing_fields_are_counted_and_the_form_is_shown(void **state)
{
    (void)state;
    expect_malformed("hello\n", "request 'hello' has 1 of 4 fields: "
                                "write pool:priority:vm_id:command, e.g. A:1:7:VECTOR_ADD");
    expect_malformed("A:2:7\n", "request 'A:2:7' has 3 of 4 fields: "
                                "write pool:priority:vm_id:command, e.g. A:1:7:VECTOR_ADD");
}

static void an_empty_command_is_refused(void **state)
{
    struct vgpu_error error;
    struct protocol_request request;

    (void)state;
    assert_int_equal(parse("A:2:7:\n", &request, &error), PROTOCOL_MALFORMED);
    assert_non_null(strstr(error.message, "command is empty: use VECTOR_ADD"));
    assert_int_equal(parse("A:2:7:   \n", &request, &error), PROTOCOL_MALFORMED);
    assert_non_null(strstr(error.message, "command is empty: use VECTOR_ADD"));
}

/* A whole request whose command is `bytes` times 'c'. */
static const char *request_of(size_t bytes, char command[301], char line[400])
{
    memset(command, 'c', bytes);
    command[bytes] = '\0';
    snprintf(line, 400, "A:2:7:%s\n", command);
    return line;
}

static void a_command_of_255_bytes_is_taken_and_of_256_refused(void **state)
{
    char command[301], line[400];

    (void)state;
    expect_request(request_of(255, command, line), 'A', 2, command);
    expect_malformed(request_of(256, command, line),
                     "command has 256 bytes: at most 255 are allowed");
    expect_malformed(request_of(300, command, line),
                     "command has 300 bytes: at most 255 are allowed");
}

static void control_characters_are_named_with_their_place(void **state)
{
    (void)state;
    expect_malformed("A:2:7:PI\x01G\n", "control character \\x01 at byte 9");
    expect_malformed("\n\nA:2:7:PI\x01G\n", "control character \\x01 at byte 11");
    expect_malformed("A:2:7:PING\tx\n", "control character \\x09 at byte 11");
    expect_malformed("A:2:7:PING\rx\n", "control character \\x0d at byte 11");
    expect_malformed("A:2:7:PING\x7f\n", "control character \\x7f at byte 11");
    expect_malformed("A:2:7:PING\x1b[2J\n", "control character \\x1b at byte 11");
}

static void nul_bytes_are_refused_wherever_they_stand(void **state)
{
    (void)state;
    expect_malformed_bytes("A:2:7:PI\0G\n", 11, "NUL byte at byte 9: write text only");
    expect_malformed_bytes("A:2:7:PING\0\n", 12, "NUL byte at byte 11: write text only");
    expect_malformed_bytes("\0\0\0A:2:7:PING\n", 14, "NUL byte at byte 1: write text only");
    expect_malformed_bytes("\0\n", 2, "NUL byte at byte 1: write text only");
}

static void bytes_outside_ascii_are_refused(void **state)
{
    (void)state;
    expect_malformed("A:2:7:PING \xc3\xa9\n", "byte \\xc3 at byte 12 is not ASCII");
    expect_malformed("\xef\xbb\xbf"
                     "A:2:7:PING\n",
                     "byte \\xef at byte 1 is not ASCII");
}

static void several_lines_are_refused_and_counted(void **state)
{
    (void)state;
    expect_malformed("A:2:7:PING\nA:2:7:PING\n",
                     "request has 2 lines: send one, wait for its answer");
    expect_malformed("A:2:7:PING\n\n\nA:2:7:PING\n",
                     "request has 2 lines: send one, wait for its answer");
    expect_malformed("a\nb\r\nc\n", "request has 3 lines: send one, wait for its answer");
    /* the last one is not ended yet: it is a second line all the same */
    expect_malformed("A:2:7:PING\nA:2", "request has 2 lines: send one, wait for its answer");
}

static void what_the_guest_wrote_is_cut_short_in_messages(void **state)
{
    char text[300];

    (void)state;
    memset(text, 'Q', sizeof(text));
    snprintf(text + 100, sizeof(text) - 100, ":2:7:PING\n");
    expect_malformed(text, "pool 'QQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQQ...' "
                           "does not exist: use A or B");
}

/* --- the command file --------------------------------------------------------- */

static enum protocol_verdict parse_file(const char *text, struct protocol_request *request,
                                        struct vgpu_error *error)
{
    memset(request, 0x5a, sizeof(*request));
    return protocol_parse_command_file(text, strlen(text), &own, request, error);
}

static void expect_file_command(const char *text, const char *command)
{
    struct protocol_request request;
    struct vgpu_error error;

    assert_int_equal(parse_file(text, &request, &error), PROTOCOL_REQUEST);
    assert_string_equal(request.command, command);
    assert_int_equal(request.vm_id, 7);
    assert_int_equal(request.pool, 0x5a); /* as the caller set them */
    assert_int_equal(request.priority, 0x5a);
}

static void a_lone_digit_in_the_command_file_needs_no_newline(void **state)
{
    (void)state;
    expect_file_command("1", "1");
    expect_file_command("2", "2");
    expect_file_command("9", "9");
    expect_file_command(" 1 ", "1");
    expect_file_command("1\n", "1");
    expect_file_command("2\r\n", "2");
}

static void other_commands_in_the_command_file_need_a_newline(void **state)
{
    struct protocol_request request, before;
    struct vgpu_error error;

    (void)state;
    memset(&before, 0x5a, sizeof(before));
    expect_file_command("VECTOR_ADD\n", "VECTOR_ADD");
    expect_file_command("3:4\n", "3:4");
    expect_file_command("12\n", "12");
    assert_int_equal(parse_file("12", &request, &error), PROTOCOL_INCOMPLETE);
    assert_int_equal(parse_file("1:", &request, &error), PROTOCOL_INCOMPLETE);
    assert_int_equal(parse_file("x", &request, &error), PROTOCOL_INCOMPLETE);
    assert_int_equal(parse_file("\n", &request, &error), PROTOCOL_EMPTY);
    assert_memory_equal(&request, &before, sizeof(request));
}

static void the_command_file_refuses_what_the_request_file_refuses(void **state)
{
    struct protocol_request request, before;
    struct vgpu_error error;
    char text[300];

    (void)state;
    memset(&before, 0x5a, sizeof(before));
    assert_int_equal(parse_file("1\n2\n", &request, &error), PROTOCOL_MALFORMED);
    assert_string_equal(error.message, "request has 2 lines: send one, wait for its answer");
    assert_int_equal(parse_file("PI\x02\n", &request, &error), PROTOCOL_MALFORMED);
    assert_string_equal(error.message, "control character \\x02 at byte 3");
    memset(text, 'c', sizeof(text));
    text[256] = '\0';
    assert_int_equal(parse_file(text, &request, &error), PROTOCOL_MALFORMED);
    assert_string_equal(error.message,
                        "request has 256 bytes and no newline: at most 255 are allowed");
    snprintf(text + 256, sizeof(text) - 256, "\n");
    assert_int_equal(parse_file(text, &request, &error), PROTOCOL_MALFORMED);
    assert_string_equal(error.message, "command has 256 bytes: at most 255 are allowed");
    assert_memory_equal(&request, &before, sizeof(request));
}

/* --- commands ----------------------------------------------------------------- */

static struct protocol_command expect_command(const char *text, enum protocol_operation operation)
{
    struct protocol_command command;
    struct vgpu_error error;

    if (protocol_parse_command(text, &command, &error) < 0)
        fail_msg("'%s': %s", text, error.message);
    assert_int_equal(command.operation, operation);
    return command;
}

static void expect_bad_command(const char *text, const char *message)
{
    struct protocol_command command, before;
    struct vgpu_error error;

    memset(&command, 0x5a, sizeof(command));
    before = command;
    assert_int_equal(protocol_parse_command(text, &command, &error), -1);
    assert_string_equal(error.message, message);
    assert_memory_equal(&command, &before, sizeof(command));
}

static void expect_numbers(const char *text, double a, double b)
{
    struct protocol_command command = expect_command(text, OPERATION_VECTOR_ADD);

    assert_true(command.has_numbers);
    assert_true(command.numbers[0] == a);
    assert_true(command.numbers[1] == b);
}

static void vector_add_takes_two_numbers_or_none(void **state)
{
    (void)state;
    assert_false(expect_command("VECTOR_ADD", OPERATION_VECTOR_ADD).has_numbers);
    assert_false(expect_command("VECTOR_ADD  ", OPERATION_VECTOR_ADD).has_numbers);
    expect_numbers("VECTOR_ADD 3 4", 3, 4);
    expect_numbers("vector_add   -1.5   2e3", -1.5, 2000);
    expect_bad_command("VECTOR_ADD 3", "VECTOR_ADD '3': expected two numbers, "
                                       "e.g. VECTOR_ADD 3 4, or none");
    expect_bad_command("VECTOR_ADD 3 4 5", "VECTOR_ADD '3 4 5': expected two numbers, "
                                           "e.g. VECTOR_ADD 3 4, or none");
    expect_bad_command("VECTOR_ADD 3 x", "'x' is not a decimal number such as 3, -0.5 or 2e6");
}

static void two_numbers_with_a_colon_are_added(void **state)
{
    (void)state;
    expect_numbers("3:4", 3, 4);
    expect_numbers("-0.25:+.5", -0.25, 0.5);
    expect_numbers("1.:2E-1", 1, 0.2);
    expect_numbers("1e308:0.0000001", 1e308, 1e-7);
    expect_numbers("1e-400:0", 0, 0); /* too small is zero */
}

static void numbers_that_are_not_decimal_and_finite_are_refused(void **state)
{
    static const char *const bad[] = {
        "x",  "0x10", "1e",  "1e+", "-",    ".",   "1.2.3", "--1", "1 ",
        " 1", "",     "nan", "inf", "-inf", "1,5", "1e5x",  "4:5", "1_000",
    };
    char text[64], message[128];

    (void)state;
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(bad); i++) {
        snprintf(text, sizeof(text), "3:%s", bad[i]);
        snprintf(message, sizeof(message), "'%s' is not a decimal number such as 3, -0.5 or 2e6",
                 bad[i]);
        expect_bad_command(text, message);
    }
    expect_bad_command("1e999:1", "number '1e999' is too large: at most 1.79e308 is allowed");
    expect_bad_command("1:-1e999", "number '-1e999' is too large: at most 1.79e308 is allowed");
}

static void a_pair_that_starts_with_a_letter_is_an_unknown_command(void **state)
{
    struct protocol_command command;
    struct vgpu_error error;

    (void)state;
    assert_int_equal(protocol_parse_command("nan:4", &command, &error), -1);
    assert_non_null(strstr(error.message, "unknown command 'nan:4': use VECTOR_ADD"));
}

/*
 * Hardly any machine has a locale with a decimal comma installed, so the test
 * brings one: the C library's compiled LC_NUMERIC with decimal_point "," and
 * thousands_sep ".", as localedef writes it.
 */
static void use_a_locale_with_a_decimal_comma(const char *directory)
{
    static const unsigned char numeric[] = {
        0x14, 0x11, 0x03, 0x20, 0x06, 0x00, 0x00, 0x00, 0x20, 0x00, 0x00, 0x00, 0x22,
        0x00, 0x00, 0x00, 0x24, 0x00, 0x00, 0x00, 0x28, 0x00, 0x00, 0x00, 0x2c, 0x00,
        0x00, 0x00, 0x30, 0x00, 0x00, 0x00, 0x2c, 0x00, 0x2e, 0x00, 0x03, 0x03, 0x00,
        0x00, 0x2c, 0x00, 0x00, 0x00, 0x2e, 0x00, 0x00, 0x00, 0x41, 0x4e, 0x53, 0x49,
        0x5f, 0x58, 0x33, 0x2e, 0x34, 0x2d, 0x31, 0x39, 0x36, 0x38, 0x00,
    };
    char path[512];
    FILE *file;

    snprintf(path, sizeof(path), "%s/comma", directory);
    assert_int_equal(mkdir(path, 0700), 0);
    snprintf(path, sizeof(path), "%s/comma/LC_NUMERIC", directory);
    file = fopen(path, "wbe");
    assert_non_null(file);
    assert_int_equal(fwrite(numeric, 1, sizeof(numeric), file), sizeof(numeric));
    assert_int_equal(fclose(file), 0);
    setenv("LOCPATH", directory, 1);
    assert_non_null(setlocale(LC_NUMERIC, "comma"));
    unsetenv("LOCPATH");
}

static void numbers_do_not_depend_on_the_locale(void **state)
{
    char *top = unit_temporary_directory();

    (void)state;
    use_a_locale_with_a_decimal_comma(top);
    assert_true(strtod("1.5", NULL) == 1.0); /* the locale is in force */
    expect_numbers("1.5:2.25", 1.5, 2.25);
    expect_bad_command("1,5:2", "'1,5' is not a decimal number such as 3, -0.5 or 2e6");
    setlocale(LC_NUMERIC, "C");
    unit_remove_directory(top);
}

static void matrix_mul_takes_rows_up_to_its_maximum(void **state)
{
    (void)state;
    assert_int_equal(expect_command("MATRIX_MUL", OPERATION_MATRIX_MUL).size, 64);
    assert_int_equal(expect_command("MATRIX_MUL 1", OPERATION_MATRIX_MUL).size, 1);
    assert_int_equal(expect_command("matrix_mul  1024 ", OPERATION_MATRIX_MUL).size, 1024);
    expect_bad_command("MATRIX_MUL 0", "MATRIX_MUL '0': expected the matrix's rows, "
                                       "a whole number of 1 to 1024");
    expect_bad_command("MATRIX_MUL 1025", "MATRIX_MUL '1025': expected the matrix's rows, "
                                          "a whole number of 1 to 1024");
    expect_bad_command("MATRIX_MUL 2 3", "MATRIX_MUL '2 3': expected the matrix's rows, "
                                         "a whole number of 1 to 1024");
    expect_bad_command("MATRIX_MUL -5", "MATRIX_MUL '-5': expected the matrix's rows, "
                                        "a whole number of 1 to 1024");
}

static void spin_takes_milliseconds_up_to_its_maximum(void **state)
{
    (void)state;
    assert_int_equal(expect_command("SPIN 0", OPERATION_SPIN).size, 0);
    assert_int_equal(expect_command("Spin 600000", OPERATION_SPIN).size, 600000);
    expect_bad_command("SPIN", "SPIN '': expected milliseconds, a whole number of 0 to 600000");
    expect_bad_command("SPIN 600001",
                       "SPIN '600001': expected milliseconds, a whole number of 0 to 600000");
    expect_bad_command("SPIN 1.5",
                       "SPIN '1.5': expected milliseconds, a whole number of 0 to 600000");
}

static void ping_points_at_the_text_after_its_name(void **state)
{
    const char *text = "ping   hello  a:b";

    (void)state;
    assert_string_equal(expect_command("PING", OPERATION_PING).text, "");
    assert_ptr_equal(expect_command(text, OPERATION_PING).text, text + 7);
}

static void test_commands_point_at_their_whole_text(void **state)
{
    const char *text = "TEST_HIGH one";

    (void)state;
    assert_ptr_equal(expect_command(text, OPERATION_TEST).text, text);
    assert_string_equal(expect_command("test_low", OPERATION_TEST).text, "test_low");
    assert_string_equal(expect_command("TEST_", OPERATION_TEST).text, "TEST_");
    assert_string_equal(expect_command("TEST_A:B", OPERATION_TEST).text, "TEST_A:B");
}

static void the_first_protocols_numbers_are_commands(void **state)
{
    (void)state;
    assert_false(expect_command("1", OPERATION_VECTOR_ADD).has_numbers);
    expect_command("2", OPERATION_GPU_INFO);
    expect_bad_command("1 2", "'2' is too much: this command takes no arguments");
    expect_bad_command("GPU_INFO x", "'x' is too much: this command takes no arguments");
}

static void an_unknown_command_gets_the_list(void **state)
{
    char message[512];

    (void)state;
    snprintf(message, sizeof(message), "unknown command 'FOO': use %s", protocol_command_list());
    expect_bad_command("FOO bar", message);
    snprintf(message, sizeof(message), "unknown command '3': use %s", protocol_command_list());
    expect_bad_command("3", message);
    snprintf(message, sizeof(message), "unknown command 'PINGX': use %s", protocol_command_list());
    expect_bad_command("PINGX", message);
    snprintf(message, sizeof(message), "unknown command 'PIN': use %s", protocol_command_list());
    expect_bad_command("PIN", message);
    snprintf(message, sizeof(message), "unknown command 'TEST': use %s", protocol_command_list());
    expect_bad_command("TEST", message);
    snprintf(message, sizeof(message), "unknown command '\\x1b[2J': use %s",
             protocol_command_list());
    expect_bad_command("\x1b[2J", message);
    snprintf(message, sizeof(message), "command is empty: use %s", protocol_command_list());
    expect_bad_command("  ", message);
}

static void every_command_of_the_list_is_known(void **state)
{
    static const struct {
        const char *name, *arguments;
        enum protocol_operation operation;
    } examples[] = {
        {"VECTOR_ADD", "", OPERATION_VECTOR_ADD},
        {"MATRIX_MUL", "", OPERATION_MATRIX_MUL},
        {"REDUCE", "", OPERATION_REDUCE},
        {"GPU_INFO", "", OPERATION_GPU_INFO},
        {"PING", "", OPERATION_PING},
        {"SPIN", " 1", OPERATION_SPIN},
        {"TEST_", "", OPERATION_TEST},
    };

    (void)state;
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(examples); i++) {
        char text[32];

        assert_non_null(strstr(protocol_command_list(), examples[i].name));
        snprintf(text, sizeof(text), "%s%s", examples[i].name, examples[i].arguments);
        expect_command(text, examples[i].operation);
    }
}

/* --- answers and priorities ------------------------------------------------------ */

static void answers_are_status_message_and_newline(void **state)
{
    struct protocol_response response = {.success = true, .message = "3 + 4 = 7"};
    char line[PROTOCOL_RESPONSE_LINE_BYTES];

    (void)state;
    assert_int_equal(protocol_format_response(&response, line, sizeof(line)), 12);
    assert_string_equal(line, "1:3 + 4 = 7\n");
    response = (struct protocol_response){.success = false, .message = ""};
    assert_int_equal(protocol_format_response(&response, line, sizeof(line)), 3);
    assert_string_equal(line, "2:\n");
}

static void an_answer_is_one_line_whatever_its_message_holds(void **state)
{
    struct protocol_response response = {.success = true, .message = "a\n2:forged\r\x1b\xff"};
    char line[PROTOCOL_RESPONSE_LINE_BYTES];

    (void)state;
    protocol_format_response(&response, line, sizeof(line));
    assert_string_equal(line, "1:a\\x0a2:forged\\x0d\\x1b\\xff\n");
}

static void the_longest_answer_fits_and_escapes_are_cut_whole(void **state)
{
    struct protocol_response response = {.success = true};
    char line[PROTOCOL_RESPONSE_LINE_BYTES + 1];
    size_t bytes;

    (void)state;
    line[PROTOCOL_RESPONSE_LINE_BYTES] = 0x5a;
    memset(response.message, 'm', sizeof(response.message)); /* not even a NUL at its end */
    bytes = protocol_format_response(&response, line, PROTOCOL_RESPONSE_LINE_BYTES);
    assert_int_equal(bytes, PROTOCOL_RESPONSE_LINE_BYTES - 1);
    assert_int_equal(line[bytes - 1], '\n');
    assert_int_equal(line[bytes], '\0');

    memset(response.message, '\n', sizeof(response.message));
    bytes = protocol_format_response(&response, line, PROTOCOL_RESPONSE_LINE_BYTES);
    assert_int_equal(bytes, 2 + 1000 + 1); /* 250 escapes */
    assert_int_equal(line[PROTOCOL_RESPONSE_LINE_BYTES], 0x5a);
    assert_string_equal(line + bytes - 5, "\\x0a\n");
}

static void priorities_have_names_both_ways(void **state)
{
    static const char *const bad[] = {"", "3", "00", "-1", "highest", "hig", " 1", "1 "};
    uint8_t priority = 9;

    (void)state;
    assert_string_equal(protocol_priority_name(0), "low");
    assert_string_equal(protocol_priority_name(1), "medium");
    assert_string_equal(protocol_priority_name(2), "high");
    assert_null(protocol_priority_name(3));
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(bad); i++)
        assert_false(protocol_parse_priority(bad[i], &priority));
    assert_int_equal(priority, 9); /* untouched on failure */
    assert_true(protocol_parse_priority("0", &priority));
    assert_int_equal(priority, 0);
    assert_true(protocol_parse_priority("HIGH", &priority));
    assert_int_equal(priority, 2);
    assert_true(protocol_parse_priority("Medium", &priority));
    assert_int_equal(priority, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_request_line_fills_all_fields),
        cmocka_unit_test(the_command_is_all_after_the_third_colon),
        cmocka_unit_test(an_unknown_command_is_still_a_request),
        cmocka_unit_test(white_space_around_the_line_is_ignored),
        cmocka_unit_test(nothing_but_white_space_is_empty),
        cmocka_unit_test(half_a_line_is_incomplete_whatever_it_says),
        cmocka_unit_test(half_a_line_longer_than_any_request_is_refused),
        cmocka_unit_test(a_pool_that_does_not_exist_is_refused),
        cmocka_unit_test(every_letter_can_be_a_pool_and_is_named),
        cmocka_unit_test(a_priority_other_than_0_1_2_is_refused),
        cmocka_unit_test(a_foreign_vm_id_is_refused),
        cmocka_unit_test(a_vm_id_that_is_no_number_is_refused),
        cmocka_unit_test(missing_fields_are_counted_and_the_form_is_shown),
        cmocka_unit_test(an_empty_command_is_refused),
        cmocka_unit_test(a_command_of_255_bytes_is_taken_and_of_256_refused),
        cmocka_unit_test(control_characters_are_named_with_their_place),
        cmocka_unit_test(nul_bytes_are_refused_wherever_they_stand),
        cmocka_unit_test(bytes_outside_ascii_are_refused),
        cmocka_unit_test(several_lines_are_refused_and_counted),
        cmocka_unit_test(what_the_guest_wrote_is_cut_short_in_messages),
        cmocka_unit_test(a_lone_digit_in_the_command_file_needs_no_newline),
        cmocka_unit_test(other_commands_in_the_command_file_need_a_newline),
        cmocka_unit_test(the_command_file_refuses_what_the_request_file_refuses),
        cmocka_unit_test(vector_add_takes_two_numbers_or_none),
        cmocka_unit_test(two_numbers_with_a_colon_are_added),
        cmocka_unit_test(numbers_that_are_not_decimal_and_finite_are_refused),
        cmocka_unit_test(a_pair_that_starts_with_a_letter_is_an_unknown_command),
        cmocka_unit_test(numbers_do_not_depend_on_the_locale),
        cmocka_unit_test(matrix_mul_takes_rows_up_to_its_maximum),
        cmocka_unit_test(spin_takes_milliseconds_up_to_its_maximum),
        cmocka_unit_test(ping_points_at_the_text_after_its_name),
        cmocka_unit_test(test_commands_point_at_their_whole_text),
        cmocka_unit_test(the_first_protocols_numbers_are_commands),
        cmocka_unit_test(an_unknown_command_gets_the_list),
        cmocka_unit_test(every_command_of_the_list_is_known),
        cmocka_unit_test(answers_are_status_message_and_newline),
        cmocka_unit_test(an_answer_is_one_line_whatever_its_message_holds),
        cmocka_unit_test(the_longest_answer_fits_and_escapes_are_cut_whole),
        cmocka_unit_test(priorities_have_names_both_ways),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
