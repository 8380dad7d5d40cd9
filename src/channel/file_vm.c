/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One VM of the file channel: how each request gets exactly one answer, though
 * the mediator may be killed between any two system calls.
 *
 *   accept    1 journal ACCEPTED (synced)        killed before: not accepted, the
 *                                                request still stands there
 *             2 response.txt = 0:Ready, marked   killed before 3: request.txt is the
 *             3 request.txt emptied              one in the journal: 2 and 3 again
 *   run       (the worker keeps its result)
 *   answer    4 journal ANSWERING, with the answer    (so 2 and 3 are done)
 *             5 response.txt = answer            killed around 5: the mark tells
 *             6 journal IDLE
 *
 * The mark is an empty line behind 0:Ready, which nobody else writes.  As long as
 * it is there, nobody has written since, so the answer is still owed.  Once it is
 * gone, the answer was written, and the client may already have put 0:Ready back
 * for its next request: to write the answer again would give that request a wrong
 * one.  (The time of modification is no mark: a process that is killed in write(2)
 * can have changed it, and not the contents.)
 *
 * Step 2 comes before 3 so that an empty request.txt proves both.
 */
#include "channel/private.h"

#include <stdio.h>
#include <string.h>

#define READY_LINE VGPU_FILE_READY "\n"

/* 0:Ready of a request that was taken; to be seen only until its answer. */
#define MARKED_READY READY_LINE "\n"

static const char *source_name(bool from_command_file)
{
    return from_command_file ? VGPU_FILE_COMMAND : VGPU_FILE_REQUEST;
}

void file_vm_report_trouble(struct file_vm *vm, const struct vgpu_error *error)
{
    if (!vm->trouble)
        log_error("vm%u: %s; trying again", vm->vm_id, error->message);
    vm->trouble = true;
}

static void report_recovery(struct file_vm *vm)
{
    if (vm->trouble)
        log_info("vm%u: its directory works again", vm->vm_id);
    vm->trouble = false;
}

void file_vm_init(struct file_vm *vm, uint32_t vm_id, const struct directory_owner *owner,
                  bool registered)
{
    *vm = (struct file_vm){.vm_id = vm_id,
                           .registered = registered,
                           .owner = *owner,
                           .directory.fd = -1,
                           .journal.file.fd = -1,
                           .watch = -1,
                           .answer_watch = -1};
    snprintf(vm->name, sizeof(vm->name), "vm%u", vm_id);
}

void file_vm_close(struct file_vm *vm)
{
    directory_close(&vm->directory);
    journal_close(&vm->journal);
}

/* --- looking ------------------------------------------------------------------- */

/* Half a line is not a request; half a line that stays one is a mistake. */
static bool judge_unterminated(struct file_vm *vm, const struct file_rules *rules, uint64_t now_ns,
                               struct file_candidate *candidate)
{
    struct unterminated_line *line = &vm->unterminated[candidate->from_command_file];

    if (line->since_ns == 0 || !file_identity_equal(&line->identity, &candidate->identity))
        *line = (struct unterminated_line){candidate->identity, now_ns};
    if (now_ns - line->since_ns < rules->unterminated_hold_ms * NS_PER_MS)
        return false;
    error_set(&candidate->error, 0,
              "request has no newline at its end after %u ms: end it with one",
              rules->unterminated_hold_ms);
    candidate->refused = true;
    return true;
}

static bool judge_text(struct file_vm *vm, const struct file_rules *rules, uint64_t now_ns,
                       const char *text, size_t bytes, struct file_candidate *candidate)
{
    const struct protocol_context context = {.vm_id = vm->vm_id, .pools = rules->pools};
    enum protocol_verdict verdict;

    if (candidate->from_command_file)
        verdict = protocol_parse_command_file(text, bytes, &context, &candidate->request,
                                              &candidate->error);
    else
        verdict =
            protocol_parse_request(text, bytes, &context, &candidate->request, &candidate->error);
    switch (verdict) {
    case PROTOCOL_EMPTY:
        return false;
    case PROTOCOL_INCOMPLETE:
        return judge_unterminated(vm, rules, now_ns, candidate);
    case PROTOCOL_MALFORMED:
        candidate->refused = true;
        return true;
    case PROTOCOL_REQUEST:
        return true;
    }
    return false;
}

