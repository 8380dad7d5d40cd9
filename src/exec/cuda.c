/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The cuda backend: a GPU through NVIDIA's driver library.
 *
 *   open      the library and its start, with no guest's bytes in sight
 *   need      the context, with the slot pinned in it, when something asks for it
 *   rest      gives it up when nothing of the guest's is in it
 *   lost      an error that ends the context ends the process: a successor goes on
 *
 * The text commands run in memory like a guest's own, cleared and counted, and wait for their
 * end.
 */
#include "exec/cuda_private.h"

#include "kernels/kernels.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define MARKS_BYTES ((CUDA_LANES_MAX * sizeof(uint32_t) + 4095) / 4096 * 4096)
#define COMPILER "libnvidia-ptxjitcompiler.so.1"

struct cuda_session cuda_sessions[VGPU_SESSION_DEVICES_MAX];
unsigned cuda_session_count;
struct cuda_session *cuda_current;

static struct cuda_session *commands_session = cuda_sessions; /* where text commands run */

/* --- results ----------------------------------------------------------------------------- */

/* Those that end the context, or the device under it; VGPU_OK: it goes on.  The first kind is
 * the guest's own doing. */
static enum vgpu_status loss_of(cuda_result result)
{
    switch (result) {
    case CUDA_ILLEGAL_ADDRESS:
    case CUDA_LAUNCH_TIMEOUT:
    case CUDA_ASSERT:
    case CUDA_HARDWARE_STACK_ERROR:
    case CUDA_ILLEGAL_INSTRUCTION:
    case CUDA_MISALIGNED_ADDRESS:
    case CUDA_INVALID_ADDRESS_SPACE:
    case CUDA_INVALID_PC:
    case CUDA_LAUNCH_FAILED:
        return VGPU_KERNEL_FAULT;
    case CUDA_NOT_INITIALIZED:
    case CUDA_DEINITIALIZED:
    case CUDA_DEVICE_UNAVAILABLE:
    case CUDA_NO_DEVICE:
    case CUDA_INVALID_DEVICE:
    case CUDA_INVALID_CONTEXT:
    case CUDA_ECC_UNCORRECTABLE:
    case CUDA_NVLINK_UNCORRECTABLE:
    case CUDA_CONTAINED:
    case CUDA_OPERATING_SYSTEM:
    case CUDA_CONTEXT_IS_DESTROYED:
    case CUDA_UNKNOWN:
        return VGPU_DEVICE_LOST;
    default:
        return VGPU_OK;
    }
}

static enum vgpu_status note_loss(struct cuda_session *session, cuda_result result,
                                  const char *what)
{
    if (session->lost == VGPU_OK) {
        session->lost = loss_of(result);
        if (session->lost == VGPU_OK)
            session->lost = VGPU_DEVICE_LOST;
        log_error("worker: cannot %s: %s (%d)", what, cuda_error_name(&session->cuda, result),
                  result);
    }
    return session->lost;
}

/* A code that is in no table is of what was asked, as long as the context still works: a
 * guest's odd module must not make the device look lost. */
static enum vgpu_status odd_status(struct cuda_session *session, cuda_result result,
                                   const char *what, enum vgpu_status odd)
{
    cuda_result now;

    if (!session->context || session->lost != VGPU_OK)
        return note_loss(session, result, what);
    now = session->cuda.stream_query(NULL);
    if (now != CUDA_SUCCESS && now != CUDA_NOT_READY)
        return note_loss(session, now, what);
    if (!session->odd_is_told)
        log_warning("worker: cannot %s: %s (%d); its context still works", what,
                    cuda_error_name(&session->cuda, result), result);
    session->odd_is_told = true;
    return odd;
}

