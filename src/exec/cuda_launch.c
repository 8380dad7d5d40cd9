/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Kernels: built-in ones by name, and those of modules that the guest loaded.
 *
 * A built-in kernel runs on addresses that were checked, with a grid of ours.  A guest's
 * own kernel may do what it likes: the GPU's page tables are its bounds.  Its parameters
 * are checked against what the module says that it takes, since the driver would read
 * beyond them.
 *
 * Both take memory of the device by no allocation, which counts against the limit of the VM:
 *   a module   what the device had less of when it was loaded, and when a kernel was asked for
 *              first, whose code comes only then; at least what its cubin says.  What else the
 *              device gives and takes in that instant, for other processes, is in the former:
 *              a VM can choose it, and not the latter
 *   a kernel   local memory, its stack and spilled registers, for each thread that the device
 *              can hold; the driver keeps that of the kernel that needs most
 */
#include "exec/cubin.h"
#include "exec/cuda_private.h"
#include "kernels/kernels.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <uthash.h>

#define WORD_BYTES sizeof(uint64_t)
#define WORDS_MAX (VGPU_PARAMETERS_MAX_BYTES / WORD_BYTES)
#define TRIES_MAX 2u        /* at a load that seems to be too large */
#define LOADS_OF_UNKNOWN 3u /* to measure what says nothing of itself that could be read */
#define FATBIN_MAGIC 0xba55ed50u
#define SHARED_DEFAULT_BYTES (48 * 1024) /* a launch may have, without asking for more */

/* A kernel of a module, as it was found once. */
struct kernel {
    char name[DEVICE_NAME_BYTES];
    cuda_function function;
    uint32_t count;  /* of parameters */
    uint16_t *words; /* where each begins among the launch's words */
    uint32_t word_count;
    uint32_t shared_bytes; /* dynamic ones that were asked for */
    uint64_t local_bytes;  /* of a thread */
    UT_hash_handle hh;
};

struct module {
    cuda_module module;
    uint64_t taken_bytes;   /* of the device, as measured ... */
    uint64_t bytes;         /* ... and those that are counted */
    struct kernel *kernels; /* by name ... */
    struct kernel *last;    /* ... and the one of the last launch; NULL: none yet */
};

/* --- modules --------------------------------------------------------------------------- */

/* Of the whole device, with what other processes have. */
static enum vgpu_status free_bytes(struct cuda_session *session, uint64_t *ret_bytes)
{
    size_t bytes = 0, all_bytes;
    enum vgpu_status status = cuda_status(session, session->cuda.mem_get_info(&bytes, &all_bytes),
                                          "ask for the device's memory");

    *ret_bytes = bytes;
    return status;
}

static void unload(struct cuda_session *session, cuda_module module)
{
    if (session->lost == VGPU_OK)
        cuda_status(session, session->cuda.module_unload(module), "unload a module");
}

/* An image that the driver is to load: the guest's, or the cubin that was made of it. */
struct loadable {
    const void *image;
    uint64_t least_bytes; /* that it takes of the device */
    unsigned loads;       /* to measure, of which the most counts */
    cuda_link link;       /* owns `image`; NULL: it is the guest's */
};

static bool is_fatbin(const void *image, uint64_t bytes)
{
    const uint32_t magic = FATBIN_MAGIC;

    return bytes >= sizeof(magic) && memcmp(image, &magic, sizeof(magic)) == 0;
}

static enum vgpu_status link_image(struct cuda_session *session, cuda_link link, const void *image,
                                   uint64_t bytes, struct loadable *loadable)
{
    bool fat = is_fatbin(image, bytes);
    size_t cubin_size = 0;
    void *cubin = NULL;
    enum vgpu_status status = cuda_status_or(
        session,
        session->cuda.link_add_data(
            link, fat ? CUDA_JIT_INPUT_FATBINARY : CUDA_JIT_INPUT_PTX, (void *)(uintptr_t)image,
            fat ? bytes : strnlen(image, bytes) + 1, "module", 0, NULL, NULL),
        "compile a module", VGPU_BAD_IMAGE);

    if (status == VGPU_OK)
        status = cuda_status_or(session, session->cuda.link_complete(link, &cubin, &cubin_size),
                                "link a module", VGPU_BAD_IMAGE);
    if (status == VGPU_OK)
        status = cubin_bytes(cubin, cubin_size, &loadable->least_bytes);
    loadable->image = cubin;
    return status;
}