static bool look_at_file(struct file_vm *vm, const struct file_rules *rules, bool command_file,
                         uint64_t now_ns, struct file_candidate *candidate, bool *failed)
{
    char text[DIRECTORY_READ_MAX_BYTES];
    size_t bytes = 0;

    *candidate = (struct file_candidate){.vm = vm, .from_command_file = command_file};
    switch (directory_read(&vm->directory, source_name(command_file), rules->force_open, text,
                           &bytes, &candidate->identity, &candidate->error)) {
    case DIRECTORY_DATA:
        return !file_identity_equal(&vm->handled[command_file], &candidate->identity) &&
               judge_text(vm, rules, now_ns, text, bytes, candidate);
    case DIRECTORY_HOSTILE:
        candidate->hostile = candidate->refused = true;
        return !file_identity_equal(&vm->handled[command_file], &candidate->identity);
    case DIRECTORY_FAILED:
        file_vm_report_trouble(vm, &candidate->error);
        *failed = true;
        return false;
    case DIRECTORY_ABSENT:
        vm->unterminated[command_file].since_ns = 0;
        return false;
    }
    return false;
}

static void refuse_unregistered(struct file_candidate *candidate)
{
    candidate->refused = true;
    error_set(&candidate->error, 0,
              "VM %u is not registered: the administrator registers it (vgpu-admin register-vm, or "
              "[vm %u] in the mediator's configuration), or sets unregistered = accept",
              candidate->vm->vm_id, candidate->vm->vm_id);
}

bool file_vm_look(struct file_vm *vm, const struct file_rules *rules, uint64_t now_ns,
                  struct file_candidate *ret_candidate)
{
    struct file_candidate request, command;
    bool has_request, has_command, failed = false;

    if (vm->journal.entry.state != JOURNAL_IDLE)
        return false; /* one request at a time */
    has_request = look_at_file(vm, rules, false, now_ns, &request, &failed);
    has_command = look_at_file(vm, rules, true, now_ns, &command, &failed);
    if (!failed)
        report_recovery(vm);
    if (!has_request && !has_command)
        return false;
    if (has_request && (!has_command || request.identity.mtime_ns <= command.identity.mtime_ns))
        *ret_candidate = request;
    else
        *ret_candidate = command;
    if (!vm->registered && !rules->accept_unregistered)
        refuse_unregistered(ret_candidate);
    return true;
}

/* --- accepting ------------------------------------------------------------------ */

static void fill_entry(struct journal_entry *entry, const struct file_candidate *candidate)
{
    uint64_t sequence = entry->sequence + 1;

    *entry = (struct journal_entry){
        .state = JOURNAL_ACCEPTED,
        .vm_id = candidate->vm->vm_id,
        .sequence = sequence,
        .arrival_ns = clock_realtime_ns(),
        .taken = candidate->identity,
        .from_command_file = candidate->from_command_file,
        .has_claim = !candidate->from_command_file,
        .claimed_pool = candidate->request.pool,
        .claimed_priority = candidate->request.priority,
    };
    text_copy(entry->command, sizeof(entry->command), candidate->request.command);
    if (candidate->refused) {
        struct protocol_response response = {.success = false};

        text_copy(response.message, sizeof(response.message), candidate->error.message);
        protocol_format_response(&response, entry->answer, sizeof(entry->answer));
    }
}

/* Steps 2 and 3.  Trouble here is not the end: the request is in the journal. */
static void take_request(struct file_vm *vm, bool hostile)
{
    const struct journal_entry *entry = &vm->journal.entry;
    const char *source = source_name(entry->from_command_file);
    struct file_identity ignored;
    struct vgpu_error error;

    if (directory_write(&vm->directory, VGPU_FILE_RESPONSE, MARKED_READY, &ignored, &error) < 0)
        file_vm_report_trouble(vm, &error);
    fault_point("ready");
    if (hostile) {
        if (directory_remove_hostile(&vm->directory, source) < 0)
            vm->handled[entry->from_command_file] = entry->taken;
    } else if (directory_take(&vm->directory, source, &entry->taken, &error) < 0) {
        vm->take_pending = true;
        file_vm_report_trouble(vm, &error);
        return;
    }
    vm->take_pending = false;
    fault_point("taken");
}