enum vgpu_status cuda_status_or(struct cuda_session *session, cuda_result result, const char *what,
                                enum vgpu_status odd)
{
    switch (result) {
    case CUDA_SUCCESS:
        return VGPU_OK;
    case CUDA_OUT_OF_MEMORY:
        return VGPU_OUT_OF_MEMORY;
    case CUDA_INVALID_VALUE:
    case CUDA_LAUNCH_OUT_OF_RESOURCES:
        return VGPU_INVALID;
    case CUDA_NOT_FOUND:
        return VGPU_NOT_FOUND;
    case CUDA_INVALID_HANDLE:
        return VGPU_BAD_HANDLE;
    case CUDA_NOT_READY:
        return VGPU_NOT_READY;
    case CUDA_INVALID_IMAGE:
    case CUDA_NO_BINARY_FOR_GPU:
    case CUDA_INVALID_PTX:
    case CUDA_UNSUPPORTED_PTX_VERSION:
        return VGPU_BAD_IMAGE;
    case CUDA_JIT_COMPILER_NOT_FOUND:
    case CUDA_JIT_COMPILATION_DISABLED:
    case CUDA_NOT_SUPPORTED:
        return VGPU_NOT_SUPPORTED;
    default:
        return loss_of(result) != VGPU_OK ? note_loss(session, result, what)
                                          : odd_status(session, result, what, odd);
    }
}

enum vgpu_status cuda_demand(struct cuda_session *session, cuda_result result, const char *what)
{
    return result == CUDA_SUCCESS ? VGPU_OK : note_loss(session, result, what);
}

/* --- the context --------------------------------------------------------------------------- */

/* Without a context there is nothing to switch to: cuda_need() makes one, which is then the
 * driver's current one. */
void cuda_switch(struct cuda_session *session)
{
    cuda_current = session;
    if (session->context && session->lost == VGPU_OK)
        cuda_demand(session, session->cuda.ctx_set_current(session->context),
                    "go to another device");
}

static enum vgpu_status make_marks(struct cuda_session *session)
{
    void *marks =
        mmap(NULL, MARKS_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    enum vgpu_status status;

    if (marks == MAP_FAILED)
        return VGPU_OUT_OF_MEMORY;
    status = cuda_status(
        session,
        session->cuda.mem_host_register(marks, MARKS_BYTES,
                                        CUDA_HOST_REGISTER_PORTABLE | CUDA_HOST_REGISTER_DEVICEMAP),
        "pin the page of marks");
    if (status != VGPU_OK) {
        munmap(marks, MARKS_BYTES);
        return status;
    }
    session->marks = marks;
    session->word_count = 0;
    for (uint32_t word = 0; word < CUDA_LANES_MAX; word++)
        session->words[session->word_count++] = (uint16_t)(CUDA_LANES_MAX - 1 - word);
    return cuda_status(session,
                       session->cuda.mem_host_get_device_pointer(&session->marks_address, marks, 0),
                       "map the page of marks");
}

bool cuda_slot_is_pinned(void)
{
    for (unsigned i = 0; i < cuda_session_count; i++) {
        if (cuda_sessions[i].slot_pinned)
            return true;
    }
    return false;
}

/* Where it fails, copies go through chunks that can be pinned (cuda_stage.c). */
static void pin_slot(struct cuda_session *session)
{
    const struct device_config *config = &session->config;
    cuda_result result;

    if (!config->slot || cuda_slot_is_pinned())
        return;
    result =
        session->cuda.mem_host_register(config->slot, config->slot_bytes,
                                        CUDA_HOST_REGISTER_PORTABLE | CUDA_HOST_REGISTER_DEVICEMAP);
    session->slot_pinned = result == CUDA_SUCCESS;
    if (!session->slot_pinned)
        log_warning("worker: cannot pin its slot: %s (%d); copies are slower",
                    cuda_error_name(&session->cuda, result), result);
}

static enum vgpu_status read_stack_bytes(struct cuda_session *session)
{
    size_t bytes = 0;
    enum vgpu_status status =
        cuda_status(session, session->cuda.ctx_get_limit(&bytes, CUDA_LIMIT_STACK_SIZE),
                    "read a context's limits");