static void loadable_end(struct cuda_session *session, struct loadable *loadable)
{
    if (loadable->link && session->lost == VGPU_OK)
        cuda_status(session, session->cuda.link_destroy(loadable->link), "give up a linked module");
    loadable->link = NULL;
}

/* What cannot be linked says nothing that could be read (a fat binary whose parts were not made to
 * be linked, which may be packed): only the driver can load it, or say what is wrong with it. */
static bool may_load_unknown(const struct cuda_session *session, enum vgpu_status status)
{
    return session->lost == VGPU_OK && status != VGPU_OUT_OF_MEMORY;
}

/* What is no cubin is made one, so that what is measured by is what is loaded.  To be ended with
 * loadable_end() where this gives VGPU_OK. */
static enum vgpu_status loadable_begin(struct cuda_session *session, const void *image,
                                       uint64_t bytes, struct loadable *loadable)
{
    enum vgpu_status status;

    *loadable = (struct loadable){.image = image, .least_bytes = bytes, .loads = 1};
    if (cubin_is(image, bytes))
        return cubin_bytes(image, bytes, &loadable->least_bytes);
    status = cuda_status(session, session->cuda.link_create(0, NULL, NULL, &loadable->link),
                         "begin to link a module");
    if (status != VGPU_OK) {
        loadable->link = NULL;
        return status;
    }
    status = link_image(session, loadable->link, image, bytes, loadable);
    if (status == VGPU_OK)
        return session->lost;
    loadable_end(session, loadable);
    if (!may_load_unknown(session, status))
        return session->lost != VGPU_OK ? session->lost : status;
    *loadable = (struct loadable){.image = image, .least_bytes = bytes, .loads = LOADS_OF_UNKNOWN};
    return VGPU_OK;
}

/* Loads it, and says how much less the device has. */
static enum vgpu_status load(struct cuda_session *session, const void *image,
                             cuda_module *ret_module, uint64_t *ret_bytes)
{
    uint64_t before, after;
    enum vgpu_status status = free_bytes(session, &before);

    if (status == VGPU_OK)
        status = cuda_status_or(session,
                                session->cuda.module_load_data_ex(ret_module, image, 0, NULL, NULL),
                                "load a module", VGPU_BAD_IMAGE);
    if (status != VGPU_OK)
        return status;
    status = free_bytes(session, &after);
    if (status != VGPU_OK) {
        unload(session, *ret_module);
        return status;
    }
    *ret_bytes = before > after ? before - after : 0;
    return VGPU_OK;
}

/* More than once where one look is not enough: who gives memory back in the instant of one load
 * hides that load only. */
static enum vgpu_status load_often(struct cuda_session *session, const struct loadable *loadable,
                                   struct module *module)
{
    uint64_t most_bytes = 0, bytes;

    for (unsigned loads = 1;; loads++) {
        enum vgpu_status status = load(session, loadable->image, &module->module, &bytes);

        if (status != VGPU_OK)
            return status;
        most_bytes = bytes > most_bytes ? bytes : most_bytes;
        if (loads == loadable->loads)
            break;
        unload(session, module->module);
        if (session->lost != VGPU_OK)
            return session->lost;
    }
    module->taken_bytes = most_bytes;
    return VGPU_OK;
}

/* What it says of itself is counted already.  What other processes take meanwhile is taken for
 * its own: one that would be refused is measured once more. */
static enum vgpu_status load_counted(struct cuda_session *session, const struct loadable *loadable,
                                     struct module *module)
{
    for (unsigned tries = 0; tries < TRIES_MAX; tries++) {
        uint64_t *taken = &module->taken_bytes;
        enum vgpu_status status = load_often(session, loadable, module);

        if (status != VGPU_OK)
            return status;
        if (*taken <= module->bytes)
            return VGPU_OK;
        status = cuda_memory_reserve(session, *taken - module->bytes);
        if (status == VGPU_OK) {
            module->bytes = *taken;
            return VGPU_OK;
        }
        unload(session, module->module);
        if (session->lost != VGPU_OK)
            return session->lost;
    }
    return VGPU_OUT_OF_MEMORY;
}

