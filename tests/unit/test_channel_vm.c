/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One VM of the file channel, step by step: what is found, accepted, answered, and
 * what the next mediator makes of the files and the journal that it finds.  A
 * mediator that is killed is one whose struct file_vm is dropped.
 */
#include "unit.h"

#include "channel/private.h"

#include <errno.h>
#include <fcntl.h>

#define MARKED "0:Ready\n\n"

struct place {
    char *top;
    int share_fd, state_fd;
    struct file_vm vm; /* 7 */
    struct file_rules rules;
    struct file_candidate candidate;
    uint64_t now_ns; /* what the VM is told */
};

static const struct directory_owner owner = {(uid_t)-1, (gid_t)-1, 0700};

static int open_at(const char *top, const char *name)
{
    char path[600];

    snprintf(path, sizeof(path), "%s/%s", top, name);
    mkdir(path, 0700);
    return open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
}

/* A mediator's start: journal and directory are opened, and brought together. */
static void begin(struct place *place)
{
    struct vgpu_error error = {.message = ""};

    file_vm_init(&place->vm, 7, &owner, true);
    journal_open(&place->vm.journal, place->state_fd, 7, 0, &error);
    assert_string_equal(error.message, "");
    directory_open(&place->vm.directory, place->share_fd, "vm7", &owner, &error);
    assert_string_equal(error.message, "");
    file_vm_recover(&place->vm, &place->rules);
}

static void kill_and_begin(struct place *place)
{
    file_vm_close(&place->vm);
    begin(place);
}

static int place_make(void **state)
{
    struct place *place = calloc(1, sizeof(*place));
    struct vgpu_error error;

    place->top = unit_temporary_directory();
    place->share_fd = open_at(place->top, "share");
    place->state_fd = open_at(place->top, "state");
    place->rules =
        (struct file_rules){.pools = "AB", .response_hold_ms = 1000, .unterminated_hold_ms = 500};
    place->now_ns = 1000 * NS_PER_S;
    *state = place;
    if (directory_make(place->share_fd, "vm7", &owner, &error) < 0)
        return -1;
    log_open("/dev/null", LOG_FORMAT_TEXT, LOG_LEVEL_ERROR, &error);
    begin(place);
    return 0;
}

static int place_remove(void **state)
{
    struct place *place = *state;

    file_vm_close(&place->vm);
    close(place->share_fd);
    close(place->state_fd);
    log_close();
    unit_remove_directory(place->top);
    free(place);
    return 0;
}