    session->stack_bytes = bytes;
    return status;
}

static enum vgpu_status fill_context(struct cuda_session *session)
{
    enum vgpu_status status = make_marks(session);

    if (status == VGPU_OK)
        status = read_stack_bytes(session);
    pin_slot(session);
    if (status == VGPU_OK)
        status = cuda_lane_open(session, CUDA_STREAM_DEFAULT, true, &session->first);
    if (status == VGPU_OK)
        status = cuda_lane_open(session, CUDA_STREAM_NON_BLOCKING, false, &session->clear);
    return status;
}

/* Only this thread writes it; the mediator reads. */
static void count_contexts(const struct cuda_session *session, uint32_t change)
{
    uint32_t *contexts = session->config.contexts;

    if (contexts)
        __atomic_store_n(contexts, *contexts + change, __ATOMIC_RELEASE);
}

static void reach(struct cuda_session *session, const struct cuda_session *other)
{
    cuda_use(session);
    if (session->lost == VGPU_OK && session->cuda.ctx_enable_peer_access)
        (void)session->cuda.ctx_enable_peer_access(other->context, 0);
}

/* Where GPUs can reach each other's memory, copies between them go straight, ten times as
 * fast as through the host's; where they cannot, the driver does that. */
static void reach_others(struct cuda_session *session)
{
    for (unsigned i = 0; i < cuda_session_count; i++) {
        struct cuda_session *other = &cuda_sessions[i];

        if (other == session || !other->context || other->lost != VGPU_OK)
            continue;
        reach(other, session);
        reach(session, other);
    }
    cuda_use(session);
}

static void release_own(struct cuda_session *session)
{
    if (session->own_bytes > 0)
        share_release(session->memory.share, session->own_bytes);
    session->own_bytes = 0;
}

/* Before it is made: what its VM has no room for is refused as an allocation is. */
static enum vgpu_status reserve_context(struct cuda_session *session)
{
    const struct account_share *share = session->config.share;
    uint64_t bytes = share ? share_context_bytes(share) : 0;

    return bytes > 0 ? cuda_memory_reserve_own(session, bytes) : VGPU_OK;
}

enum vgpu_status cuda_make(struct cuda_session *session)
{
    enum vgpu_status status = reserve_context(session);