/* module->bytes are reserved, here and at its end. */
static enum vgpu_status load_image(struct cuda_session *session, const void *image,
                                   struct module *module)
{
    struct loadable loadable;
    enum vgpu_status status = loadable_begin(session, image, module->bytes, &loadable);

    if (status != VGPU_OK)
        return status;
    if (loadable.least_bytes > module->bytes) {
        status = cuda_memory_reserve(session, loadable.least_bytes - module->bytes);
        if (status == VGPU_OK)
            module->bytes = loadable.least_bytes;
    }
    if (status == VGPU_OK)
        status = load_counted(session, &loadable, module);
    loadable_end(session, &loadable);
    if (status == VGPU_OK && session->lost != VGPU_OK)
        status = session->lost;
    return status;
}

enum vgpu_status cuda_module_open(struct cuda_session *session, const void *image,
                                  uint64_t image_bytes, void **ret_module)
{
    enum vgpu_status status = cuda_need(session);
    struct module *module;

    if (status != VGPU_OK)
        return status;
    module = calloc(1, sizeof(*module));
    if (!module)
        return VGPU_OUT_OF_MEMORY;
    status = cuda_memory_reserve(session, image_bytes);
    if (status != VGPU_OK) {
        free(module);
        return status;
    }
    module->bytes = image_bytes;
    status = load_image(session, image, module);
    if (status != VGPU_OK) {
        share_release(session->memory.share, module->bytes);
        free(module);
        return status;
    }
    session->module_count++;
    *ret_module = module;
    return VGPU_OK;
}

static void kernel_free(struct kernel *kernel)
{
    free(kernel->words);
    free(kernel);
}

void cuda_module_close(struct cuda_session *session, void *argument)
{
    struct module *module = argument;
    struct kernel *kernel, *next;

    HASH_ITER (hh, module->kernels, kernel, next) {
        HASH_DEL(module->kernels, kernel); /* NOLINT: the analyzer is lost in the macro */
        kernel_free(kernel);
    }
    if (session->context)
        unload(session, module->module);
    share_release(session->memory.share, module->bytes);
    session->module_count--;
    free(module);
}

/* --- a guest's kernels ------------------------------------------------------------------- */

/* What it takes: parameters begin at whole words, and have as many as they need. */
static enum vgpu_status read_parameters(struct cuda_session *session, struct kernel *kernel)
{
    cuda_result result;
    size_t offset, bytes;

    kernel->words = calloc(WORDS_MAX, sizeof(*kernel->words));
    if (!kernel->words)
        return VGPU_OUT_OF_MEMORY;
    while ((result = session->cuda.func_get_param_info(kernel->function, kernel->count, &offset,
                                                       &bytes)) == CUDA_SUCCESS) {
        uint64_t words = (bytes + WORD_BYTES - 1) / WORD_BYTES;

        if (kernel->count == WORDS_MAX || words > WORDS_MAX - kernel->word_count)
            return VGPU_NOT_SUPPORTED; /* more than a descriptor can name */
        kernel->words[kernel->count++] = (uint16_t)kernel->word_count;
        kernel->word_count += (uint32_t)words;
    }
    /* That is the end of the list; after any other error the driver would read more of them
     * than were found. */
    return result == CUDA_INVALID_VALUE
               ? VGPU_OK
               : cuda_status(session, result, "read a kernel's parameters");
}

static enum vgpu_status read_local(struct cuda_session *session, struct kernel *kernel)
{
    int bytes = 0;
    enum vgpu_status status = cuda_status(
        session,
        session->cuda.func_get_attribute(&bytes, CUDA_FUNCTION_LOCAL_SIZE_BYTES, kernel->function),
        "read a kernel's local memory");

    kernel->local_bytes = bytes > 0 ? (uint64_t)bytes : 0;
    return status;
}