static void store_unsynced(struct file_vm *vm)
{
    struct vgpu_error error;

    if (journal_store(&vm->journal, false, &error) < 0)
        log_error("vm%u: %s", vm->vm_id, error.message);
}

/* Step 4: the answer is in the entry. */
static void begin_answering(struct file_vm *vm)
{
    vm->journal.entry.state = JOURNAL_ANSWERING;
    vm->journal.entry.standing = vm->take_pending;
    store_unsynced(vm);
    fault_point("answering");
}

static bool store_accepted(struct file_vm *vm)
{
    struct vgpu_error error;

    if (journal_store(&vm->journal, true, &error) < 0) {
        if (!vm->journal_trouble)
            log_error("vm%u: cannot accept its request: %s; it stays where it is, trying again",
                      vm->vm_id, error.message);
        vm->journal_trouble = true;
        return false;
    }
    if (vm->journal_trouble)
        log_info("vm%u: its requests are accepted again", vm->vm_id);
    vm->journal_trouble = false;
    return true;
}

bool file_vm_accept(struct file_vm *vm, const struct file_candidate *candidate)
{
    struct journal_entry before = vm->journal.entry;

    fill_entry(&vm->journal.entry, candidate);
    if (!store_accepted(vm)) {
        vm->journal.entry = before;
        return false;
    }
    fault_point("journaled");
    vm->unterminated[candidate->from_command_file].since_ns = 0;
    vm->hold_until_ns = 0;
    vm->answer_unread = false;
    take_request(vm, candidate->hostile);
    if (candidate->refused)
        begin_answering(vm);
    return true;
}

void file_vm_describe_request(const struct file_vm *vm, bool recovered,
                              struct channel_request *ret_request)
{
    const struct journal_entry *entry = &vm->journal.entry;

    *ret_request = (struct channel_request){
        .vm_id = vm->vm_id,
        .identity = vm->identity,
        .sequence = entry->sequence,
        .arrival_ns = entry->arrival_ns,
        .has_claim = entry->has_claim,
        .claimed_pool = entry->claimed_pool,
        .claimed_priority = entry->claimed_priority,
        .recovered = recovered,
    };
    text_copy(ret_request->command, sizeof(ret_request->command), entry->command);
}

/* --- answering ------------------------------------------------------------------- */

void file_vm_set_answer(struct file_vm *vm, const struct protocol_response *response)
{
    struct journal_entry *entry = &vm->journal.entry;

    protocol_format_response(response, entry->answer, sizeof(entry->answer));
    begin_answering(vm);
}

static bool same_request(const struct file_vm *vm, const struct file_rules *rules, const char *text,
                         size_t bytes)
{
    const struct protocol_context context = {.vm_id = vm->vm_id, .pools = rules->pools};
    const struct journal_entry *entry = &vm->journal.entry;
    struct protocol_request request = {.pool = entry->claimed_pool,
                                       .priority = entry->claimed_priority};
    struct vgpu_error error;
    enum protocol_verdict verdict;

    if (entry->from_command_file)
        verdict = protocol_parse_command_file(text, bytes, &context, &request, &error);
    else
        verdict = protocol_parse_request(text, bytes, &context, &request, &error);
    return verdict == PROTOCOL_REQUEST && request.pool == entry->claimed_pool &&
           request.priority == entry->claimed_priority &&
           strcmp(request.command, entry->command) == 0;
}

static bool is_blank(const char *text, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++) {
        if (text[i] != ' ' && text[i] != '\t' && text[i] != '\r' && text[i] != '\n')
            return false;
    }
    return true;
}