static void put(struct place *place, const char *name, const char *text)
{
    int fd = openat(place->vm.directory.fd, name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

    assert_true(fd >= 0);
    assert_int_equal(fd_pwrite_all(fd, text, strlen(text), 0), 0);
    close(fd);
}

static void assert_file(struct place *place, const char *name, const char *text)
{
    char path[600], *contents;

    snprintf(path, sizeof(path), "%s/share/vm7/%s", place->top, name);
    contents = unit_read_file(path);
    assert_string_equal(contents, text);
    free(contents);
}

static bool look(struct place *place)
{
    return file_vm_look(&place->vm, &place->rules, place->now_ns, &place->candidate);
}

static enum journal_state state_of(const struct place *place)
{
    return place->vm.journal.entry.state;
}

static void accept_found(struct place *place)
{
    assert_true(look(place));
    assert_true(file_vm_accept(&place->vm, &place->candidate));
}

static void put_and_accept(struct place *place, const char *line)
{
    put(place, "response.txt", "0:Ready\n"); /* the client's own */
    put(place, "request.txt", line);
    accept_found(place);
}

static void set_answer(struct place *place, const char *message)
{
    struct protocol_response response = {.success = true};

    text_copy(response.message, sizeof(response.message), message);
    file_vm_set_answer(&place->vm, &response);
}

static enum file_delivery deliver(struct place *place)
{
    return file_vm_deliver(&place->vm, &place->rules);
}

/* Gives a file the time of another moment, as if both were within one tick. */
static struct timespec time_of(struct place *place, const char *name)
{
    struct stat info;

    assert_int_equal(fstatat(place->vm.directory.fd, name, &info, 0), 0);
    return info.st_mtim;
}

static void set_time(struct place *place, const char *name, struct timespec time)
{
    const struct timespec times[2] = {time, time};

    assert_int_equal(utimensat(place->vm.directory.fd, name, times, 0), 0);
}

/* --- looking --------------------------------------------------------------------- */

static void nothing_is_found_where_nothing_stands(void **state)
{
    assert_false(look(*state));
    put(*state, "request.txt", "");
    put(*state, "command.txt", " \n");
    assert_false(look(*state));
}

static void request_is_found_with_what_it_claims(void **state)
{
    struct place *place = *state;

    put(place, "request.txt", "B:2:7:PING a\n");
    assert_true(look(place));
    assert_false(place->candidate.refused);
    assert_false(place->candidate.from_command_file);
    assert_int_equal(place->candidate.request.pool, 'B');
    assert_int_equal(place->candidate.request.priority, 2);
    assert_string_equal(place->candidate.request.command, "PING a");
}

static void older_of_request_and_command_is_found_first(void **state)
{
    struct place *place = *state;
    const struct timespec early = {.tv_sec = 1000}, late = {.tv_sec = 2000};

    put(place, "request.txt", "A:1:7:PING\n");
    put(place, "command.txt", "1");
    set_time(place, "request.txt", late);
    set_time(place, "command.txt", early);
    assert_true(look(place));
    assert_true(place->candidate.from_command_file);
    set_time(place, "request.txt", early);
    assert_true(look(place));
    assert_false(place->candidate.from_command_file);
}

static void half_a_line_is_refused_only_after_its_time(void **state)
{
    struct place *place = *state;

    put(place, "request.txt", "A:1:7:PI");
    assert_false(look(place));
    assert_int_equal(file_vm_deadline_ns(&place->vm, &place->rules),
                     place->now_ns + 500 * NS_PER_MS);
    place->now_ns += 499 * NS_PER_MS;
    assert_false(look(place));
    place->now_ns += NS_PER_MS;
    assert_true(look(place));
    assert_true(place->candidate.refused);
    assert_string_equal(place->candidate.error.message,
                        "request has no newline at its end after 500 ms: end it with one");
}

static void half_a_line_that_grows_gets_its_time_again(void **state)
{
    struct place *place = *state;

    put(place, "request.txt", "A:1:7:PI");
    assert_false(look(place));
    place->now_ns += 400 * NS_PER_MS;
    put(place, "request.txt", "A:1:7:PIN");
    assert_false(look(place));
    place->now_ns += 400 * NS_PER_MS;
    assert_false(look(place));
    put(place, "request.txt", "");
    assert_false(look(place));
    assert_int_equal(file_vm_deadline_ns(&place->vm, &place->rules), UINT64_MAX);
}

static void nothing_is_found_while_a_request_is_outstanding(void **state)
{
    struct place *place = *state;

    put_and_accept(place, "A:1:7:PING\n");
    put(place, "request.txt", "A:1:7:PING b\n");
    assert_false(look(place));
}

static void unregistered_vm_is_refused_unless_accepted(void **state)
{
    struct place *place = *state;

    place->vm.registered = false;
    put(place, "request.txt", "A:1:7:PING\n");
    assert_true(look(place));
    assert_true(place->candidate.refused);
    assert_non_null(strstr(place->candidate.error.message, "VM 7 is not registered"));
    place->rules.accept_unregistered = true;
    assert_true(look(place));
    assert_false(place->candidate.refused);
}

/* --- the normal way ------------------------------------------------------------------ */

static void accepted_request_is_journalled_taken_and_ready_is_marked(void **state)
{
    struct place *place = *state;
    struct channel_request request;

    put_and_accept(place, "B:2:7:PING a\n");
    assert_int_equal(state_of(place), JOURNAL_ACCEPTED);
    assert_file(place, "request.txt", "");
    assert_file(place, "response.txt", MARKED);
    file_vm_describe_request(&place->vm, false, &request);
    assert_int_equal(request.vm_id, 7);
    assert_int_equal(request.sequence, 1);
    assert_true(request.has_claim);
    assert_int_equal(request.claimed_pool, 'B');
    assert_int_equal(request.claimed_priority, 2);
    assert_string_equal(request.command, "PING a");
}

static void answer_is_delivered_and_nothing_is_owed_any_more(void **state)
{
    struct place *place = *state;

    put_and_accept(place, "A:1:7:PING\n");
    set_answer(place, "PONG");
    assert_int_equal(state_of(place), JOURNAL_ANSWERING);
    assert_int_equal(deliver(place), FILE_DELIVERY_DONE);
    assert_file(place, "response.txt", "1:PONG\n");
    assert_int_equal(state_of(place), JOURNAL_IDLE);
    put_and_accept(place, "A:1:7:PING\n");
    assert_int_equal(place->vm.journal.entry.sequence, 2);
}

static void refused_request_is_answered_without_running(void **state)
{
    struct place *place = *state;

    put_and_accept(place, "A:9:7:PING\n");
    assert_int_equal(state_of(place), JOURNAL_ANSWERING);
    assert_file(place, "request.txt", "");
    assert_int_equal(deliver(place), FILE_DELIVERY_DONE);
    assert_file(place, "response.txt", "2:priority '9' is not 0 (low), 1 (medium) or 2 (high)\n");
}

static void ready_is_restored_after_the_hold_and_not_before(void **state)
{
    struct place *place = *state;
    uint64_t deadline_ns;

    put_and_accept(place, "A:1:7:PING\n");
    set_answer(place, "PONG");
    deliver(place);
    file_vm_hold_answer(&place->vm, &place->rules);
    deadline_ns = file_vm_deadline_ns(&place->vm, &place->rules);
    file_vm_restore_ready(&place->vm, &place->rules, deadline_ns - 1);
    assert_file(place, "response.txt", "1:PONG\n");
    file_vm_restore_ready(&place->vm, &place->rules, deadline_ns);
    assert_file(place, "response.txt", "0:Ready\n");
}

static void ready_is_not_restored_over_what_a_client_wrote(void **state)
{
    struct place *place = *state;

    put_and_accept(place, "A:1:7:PING\n");
    set_answer(place, "PONG");
    deliver(place);
    file_vm_hold_answer(&place->vm, &place->rules);
    put(place, "response.txt", "something else\n");
    file_vm_restore_ready(&place->vm, &place->rules, UINT64_MAX);
    assert_file(place, "response.txt", "something else\n");
}

static void repeat_is_taken_away_and_another_request_withholds_the_answer(void **state)
{
    struct place *place = *state;

    put_and_accept(place, "A:1:7:PING\n");
    set_answer(place, "PONG");
    put(place, "request.txt", "A:1:7:PING\r\n");
    assert_int_equal(deliver(place), FILE_DELIVERY_DONE);
    assert_file(place, "request.txt", "");

    put_and_accept(place, "A:1:7:PING\n");
    set_answer(place, "PONG");
    put(place, "request.txt", "A:2:7:PING\n");
    assert_int_equal(deliver(place), FILE_DELIVERY_WITHHELD);
    assert_file(place, "request.txt", "A:2:7:PING\n");
    assert_file(place, "response.txt", MARKED);
    assert_int_equal(state_of(place), JOURNAL_IDLE);
}

static void answer_waits_while_the_directory_is_away(void **state)
{
    struct place *place = *state;
    struct vgpu_error error;

    put_and_accept(place, "A:1:7:PING\n");
    set_answer(place, "PONG");
    directory_close(&place->vm.directory);
    assert_int_equal(deliver(place), FILE_DELIVERY_LATER);
    assert_int_equal(directory_open(&place->vm.directory, place->share_fd, "vm7", &owner, &error),
                     0);
    assert_int_equal(deliver(place), FILE_DELIVERY_DONE);
    assert_file(place, "response.txt", "1:PONG\n");
}

static void request_stays_when_the_journal_cannot_be_written(void **state)
{
    struct place *place = *state;
    int writable = place->vm.journal.file.fd;

    put(place, "response.txt", "0:Ready\n");
    put(place, "request.txt", "A:1:7:PING\n");
    place->vm.journal.file.fd = open("/dev/full", O_WRONLY | O_CLOEXEC);
    assert_true(look(place));
    assert_false(file_vm_accept(&place->vm, &place->candidate));
    assert_file(place, "request.txt", "A:1:7:PING\n");
    assert_file(place, "response.txt", "0:Ready\n");
    assert_int_equal(state_of(place), JOURNAL_IDLE);
    close(place->vm.journal.file.fd);
    place->vm.journal.file.fd = writable;
    accept_found(place);
    assert_int_equal(place->vm.journal.entry.sequence, 1);
}

/* --- killed between two steps ----------------------------------------------------------- */

static void killed_after_the_journal_takes_the_request_in_the_next_life(void **state)
{
    struct place *place = *state;
    const struct timespec time = {.tv_sec = 1000};

    put(place, "request.txt", "A:1:7:PING\n");
    set_time(place, "request.txt", time);
    accept_found(place);
    /* Steps 2 and 3 undone. */
    put(place, "request.txt", "A:1:7:PING\n");
    set_time(place, "request.txt", time);
    put(place, "response.txt", "1:older\n");
    kill_and_begin(place);
    assert_int_equal(state_of(place), JOURNAL_ACCEPTED);
    assert_file(place, "request.txt", "");
    assert_file(place, "response.txt", MARKED);
    assert_false(look(place)); /* not a second time */
}

static void next_request_within_one_tick_is_not_taken_for_the_old_one(void **state)
{
    struct place *place = *state;
    struct timespec time;

    put(place, "request.txt", "A:1:7:PING a\n");
    time = time_of(place, "request.txt");
    accept_found(place);
    set_answer(place, "PONG a");
    deliver(place);
    /* Killed before IDLE reached the disk; the client went on. */
    place->vm.journal.entry.state = JOURNAL_ANSWERING;
    journal_store(&place->vm.journal, false, NULL);
    put(place, "response.txt", "0:Ready\n");
    put(place, "request.txt", "A:1:7:PING b\n");
    set_time(place, "request.txt", time);
    kill_and_begin(place);
    assert_int_equal(state_of(place), JOURNAL_IDLE);
    assert_file(place, "response.txt", "0:Ready\n");
    accept_found(place);
    assert_string_equal(place->vm.journal.entry.command, "PING b");
}

static void request_that_took_the_place_of_an_accepted_one_stays(void **state)
{
    struct place *place = *state;
    struct timespec time;

    put(place, "request.txt", "A:1:7:PING a\n");
    time = time_of(place, "request.txt");
    accept_found(place);
    put(place, "request.txt", "A:1:7:PING b\n");
    set_time(place, "request.txt", time);
    kill_and_begin(place);
    assert_int_equal(state_of(place), JOURNAL_ACCEPTED);
    assert_file(place, "request.txt", "A:1:7:PING b\n");
    set_answer(place, "PONG a");
    assert_int_equal(deliver(place), FILE_DELIVERY_WITHHELD);
}

static void killed_before_the_answer_was_written_owes_it(void **state)
{
    struct place *place = *state;

    put_and_accept(place, "A:1:7:PING\n");
    set_answer(place, "PONG");
    kill_and_begin(place);
    assert_int_equal(state_of(place), JOURNAL_ANSWERING);
    assert_int_equal(deliver(place), FILE_DELIVERY_DONE);
    assert_file(place, "response.txt", "1:PONG\n");
}

static void killed_in_the_write_that_changed_only_the_time_owes_the_answer(void **state)
{
    struct place *place = *state;
    const struct timespec any = {.tv_sec = 12345};

    put_and_accept(place, "A:1:7:PING\n");
    set_answer(place, "PONG");
    set_time(place, "response.txt", any);
    kill_and_begin(place);
    assert_int_equal(deliver(place), FILE_DELIVERY_DONE);
    assert_file(place, "response.txt", "1:PONG\n");
}

/* What step 5 leaves when IDLE did not reach the disk. */
static void deliver_and_forget_idle(struct place *place)
{
    put_and_accept(place, "A:1:7:PING\n");
    set_answer(place, "PONG");
    deliver(place);
    place->vm.journal.entry.state = JOURNAL_ANSWERING;
    journal_store(&place->vm.journal, false, NULL);
}

static void answer_that_stands_is_not_written_again(void **state)
{
    struct place *place = *state;
    const struct timespec time = {.tv_sec = 12345};

    deliver_and_forget_idle(place);
    set_time(place, "response.txt", time);
    kill_and_begin(place);
    assert_int_equal(state_of(place), JOURNAL_IDLE);
    assert_int_equal(time_of(place, "response.txt").tv_sec, time.tv_sec);
    file_vm_restore_ready(&place->vm, &place->rules, UINT64_MAX - 1);
    assert_file(place, "response.txt", "0:Ready\n");
}

static void answer_that_was_read_is_not_written_again(void **state)
{
    static const char *const left[] = {"0:Ready\n", "", "0:Ready", "anything\n"};
    struct place *place = *state;

    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(left); i++) {
        deliver_and_forget_idle(place);
        put(place, "response.txt", left[i]);
        kill_and_begin(place);
        assert_int_equal(state_of(place), JOURNAL_IDLE);
        assert_file(place, "response.txt", left[i]);
    }
    deliver_and_forget_idle(place);
    assert_int_equal(unlinkat(place->vm.directory.fd, "response.txt", 0), 0);
    kill_and_begin(place);
    assert_int_equal(state_of(place), JOURNAL_IDLE);
}