/* The code that came is there until the module goes: it counts, also where it is refused. */
static enum vgpu_status count_code(struct cuda_session *session, struct module *module,
                                   uint64_t taken_bytes)
{
    enum vgpu_status status;
    uint64_t more;

    module->taken_bytes += taken_bytes;
    if (module->taken_bytes <= module->bytes)
        return VGPU_OK;
    more = module->taken_bytes - module->bytes;
    module->bytes = module->taken_bytes;
    status = cuda_memory_reserve(session, more);
    if (status != VGPU_OK)
        share_add(session->memory.share, more);
    return status;
}

/* Where the VM is beyond its limit nothing more is asked for: one kernel's code at most is. */
static enum vgpu_status get_function(struct cuda_session *session, struct module *module,
                                     const char *name, cuda_function *ret_function)
{
    uint64_t before, after;
    enum vgpu_status status = cuda_memory_reserve(session, 0);

    if (status == VGPU_OK)
        status = free_bytes(session, &before);
    if (status == VGPU_OK)
        status = cuda_status(session,
                             session->cuda.module_get_function(ret_function, module->module, name),
                             "find a kernel");
    if (status == VGPU_OK)
        status = free_bytes(session, &after);
    if (status != VGPU_OK)
        return status;
    return count_code(session, module, before > after ? before - after : 0);
}

static enum vgpu_status kernel_find(struct cuda_session *session, struct module *module,
                                    const char *name, struct kernel **ret_kernel)
{
    struct kernel *kernel = module->last;
    enum vgpu_status status;

    /* Most launches are of one kernel again and again. */
    if (!kernel || !device_name_is(kernel->name, name))
        HASH_FIND_STR(module->kernels, name, kernel);
    *ret_kernel = kernel;
    if (kernel) {
        module->last = kernel;
        return VGPU_OK;
    }
    kernel = calloc(1, sizeof(*kernel));
    if (!kernel)
        return VGPU_OUT_OF_MEMORY;
    text_copy(kernel->name, sizeof(kernel->name), name);
    status = get_function(session, module, name, &kernel->function);
    if (status == VGPU_OK)
        status = read_parameters(session, kernel);
    if (status == VGPU_OK)
        status = read_local(session, kernel);
    if (status != VGPU_OK) {
        kernel_free(kernel);
        return status;
    }
    HASH_ADD_STR(module->kernels, name, kernel);
    *ret_kernel = kernel;
    return VGPU_OK;
}

static enum vgpu_status ask_shared(struct cuda_session *session, struct kernel *kernel,
                                   uint32_t bytes)
{
    enum vgpu_status status;

    if (bytes <= SHARED_DEFAULT_BYTES || bytes <= kernel->shared_bytes)
        return VGPU_OK;
    if (bytes > (uint32_t)session->shared_bytes_max)
        return VGPU_INVALID;
    status =
        cuda_status(session,
                    session->cuda.func_set_attribute(
                        kernel->function, CUDA_FUNCTION_MAX_DYNAMIC_SHARED_SIZE_BYTES, (int)bytes),
                    "give a kernel its shared memory");
    if (status == VGPU_OK)
        kernel->shared_bytes = bytes;
    return status;
}

/* What the driver will have given to all threads when this has been launched. */
static enum vgpu_status ask_local(struct cuda_session *session, const struct kernel *kernel)
{
    enum vgpu_status status;
    uint64_t bytes;

    if (kernel->local_bytes <= session->stack_bytes)
        return VGPU_OK;
    bytes = (kernel->local_bytes - session->stack_bytes) * session->thread_count;
    if (bytes <= session->local_bytes)
        return VGPU_OK;
    status = cuda_memory_reserve(session, bytes - session->local_bytes);
    if (status == VGPU_OK)
        session->local_bytes = bytes;
    return status;
}

static inline enum vgpu_status start(struct cuda_session *session, struct cuda_lane *lane,
                                     cuda_function function, const uint32_t grid[3],
                                     const uint32_t block[3], uint32_t shared_bytes,
                                     void **parameters)
{
    enum vgpu_status status = cuda_lane_ready(session, lane);

    if (status != VGPU_OK)
        return status;
    status = cuda_status(session,
                         session->cuda.launch_kernel(function, grid[0], grid[1], grid[2], block[0],
                                                     block[1], block[2], shared_bytes, lane->stream,
                                                     parameters, NULL),
                         "launch a kernel");
    if (status == VGPU_OK) {
        cuda_lane_put(lane);
        lane->kernel_last = true;
    }
    return status;
}