/*
 * A client that puts a new request in the place of one that has no answer yet
 * no longer waits for that answer, and would take it for the new one's.  The
 * same request again is a repeat: an NFS client sends its data once more when
 * the server was restarted, a person runs the command again.  One answer is
 * right for both.
 */
static bool client_moved_on(struct file_vm *vm, const struct file_rules *rules)
{
    const struct journal_entry *entry = &vm->journal.entry;
    const char *source = source_name(entry->from_command_file);
    char text[DIRECTORY_READ_MAX_BYTES];
    struct file_identity identity;
    struct vgpu_error error;
    size_t bytes;

    if (directory_read(&vm->directory, source, rules->force_open, text, &bytes, &identity,
                       &error) != DIRECTORY_DATA ||
        is_blank(text, bytes))
        return false;
    if (vm->take_pending && file_identity_equal(&identity, &entry->taken))
        return false;
    if (!same_request(vm, rules, text, bytes))
        return true;
    return directory_take(&vm->directory, source, &identity, &error) < 0;
}

static void finish(struct file_vm *vm)
{
    if (vm->take_pending) /* it will be seen again, and must not be taken again */
        vm->handled[vm->journal.entry.from_command_file] = vm->journal.entry.taken;
    vm->take_pending = false;
    vm->journal.entry.state = JOURNAL_IDLE;
    store_unsynced(vm);
    fault_point("idle");
}

enum file_delivery file_vm_deliver(struct file_vm *vm, const struct file_rules *rules)
{
    struct journal_entry *entry = &vm->journal.entry;
    struct vgpu_error error;

    if (vm->directory.fd < 0 || !vm->reconciled)
        return FILE_DELIVERY_LATER;
    if (vm->take_pending)
        take_request(vm, false);
    if (client_moved_on(vm, rules)) {
        finish(vm);
        return FILE_DELIVERY_WITHHELD;
    }
    if (directory_write(&vm->directory, VGPU_FILE_RESPONSE, entry->answer, &vm->answer_file,
                        &error) < 0) {
        file_vm_report_trouble(vm, &error);
        return FILE_DELIVERY_LATER;
    }
    fault_point("answered");
    vm->answer_unread = true;
    finish(vm);
    return FILE_DELIVERY_DONE;
}

void file_vm_hold_answer(struct file_vm *vm, const struct file_rules *rules)
{
    vm->hold_until_ns = clock_monotonic_ns() + rules->response_hold_ms * NS_PER_MS;
}

void file_vm_restore_ready(struct file_vm *vm, const struct file_rules *rules, uint64_t now_ns)
{
    struct file_identity ignored;
    struct vgpu_error error;

    if (vm->hold_until_ns == 0 || now_ns < vm->hold_until_ns)
        return;
    vm->hold_until_ns = 0;
    if (vm->directory.fd < 0 || file_vm_answer_replaced(vm, rules))
        return;
    if (directory_write(&vm->directory, VGPU_FILE_RESPONSE, READY_LINE, &ignored, &error) < 0)
        file_vm_report_trouble(vm, &error);
}

bool file_vm_answer_replaced(const struct file_vm *vm, const struct file_rules *rules)
{
    struct file_identity identity;

    return !directory_identify(&vm->directory, VGPU_FILE_RESPONSE, rules->force_open, &identity) ||
           !file_identity_equal(&identity, &vm->answer_file);
}

uint64_t file_vm_deadline_ns(const struct file_vm *vm, const struct file_rules *rules)
{
    uint64_t deadline_ns = vm->hold_until_ns > 0 ? vm->hold_until_ns : UINT64_MAX;

    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(vm->unterminated); i++) {
        uint64_t since_ns = vm->unterminated[i].since_ns;
        uint64_t refuse_ns = since_ns + rules->unterminated_hold_ms * NS_PER_MS;

        if (since_ns > 0 && refuse_ns < deadline_ns)
            deadline_ns = refuse_ns;
    }
    return deadline_ns;
}

/* --- after a restart --------------------------------------------------------------- */