static void refusal_survives_a_kill_between_any_two_steps(void **state)
{
    struct place *place = *state;
    const struct timespec time = {.tv_sec = 1000};

    for (int taken = 0; taken < 2; taken++) {
        put(place, "response.txt", "0:Ready\n");
        put(place, "request.txt", "A:9:7:PING\n");
        set_time(place, "request.txt", time);
        accept_found(place);
        place->vm.journal.entry.state = JOURNAL_ACCEPTED; /* as step 1 wrote it */
        journal_store(&place->vm.journal, false, NULL);
        if (!taken) {
            put(place, "request.txt", "A:9:7:PING\n");
            set_time(place, "request.txt", time);
        }
        kill_and_begin(place);
        assert_int_equal(state_of(place), JOURNAL_ANSWERING);
        assert_int_equal(deliver(place), FILE_DELIVERY_DONE);
        assert_file(place, "request.txt", "");
        assert_file(place, "response.txt",
                    "2:priority '9' is not 0 (low), 1 (medium) or 2 (high)\n");
    }
}

static void directory_that_comes_late_is_reconciled_before_anything_is_delivered(void **state)
{
    struct place *place = *state;
    struct vgpu_error error;

    deliver_and_forget_idle(place);
    put(place, "response.txt", "0:Ready\n"); /* the answer was read */
    file_vm_close(&place->vm);
    file_vm_init(&place->vm, 7, &owner, true);
    assert_int_equal(journal_open(&place->vm.journal, place->state_fd, 7, 0, &error), 0);
    file_vm_recover(&place->vm, &place->rules); /* no directory */
    assert_int_equal(deliver(place), FILE_DELIVERY_LATER);
    assert_int_equal(directory_open(&place->vm.directory, place->share_fd, "vm7", &owner, &error),
                     0);
    assert_int_equal(deliver(place), FILE_DELIVERY_LATER);
    file_vm_recover(&place->vm, &place->rules);
    assert_int_equal(state_of(place), JOURNAL_IDLE);
    assert_file(place, "response.txt", "0:Ready\n");
}