static __attribute__((noinline)) enum vgpu_status
launch_own(struct cuda_session *session, struct cuda_lane *lane, const struct device_launch *launch)
{
    void *parameters[WORDS_MAX];
    struct kernel *kernel;
    enum vgpu_status status = kernel_find(session, launch->module, launch->name, &kernel);

    if (status == VGPU_OK && launch->count != kernel->word_count)
        status = VGPU_INVALID;
    if (status == VGPU_OK)
        status = ask_shared(session, kernel, launch->shared_bytes);
    if (status == VGPU_OK)
        status = ask_local(session, kernel);
    if (status != VGPU_OK)
        return status;
    for (uint32_t i = 0; i < kernel->count; i++)
        parameters[i] = (void *)(uintptr_t)&launch->parameters[kernel->words[i]];
    return start(session, lane, kernel->function, launch->grid, launch->block, launch->shared_bytes,
                 parameters);
}

/* --- built-in kernels ------------------------------------------------------------------------ */

static enum vgpu_status builtin_need(struct cuda_session *session,
                                     const struct kernels_entry *entry, cuda_function *ret_function)
{
    cuda_function *function;
    enum vgpu_status status = VGPU_OK;

    if (!session->builtin_functions)
        session->builtin_functions = calloc(kernels_count, sizeof(cuda_function));
    if (!session->builtin_functions)
        return VGPU_OUT_OF_MEMORY;
    if (!session->builtin)
        status = cuda_status(
            session,
            session->cuda.module_load_data_ex(&session->builtin, kernels_ptx, 0, NULL, NULL),
            "load the built-in kernels");
    function = &session->builtin_functions[entry - kernels_table];
    if (status == VGPU_OK && !*function)
        status = cuda_status(
            session, session->cuda.module_get_function(function, session->builtin, entry->name),
            "find a built-in kernel");
    *ret_function = *function;
    return status;
}

static bool overlap(uint64_t a, uint64_t a_bytes, uint64_t b, uint64_t b_bytes)
{
    return a < b + b_bytes && b < a + a_bytes;
}

static uint64_t range_bytes(const struct kernels_entry *entry, uint32_t index,
                            const uint64_t *parameters)
{
    return kernels_elements(entry, index, parameters) * entry->parameters[index].element_bytes;
}

static bool is_apart(const struct kernels_entry *entry, uint32_t index, const uint64_t *parameters)
{
    for (uint32_t i = 0; i < entry->parameter_count; i++) {
        if (i != index && entry->parameters[i].kind == KERNELS_ADDRESS &&
            overlap(parameters[index], range_bytes(entry, index, parameters), parameters[i],
                    range_bytes(entry, i, parameters)))
            return false;
    }
    return true;
}

static bool numbers_are_valid(const struct kernels_entry *entry, const uint64_t *parameters)
{
    for (uint32_t i = 0; i < entry->parameter_count; i++) {
        if (entry->parameters[i].kind == KERNELS_NUMBER &&
            parameters[i] > entry->parameters[i].number_max)
            return false;
    }
    return true;
}

static enum vgpu_status check_range(const struct cuda_memory *memory,
                                    const struct kernels_entry *entry, uint32_t index,
                                    const uint64_t *parameters)
{
    const struct kernels_parameter *parameter = &entry->parameters[index];
    uint64_t elements = kernels_elements(entry, index, parameters);

    if (elements == UINT64_MAX || (parameters[index] & (parameter->element_bytes - 1)) != 0 ||
        !cuda_memory_has(memory, parameters[index], elements * parameter->element_bytes))
        return VGPU_BAD_ADDRESS;
    return parameter->apart && !is_apart(entry, index, parameters) ? VGPU_INVALID : VGPU_OK;
}