    if (status != VGPU_OK)
        return status;
    status = cuda_status(session,
                         session->cuda.ctx_create(&session->context,
                                                  CUDA_CONTEXT_SCHED_SPIN | CUDA_CONTEXT_MAP_HOST,
                                                  session->device),
                         "make a context");
    if (status != VGPU_OK) {
        session->context = NULL;
        release_own(session);
        return status;
    }
    count_contexts(session, 1);
    status = fill_context(session);
    if (status != VGPU_OK) {
        cuda_drop(session);
        return status;
    }
    reach_others(session);
    return session->lost;
}

/* The slot was pinned in a context that is gone: the others need it still. */
static void pin_slot_elsewhere(void)
{
    for (unsigned i = 0; i < cuda_session_count && !cuda_slot_is_pinned(); i++) {
        if (!cuda_sessions[i].context)
            continue;
        cuda_use(&cuda_sessions[i]);
        if (cuda_sessions[i].lost == VGPU_OK)
            pin_slot(&cuda_sessions[i]);
    }
}

/* What the driver takes for pinned after that, it will not pin again. */
static void unpin(struct cuda_session *session, void *memory)
{
    cuda_demand(session, session->cuda.mem_host_unregister(memory), "give pinned memory back");
}

/* Gives all that is in it back to the driver. */
static void end_context(struct cuda_session *session)
{
    cuda_memory_free_all(session);
    cuda_stage_end(session);
    if (session->slot_pinned)
        unpin(session, session->config.slot);
    cuda_lane_close(session, session->clear);
    cuda_lane_close(session, session->first);
    if (session->marks)
        unpin(session, session->marks);
    cuda_demand(session, session->cuda.ctx_destroy(session->context), "give up a context");
    if (session->local_bytes > 0)
        share_release(session->config.share, session->local_bytes);
    session->local_bytes = 0;
}

void cuda_drop(struct cuda_session *session)
{
    bool pinned = session->slot_pinned;

    if (!session->context)
        return;
    if (session->lost == VGPU_OK)
        end_context(session);
    cuda_current = NULL;
    session->first = session->clear = NULL;
    if (session->marks)
        munmap(session->marks, MARKS_BYTES);
    free(session->builtin_functions);
    session->builtin_functions = NULL;
    session->known.function = NULL;
    session->marks = NULL;
    session->builtin = NULL;
    session->scratch = 0;
    session->scratch_free = NULL;
    session->stage = (struct cuda_stage){.memory = NULL};
    session->context = NULL;
    release_own(session);
    session->slot_pinned = false;
    count_contexts(session, -1u);
    if (pinned)
        pin_slot_elsewhere();
}

static bool has_own_streams(const struct cuda_session *session)
{
    const struct cuda_lane *lane;

    LIST_FOREACH (lane, &session->lanes, link) {
        if (lane != session->first && lane != session->clear)
            return true;
    }
    return false;
}

bool cuda_is_empty(const struct cuda_session *session)
{
    return session->memory.count == 0 && session->event_count == 0 && session->module_count == 0 &&
           !has_own_streams(session);
}

void cuda_rest(struct cuda_session *session)
{
    if (session->context && session->lost == VGPU_OK)
        cuda_memory_free_spares(session);
    if (cuda_is_empty(session))
        cuda_drop(session);
}

/* --- start -------------------------------------------------------------------------------- */

static int fail(struct cuda_session *session, cuda_result result, struct vgpu_error *error,
                const char *what)
{
    return error_set(error, EIO, "cannot %s: %s (%d)", what,
                     cuda_error_name(&session->cuda, result), result);
}

/* "GPU-" and 32 digits in groups, as the driver's tools write it. */
static void write_uuid(const cuda_uuid *uuid, char text[48])
{
    static const uint8_t group_ends[] = {4, 6, 8, 10, 16};
    char *at = text + sprintf(text, "GPU");
    unsigned byte = 0;

    for (unsigned group = 0; group < sizeof(group_ends); group++) {
        *at++ = '-';
        for (; byte < group_ends[group]; byte++)
            at += sprintf(at, "%02x", (uint8_t)uuid->bytes[byte]);
    }
}

static int find_uuid(struct cuda_session *session, const char *wanted, struct vgpu_error *error)
{
    int count = 0;

    session->cuda.device_get_count(&count);
    for (int i = 0; i < count; i++) {
        cuda_uuid uuid;
        char text[48];

        if (session->cuda.device_get(&session->device, i) != CUDA_SUCCESS ||
            session->cuda.device_get_uuid(&uuid, session->device) != CUDA_SUCCESS)
            continue;
        write_uuid(&uuid, text);
        if (strcasecmp(text, wanted) == 0)
            return 0;
    }
    return error_set(error, ENODEV, "none of %d GPUs is %s", count, wanted);
}

static int find_device(struct cuda_session *session, const char *name, struct vgpu_error *error)
{
    cuda_result result;
    uint64_t index = 0;

    if (strncmp(name, "GPU-", 4) == 0)
        return find_uuid(session, name, error);
    /* A MIG instance is the only one that is visible. */
    if (strncmp(name, "MIG-", 4) == 0 || strcmp(name, "cuda") == 0)
        result = session->cuda.device_get(&session->device, 0);
    else if (strncmp(name, "cuda:", 5) == 0 && text_parse_u64(name + 5, 0, 63, &index))
        result = session->cuda.device_get(&session->device, (int)index);
    else
        result = session->cuda.device_get_by_pci_bus_id(&session->device, name);
    return result == CUDA_SUCCESS ? 0 : fail(session, result, error, "find its GPU");
}

/* Grids are made for so many. */
static int count_multiprocessors(struct cuda_session *session, struct vgpu_error *error)
{
    int threads = 0;
    cuda_result result = session->cuda.device_get_attribute(
        &session->multiprocessors, CUDA_DEVICE_MULTIPROCESSOR_COUNT, session->device);

    if (result == CUDA_SUCCESS)
        result = session->cuda.device_get_attribute(
            &threads, CUDA_DEVICE_MAX_THREADS_PER_MULTIPROCESSOR, session->device);
    session->thread_count = (uint64_t)session->multiprocessors * (uint64_t)threads;
    return result == CUDA_SUCCESS ? 0 : fail(session, result, error, "count its multiprocessors");
}

static void describe_device(struct cuda_session *session)
{
    char name[128] = "unknown GPU";
    int major = 0, minor = 0;
    size_t bytes = 0;

    session->cuda.device_get_name(name, sizeof(name), session->device);
    session->cuda.device_total_mem(&bytes, session->device);
    session->cuda.device_get_attribute(&major, CUDA_DEVICE_COMPUTE_CAPABILITY_MAJOR,
                                       session->device);
    session->cuda.device_get_attribute(&minor, CUDA_DEVICE_COMPUTE_CAPABILITY_MINOR,
                                       session->device);
    session->cuda.device_get_attribute(
        &session->shared_bytes_max, CUDA_DEVICE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, session->device);
    snprintf(session->description, sizeof(session->description),
             "CUDA backend: %s, %zu MiB, %d multiprocessors, compute capability %d.%d, driver "
             "CUDA %d.%d",
             name, bytes >> 20, session->multiprocessors, major, minor,
             session->cuda.version / 1000, session->cuda.version % 1000 / 10);
}

/* No file may be opened later: the compiler of PTX is a library of its own, and a cache of
 * what it made would be shared by VMs. */
static void prepare_environment(const char *device)
{
    setenv("CUDA_CACHE_DISABLE", "1", 1);
    setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID", 1);
    if (strncmp(device, "MIG-", 4) == 0)
        setenv("CUDA_VISIBLE_DEVICES", device, 1);
    (void)dlopen(COMPILER, RTLD_NOW | RTLD_GLOBAL);
}

static int take_device(struct cuda_session *session, const char *name, struct vgpu_error *error)
{
    if (find_device(session, name, error) < 0 || count_multiprocessors(session, error) < 0)
        return -1;
    describe_device(session);
    return 0;
}

static int open_device(struct cuda_session *session, const struct cuda *cuda, const char *name,
                       struct vgpu_error *error)
{
    session->cuda = *cuda;
    LIST_INIT(&session->lanes);
    return take_device(session, name, error);
}

static int cuda_open(const struct exec_backend_config *config, struct vgpu_error *error)
{
    struct cuda cuda;
    struct cuda_session *session = cuda_sessions;
    char name[EXEC_DEVICE_BYTES];
    cuda_result result;

    prepare_environment(config->device);
    if (cuda_load(config->cuda_library, &cuda, error) < 0)
        return -1;
    session->cuda = cuda; /* for the names of its errors */
    result = cuda.init(0);
    if (result != CUDA_SUCCESS)
        return fail(session, result, error, "start NVIDIA's driver library");
    for (unsigned i = 0;
         i < VGPU_SESSION_DEVICES_MAX && text_word(config->device, i, name, sizeof(name)); i++) {
        if (open_device(&cuda_sessions[i], &cuda, name, error) < 0)
            return -1;
        cuda_session_count++;
    }
    return cuda_session_count > 0 ? 0 : error_set(error, ENODEV, "no GPU was named to it");
}

static void cuda_close(void)
{
    for (unsigned i = 0; i < cuda_session_count; i++) {
        cuda_drop(cuda_use(&cuda_sessions[i]));
        cuda_memory_close(&cuda_sessions[i].memory);
    }
}

static bool cuda_is_lost(void)
{
    for (unsigned i = 0; i < cuda_session_count; i++) {
        if (cuda_sessions[i].lost != VGPU_OK)
            return true;
    }
    return false;
}

static void cuda_choose(unsigned index)
{
    commands_session = &cuda_sessions[index];
}

/* The library knows all GPUs since its start; of one without a context the process has nothing. */
static int cuda_move(const char *device, struct vgpu_error *error)
{
    struct cuda_session *session = cuda_sessions;

    if (cuda_session_count != 1 || session->context)
        return error_set(error, EBUSY, "cannot go to %s: %s", device,
                         session->context ? "it has a context" : "it has several devices");
    return take_device(session, device, error);
}

static uint32_t cuda_contexts(void)
{
    uint32_t count = 0;

    for (unsigned i = 0; i < cuda_session_count; i++)
        count += cuda_sessions[i].context != NULL;
    return count;
}

static void cuda_describe(char *text, size_t bytes)
{
    text_copy(text, bytes, commands_session->description);
}

/* --- text commands ------------------------------------------------------------------------------
 */

#define COMMAND_BUFFERS 3

/* One command's memory on the device. */
struct command {
    struct cuda_session *session;
    uint64_t at[COMMAND_BUFFERS];
    enum vgpu_status status;
};

/* A worker of file requests has no account: what it takes counts here, up to what its GPU has. */
static enum vgpu_status need_memory(struct cuda_session *session)
{
    static struct account_memory account = {.limit_bytes = UINT64_MAX};
    static const struct account_share share = {.memory = &account};
    struct vgpu_error error;