static void all_files_are_emptied(void **state)
{
    struct place *place = *state;

    put(place, "request.txt", "a\n");
    put(place, "command.txt", "b\n");
    put(place, "response.txt", "c\n");
    file_vm_empty_files(&place->vm);
    assert_file(place, "request.txt", "");
    assert_file(place, "command.txt", "");
    assert_file(place, "response.txt", "");
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, place_make, place_remove)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(nothing_is_found_where_nothing_stands),
        CASE(request_is_found_with_what_it_claims),
        CASE(older_of_request_and_command_is_found_first),
        CASE(half_a_line_is_refused_only_after_its_time),
        CASE(half_a_line_that_grows_gets_its_time_again),
        CASE(nothing_is_found_while_a_request_is_outstanding),
        CASE(unregistered_vm_is_refused_unless_accepted),
        CASE(accepted_request_is_journalled_taken_and_ready_is_marked),
        CASE(answer_is_delivered_and_nothing_is_owed_any_more),
        CASE(refused_request_is_answered_without_running),
        CASE(ready_is_restored_after_the_hold_and_not_before),
        CASE(ready_is_not_restored_over_what_a_client_wrote),
        CASE(repeat_is_taken_away_and_another_request_withholds_the_answer),
        CASE(answer_waits_while_the_directory_is_away),
        CASE(request_stays_when_the_journal_cannot_be_written),
        CASE(killed_after_the_journal_takes_the_request_in_the_next_life),
        CASE(next_request_within_one_tick_is_not_taken_for_the_old_one),
        CASE(request_that_took_the_place_of_an_accepted_one_stays),
        CASE(killed_before_the_answer_was_written_owes_it),
        CASE(killed_in_the_write_that_changed_only_the_time_owes_the_answer),
        CASE(answer_that_stands_is_not_written_again),
        CASE(answer_that_was_read_is_not_written_again),
        CASE(refusal_survives_a_kill_between_any_two_steps),
        CASE(directory_that_comes_late_is_reconciled_before_anything_is_delivered),
        CASE(all_files_are_emptied),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