/* Numbers first: ranges are calculated from them. */
static enum vgpu_status check_parameters(const struct cuda_memory *memory,
                                         const struct kernels_entry *entry,
                                         const uint64_t *parameters)
{
    enum vgpu_status status = numbers_are_valid(entry, parameters) ? VGPU_OK : VGPU_INVALID;

    for (uint32_t i = 0; status == VGPU_OK && i < entry->parameter_count; i++) {
        if (entry->parameters[i].kind == KERNELS_ADDRESS)
            status = check_range(memory, entry, i, parameters);
    }
    return status;
}

static inline enum vgpu_status start_entry(struct cuda_session *session, struct cuda_lane *lane,
                                           const struct kernels_entry *entry,
                                           cuda_function function, const uint32_t grid[3],
                                           const uint64_t *parameters)
{
    void *pointers[KERNELS_PARAMETERS_MAX];

    for (uint32_t i = 0; i < entry->parameter_count; i++)
        pointers[i] = (void *)(uintptr_t)&parameters[i];
    return start(session, lane, function, grid, entry->block, 0, pointers);
}

enum vgpu_status cuda_launch_builtin(struct cuda_session *session, struct cuda_lane *lane,
                                     const char *name, const uint64_t *parameters)
{
    const struct kernels_entry *entry = kernels_find(name);
    cuda_function function;
    uint32_t grid[3];
    enum vgpu_status status = builtin_need(session, entry, &function);

    if (status != VGPU_OK)
        return status;
    kernels_grid(entry, parameters, (uint32_t)session->multiprocessors, grid);
    return start_entry(session, lane, entry, function, grid, parameters);
}

/* That a guest may launch; NULL: there is none. */
static const struct kernels_entry *entry_find(struct cuda_known_launch *known, const char *name)
{
    const struct kernels_entry *entry;

    if (known->entry && device_name_is(known->name, name))
        return known->entry; /* most launches are of one kernel again and again */
    entry = kernels_find(name);
    if (!entry || !entry->for_guests)
        return NULL;
    known->entry = entry;
    memset(known->name, 0, sizeof(known->name));
    text_copy(known->name, sizeof(known->name), name);
    return entry;
}

/* Most are the same in all, too. */
static inline bool is_known(const struct cuda_session *session, const struct device_launch *launch)
{
    const struct cuda_known_launch *known = &session->known;

    if (!known->function || known->removals != session->memory.removals ||
        launch->count != known->entry->parameter_count ||
        !device_name_is(known->name, launch->name))
        return false;
    for (uint32_t i = 0; i < launch->count; i++) {
        if (launch->parameters[i] != known->parameters[i])
            return false;
    }
    return true;
}

/* Checks it, and prepares all that is the same for the next one. */
static __attribute__((noinline)) enum vgpu_status know(struct cuda_session *session,
                                                       const struct device_launch *launch)
{
    struct cuda_known_launch *known = &session->known;
    const struct kernels_entry *entry;
    cuda_function function;
    enum vgpu_status status;

    known->function = NULL;
    entry = entry_find(known, launch->name);
    if (!entry)
        return VGPU_NOT_FOUND;
    if (launch->count != entry->parameter_count)
        return VGPU_INVALID;
    status = check_parameters(&session->memory, entry, launch->parameters);
    if (status == VGPU_OK)
        status = builtin_need(session, entry, &function);
    if (status != VGPU_OK)
        return status;
    memcpy(known->parameters, launch->parameters, launch->count * sizeof(*launch->parameters));
    kernels_grid(entry, launch->parameters, (uint32_t)session->multiprocessors, known->grid);
    known->removals = session->memory.removals;
    known->function = function;
    return VGPU_OK;
}

enum vgpu_status cuda_launch(void *state, void *stream, const struct device_launch *launch)
{
    struct cuda_session *session = cuda_use(state);
    const struct cuda_known_launch *known = &session->known;
    enum vgpu_status status = cuda_need(session);
    struct cuda_lane *lane = cuda_lane_of(session, stream);

    if (status != VGPU_OK)
        return status;
    if (launch->module)
        return launch_own(session, lane, launch);
    if (!is_known(session, launch))
        status = know(session, launch);
    return status == VGPU_OK ? start_entry(session, lane, known->entry, known->function,
                                           known->grid, launch->parameters)
                             : status;
}