    if (session->memory.allocations)
        return VGPU_OK;
    return cuda_memory_open(&session->memory, &share, &error) < 0 ? VGPU_OUT_OF_MEMORY : VGPU_OK;
}

static void command_begin(struct command *command)
{
    *command = (struct command){.session = cuda_use(commands_session)};
    command->status = need_memory(command->session);
    if (command->status == VGPU_OK)
        command->status = cuda_need(command->session);
}

static void command_tell(struct command *command, cuda_result result, const char *what)
{
    if (command->status == VGPU_OK)
        command->status = cuda_status(command->session, result, what);
}

/* Other streams' kernels can read all memory of the context, so it is clear before it is used. */
static enum vgpu_status command_clear(struct cuda_session *session, struct cuda_block *block)
{
    enum vgpu_status status;

    if (block->cleared == CUDA_NEVER) {
        status = cuda_memory_clear(session, block);
        if (status != DEVICE_BEGUN)
            return status;
    }
    return cuda_status(session, session->cuda.stream_synchronize(session->clear->stream),
                       "clear device memory");
}

static enum vgpu_status command_take(struct cuda_session *session, uint64_t bytes,
                                     uint64_t *ret_address)
{
    struct cuda_block *block;
    enum vgpu_status status = cuda_memory_alloc(session, bytes, ret_address, &block);

    if (status == VGPU_OK) {
        status = command_clear(session, block);
        if (status != VGPU_OK)
            cuda_memory_free(session, *ret_address);
    }
    if (status != VGPU_OK)
        *ret_address = 0;
    return status;
}

static void command_put(struct command *command, unsigned buffer, const void *source, size_t bytes)
{
    const struct cuda *cuda = &command->session->cuda;

    if (command->status == VGPU_OK)
        command->status = command_take(command->session, bytes, &command->at[buffer]);
    if (command->status == VGPU_OK && source)
        command_tell(command, cuda->memcpy_htod_async(command->at[buffer], source, bytes, NULL),
                     "copy to the device");
}

static void command_run(struct command *command, const char *name, const uint64_t *parameters)
{
    struct cuda_session *session = command->session;

    if (command->status == VGPU_OK)
        command->status = cuda_launch_builtin(session, session->first, name, parameters);
}

static void command_get(struct command *command, void *target, unsigned buffer, size_t bytes)
{
    const struct cuda *cuda = &command->session->cuda;

    if (command->status == VGPU_OK)
        command_tell(command, cuda->memcpy_dtoh_async(target, command->at[buffer], bytes, NULL),
                     "copy from the device");
}

static int command_end(struct command *command, struct vgpu_error *error)
{
    static const char *const words[] = {
        [VGPU_OUT_OF_MEMORY] =
            "out of memory: the GPU or the VM's limit has no more: try a smaller one, or later",
        [VGPU_TOO_MANY] = "its session has too many allocations: free some",
        [VGPU_KERNEL_FAULT] = "its kernel did what the GPU forbids",
    };
    const struct cuda *cuda = &command->session->cuda;
    const char *word = NULL;

    if (command->session->context && command->session->lost == VGPU_OK)
        command_tell(command, cuda->stream_synchronize(NULL), "run a command");
    for (unsigned i = 0; i < COMMAND_BUFFERS; i++) {
        if (command->at[i])
            cuda_memory_free(command->session, command->at[i]);
    }
    if (command->status == VGPU_OK)
        command->status = command->session->lost;
    if (command->status == VGPU_OK)
        return 0;
    if ((size_t)command->status < VGPU_ARRAY_LENGTH(words))
        word = words[command->status];
    return error_set(error, EIO, "%s", word ? word : "the GPU does not work");
}

static int cuda_vector_add(const float *a, const float *b, float *sum, size_t count,
                           struct vgpu_error *error)
{
    struct command command;