/*
 * Is the request that the journal holds still in its file?  Inode and time alone
 * do not tell: a client that is fast puts its next request into the same file
 * within one tick of the file system's clock.
 */
static bool request_not_taken(struct file_vm *vm, const struct file_rules *rules, bool *ret_hostile)
{
    const struct journal_entry *entry = &vm->journal.entry;
    char text[DIRECTORY_READ_MAX_BYTES];
    struct file_identity identity;
    struct vgpu_error error;
    enum directory_look look;
    size_t bytes;

    look = directory_read(&vm->directory, source_name(entry->from_command_file), rules->force_open,
                          text, &bytes, &identity, &error);
    *ret_hostile = look == DIRECTORY_HOSTILE;
    if ((look != DIRECTORY_DATA && look != DIRECTORY_HOSTILE) ||
        !file_identity_equal(&identity, &entry->taken))
        return false;
    return entry->answer[0] != '\0' || same_request(vm, rules, text, bytes);
}

/* What response.txt says of the answer in the journal. */
enum answer_evidence { ANSWER_OWED, ANSWER_STANDS, ANSWER_CONSUMED, ANSWER_UNKNOWN };

static enum answer_evidence judge_answer(struct file_vm *vm, struct file_identity *identity)
{
    const char *answer = vm->journal.entry.answer;
    char text[DIRECTORY_READ_MAX_BYTES];
    struct vgpu_error error;
    size_t bytes = 0;

    switch (
        directory_read(&vm->directory, VGPU_FILE_RESPONSE, true, text, &bytes, identity, &error)) {
    case DIRECTORY_HOSTILE:
        return ANSWER_OWED;
    case DIRECTORY_FAILED:
        file_vm_report_trouble(vm, &error);
        return ANSWER_UNKNOWN;
    case DIRECTORY_ABSENT: /* a client may empty or remove what it has read */
    case DIRECTORY_DATA:
        break;
    }
    if (bytes >= strlen(answer) && memcmp(text, answer, strlen(answer)) == 0)
        return ANSWER_STANDS;
    if (bytes == strlen(MARKED_READY) && memcmp(text, MARKED_READY, bytes) == 0)
        return ANSWER_OWED;
    return ANSWER_CONSUMED;
}

void file_vm_recover(struct file_vm *vm, const struct file_rules *rules)
{
    struct journal_entry *entry = &vm->journal.entry;
    bool accepted = entry->state == JOURNAL_ACCEPTED;
    struct file_identity identity;
    bool hostile;

    if (vm->directory.fd < 0)
        return;
    vm->reconciled = true;
    /* Later states say that it was taken, and what stands there is the next one, or
     * that it cannot be. */
    if (accepted && request_not_taken(vm, rules, &hostile))
        take_request(vm, hostile);
    else if (!accepted && entry->standing && request_not_taken(vm, rules, &hostile))
        vm->handled[entry->from_command_file] = entry->taken;
    if (accepted && entry->answer[0] != '\0')
        begin_answering(vm);
    if (accepted || entry->answer[0] == '\0')
        return;
    switch (judge_answer(vm, &identity)) {
    case ANSWER_UNKNOWN:
        vm->reconciled = false;
        return;
    case ANSWER_OWED:
        return; /* to be delivered; where it was withheld, IDLE says so */
    case ANSWER_STANDS:
        vm->answer_file = identity;
        file_vm_hold_answer(vm, rules); /* it may have been read long ago */
        break;
    case ANSWER_CONSUMED:
        break;
    }
    if (entry->state == JOURNAL_ANSWERING)
        finish(vm);
}

void file_vm_empty_files(struct file_vm *vm)
{
    static const char *const names[] = {VGPU_FILE_REQUEST, VGPU_FILE_COMMAND, VGPU_FILE_RESPONSE};
    struct vgpu_error error;

    if (vm->directory.fd < 0)
        return;
    for (size_t i = 0; i < VGPU_ARRAY_LENGTH(names); i++) {
        if (directory_empty(&vm->directory, names[i], &error) < 0)
            log_error("vm%u: %s", vm->vm_id, error.message);
    }
}