    command_begin(&command);
    command_put(&command, 0, NULL, count * sizeof(*sum));
    command_put(&command, 1, a, count * sizeof(*a));
    command_put(&command, 2, b, count * sizeof(*b));
    command_run(&command, "vector_add",
                (const uint64_t[]){command.at[0], command.at[1], command.at[2], count});
    command_get(&command, sum, 0, count * sizeof(*sum));
    return command_end(&command, error);
}

static int cuda_matrix_mul(const float *a, const float *b, float *product, size_t n,
                           struct vgpu_error *error)
{
    size_t bytes = n * n * sizeof(*product);
    struct command command;

    command_begin(&command);
    command_put(&command, 0, NULL, bytes);
    command_put(&command, 1, a, bytes);
    command_put(&command, 2, b, bytes);
    command_run(&command, "matrix_mul",
                (const uint64_t[]){command.at[0], command.at[1], command.at[2], n});
    command_get(&command, product, 0, bytes);
    return command_end(&command, error);
}

static int cuda_reduce(const float *x, size_t count, double *ret_sum, struct vgpu_error *error)
{
    struct command command;

    command_begin(&command);
    command_put(&command, 0, NULL, sizeof(*ret_sum));
    command_put(&command, 1, x, count * sizeof(*x));
    command_run(&command, "reduce_sum", (const uint64_t[]){command.at[0], command.at[1], count});
    command_get(&command, ret_sum, 0, sizeof(*ret_sum));
    return command_end(&command, error);
}

/* The device's own clock says when it is over. */
static int cuda_spin(uint32_t spin_ms, struct vgpu_error *error)
{
    struct command command;

    command_begin(&command);
    command_run(&command, "spin_us", (const uint64_t[]){(uint64_t)spin_ms * US_PER_MS});
    return command_end(&command, error);
}

const struct exec_backend exec_backend_cuda = {
    .name = "cuda",
    .driver = true,
    .open = cuda_open,
    .close = cuda_close,
    .lost = cuda_is_lost,
    .choose = cuda_choose,
    .move = cuda_move,
    .contexts = cuda_contexts,
    .vector_add = cuda_vector_add,
    .matrix_mul = cuda_matrix_mul,
    .reduce = cuda_reduce,
    .spin = cuda_spin,
    .describe = cuda_describe,
    .device = &cuda_device_ops,
};
