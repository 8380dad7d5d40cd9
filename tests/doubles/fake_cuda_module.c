/* SPDX-License-Identifier: Apache-2.0 */
/* Modules: PTX text, whose entries and their parameters are read, or any binary. */
#include "fake_cuda.h"

#include <elf.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define THREADS_MAX 1024u
#define SHARED_BYTES 49152
#define SHARED_OPTIN_BYTES 232448
#define ENTRIES_MAX 256u
#define BLANKS " \t\r\n"
#define NAME_LETTERS "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_$%"

struct CUmod_st {
    struct fake_object object;
    size_t held_bytes; /* of the device */
    size_t count;
    struct fake_entry entries[ENTRIES_MAX];
};

struct CUlinkState_st {
    struct fake_object object;
    char *text;  /* NULL: nothing was added */
    void *cubin; /* that was made of it */
};

struct CUfunc_st {
    struct fake_object object;
    cuda_module module;
    const struct fake_entry *entry;
    int shared_bytes; /* the most that a launch may ask for */
};

/* --- PTX -----------------------------------------------------------------------------------------
 */

/* Comments become blanks. */
static void remove_comments(char *text)
{
    while (*text) {
        char *end = NULL;

        if (strncmp(text, "//", 2) == 0)
            end = text + strcspn(text, "\n");
        else if (strncmp(text, "/*", 2) == 0)
            end = strstr(text + 2, "*/");
        for (; end && text < end; text++)
            *text = ' ';
        text += *text != '\0'; /* a comment may be the last */
    }
}

static size_t type_bytes(const char *type)
{
    size_t bits = strtoul(type + strcspn(type, "0123456789"), NULL, 10);

    return bits < 8 ? 0 : bits / 8;
}

/* ".param .align 8 .b8 name[24]", ".param .u64 .ptr .global name": how many bytes, and of
 * which alignment; false when it is not so. */
static bool read_parameter(char *text, size_t *ret_bytes, size_t *ret_align)
{
    char *bracket = strchr(text, '['), *word, *rest = text;
    size_t count = bracket ? strtoul(bracket + 1, NULL, 10) : 1, align = 0, bytes = 0;

    while ((word = strsep(&rest, BLANKS))) {
        if (strcmp(word, ".align") == 0 && !bytes) /* behind the type it is the pointer's */
            align = strtoul(rest ? rest : "", NULL, 10);
        else if (word[0] == '.' && strchr("busf", word[1]) && !bytes)
            bytes = type_bytes(word);
    }
    *ret_bytes = bytes * count;
    *ret_align = align ? align : bytes;
    return *ret_bytes && *ret_align;
}

static bool read_parameters(char *text, struct fake_entry *entry)
{
    size_t offset = 0, bytes, align;
    char *one;

    while ((one = strsep(&text, ","))) {
        if (!strstr(one, ".param"))
            return !text && entry->count == 0 && one[strspn(one, BLANKS)] == '\0';
        if (entry->count == FAKE_PARAMETERS_MAX || !read_parameter(one, &bytes, &align))
            return false;
        offset = (offset + align - 1) / align * align;
        entry->offsets[entry->count] = offset;
        entry->sizes[entry->count++] = bytes;
        offset += bytes;
    }
    return true;
}

/* An entry from behind ".entry"; gives what follows it, NULL when it is none. */
static char *read_entry(char *text, struct fake_entry *entry)
{
    char *open, *close;
    size_t length;

    *entry = (struct fake_entry){.count = 0};
    text += strspn(text, BLANKS);
    length = strspn(text, NAME_LETTERS);
    snprintf(entry->name, sizeof(entry->name), "%.*s", (int)length, text);
    open = text + length + strspn(text + length, BLANKS);
    if (!length)
        return NULL;
    if (*open != '(')
        return open;
    close = strchr(open, ')');
    if (!close)
        return NULL;
    *close = '\0';
    return read_parameters(open + 1, entry) ? close + 1 : NULL;
}

/* ".global .align 4 .b8 name[1048576];": bytes of one array; 0 when it is none. */
static size_t array_bytes(const char *text)
{
    const char *bracket = text + strcspn(text, "[;),{=");

    if (*bracket != '[')
        return 0;
    for (const char *at = text; at < bracket; at++) {
        if (*at == '.' && strchr("busf", at[1]) && at[2] >= '0' && at[2] <= '9')
            return type_bytes(at) * strtoul(bracket + 1, NULL, 10);
    }
    return 0;
}

/* Of all arrays that are declared in this space before `end`. */
static size_t declared_bytes(const char *text, const char *end, const char *space)
{
    size_t bytes = 0;

    while ((text = strstr(text, space)) && text < end) {
        if (strchr(BLANKS, text[-1]) && strchr(BLANKS, text[strlen(space)]))
            bytes += array_bytes(text + strlen(space));
        text += strlen(space);
    }
    return bytes;
}

static bool read_ptx(cuda_module module, char *text)
{
    size_t granule_bytes = fake_orders()->granule_bytes;
    struct fake_entry *entry;
    const char *next;

    remove_comments(text);
    if (!strstr(text, ".version") || !strstr(text, ".target"))
        return false;
    module->held_bytes = declared_bytes(text, text + strlen(text), ".global");
    module->held_bytes = (module->held_bytes + granule_bytes - 1) / granule_bytes * granule_bytes;
    while ((text = strstr(text, ".entry"))) {
        if (module->count == ENTRIES_MAX)
            return false;
        entry = &module->entries[module->count++];
        text = read_entry(text + strlen(".entry"), entry);
        if (!text)
            return false;
        next = strstr(text, ".entry");
        entry->local_bytes = declared_bytes(text, next ? next : text + strlen(text), ".local");
    }
    return true;
}

/* --- modules
 * ------------------------------------------------------------------------------------------ */

static void tell_error(unsigned count, const cuda_jit_option *options, void **values)
{
    char *log = NULL;
    size_t bytes = 0;

    for (unsigned i = 0; i < count; i++) {
        if (options[i] == CUDA_JIT_ERROR_LOG_BUFFER)
            log = values[i];
        else if (options[i] == CUDA_JIT_ERROR_LOG_BUFFER_SIZE_BYTES)
            bytes = (unsigned)(uintptr_t)values[i];
    }
    if (log && bytes)
        snprintf(log, bytes, "fake ptxas: this is no PTX with .version, .target and entries");
}

static bool is_elf(const unsigned char *image)
{
    return memcmp(image, "\177ELF", 4) == 0;
}

static bool is_binary(const unsigned char *image)
{
    static const unsigned char fat[] = {0x50, 0xed, 0x55, 0xba};

    return is_elf(image) || memcmp(image, fat, sizeof(fat)) == 0;
}

static uint64_t number_at(const unsigned char *image, size_t offset, size_t bytes)
{
    uint64_t number = 0;

    for (size_t i = bytes; i > 0; i--)
        number = number << 8 | image[offset + i - 1];
    return number;
}

/* A cubin is a 64-bit ELF file, which ends with one of its two tables. */
static uint64_t elf_bytes(const unsigned char *image)
{
    uint64_t segments_end =
        number_at(image, 0x20, 8) + number_at(image, 0x36, 2) * number_at(image, 0x38, 2);
    uint64_t sections_end =
        number_at(image, 0x28, 8) + number_at(image, 0x3a, 2) * number_at(image, 0x3c, 2);

    return segments_end > sections_end ? segments_end : sections_end;
}

/* Behind magic and version stand its header's length and that of the rest. */
static uint64_t fatbin_bytes(const unsigned char *image)
{
    return number_at(image, 6, 2) + number_at(image, 8, 8);
}

static void note_image(const unsigned char *image)
{
    uint64_t bytes = is_elf(image) ? elf_bytes(image) : fatbin_bytes(image);
    uint64_t hash = 0xcbf29ce484222325;
    char word[FAKE_NAME_BYTES];

    for (uint64_t i = 0; i < bytes; i++)
        hash = (hash ^ image[i]) * 0x100000001b3;
    snprintf(word, sizeof(word), "image %llu %016llx", (unsigned long long)bytes,
             (unsigned long long)hash);
    fake_note(word);
}

static unsigned module_loads;

bool fake_has_loaded(void)
{
    return module_loads > 0;
}

/* A cubin that was linked here: headers, an array that has no bytes in it, and the PTX. */
struct linked {
    Elf64_Ehdr header;
    Elf64_Shdr sections[3];
    char text[];
};

#define LINKED_ABI 0x66 /* EI_OSABI of those */

/* Byte by byte: it may be a few letters. */
static bool is_linked(const unsigned char *image)
{
    return memcmp(image, ELFMAG, SELFMAG) == 0 && image[EI_CLASS] == ELFCLASS64 &&
           image[EI_DATA] == ELFDATA2LSB && image[EI_VERSION] == EV_CURRENT &&
           image[EI_OSABI] == LINKED_ABI;
}

static struct linked *make_linked(const char *text, size_t array_bytes, size_t *ret_bytes)
{
    size_t text_bytes = strlen(text) + 1;
    struct linked *linked = calloc(1, sizeof(*linked) + text_bytes);

    if (!linked)
        abort();
    linked->header = (Elf64_Ehdr){
        .e_ident = {ELFMAG0, ELFMAG1, ELFMAG2, ELFMAG3, ELFCLASS64, ELFDATA2LSB, EV_CURRENT,
                    LINKED_ABI},
        .e_type = ET_EXEC,
        .e_shoff = offsetof(struct linked, sections),
        .e_shentsize = sizeof(Elf64_Shdr),
        .e_shnum = VGPU_ARRAY_LENGTH(linked->sections),
    };
    linked->sections[1] = (Elf64_Shdr){.sh_type = SHT_NOBITS, .sh_size = array_bytes};
    linked->sections[2] = (Elf64_Shdr){
        .sh_type = SHT_PROGBITS, .sh_offset = offsetof(struct linked, text), .sh_size = text_bytes};
    memcpy(linked->text, text, text_bytes);
    *ret_bytes = sizeof(*linked) + text_bytes;
    return linked;
}

static cuda_result read_image(cuda_module module, const void *image)
{
    cuda_result result;
    char *text;

    if (strnlen(image, 4) == 4 && is_linked(image)) {
        image = ((const struct linked *)image)->text;
    } else if (strnlen(image, 4) == 4 && is_binary(image)) {
        if (fake_orders()->images)
            note_image(image);
        module->count = fake_orders()->entry_count;
        memcpy(module->entries, fake_orders()->entries,
               fake_orders()->entry_count * sizeof(module->entries[0]));
        return CUDA_SUCCESS;
    }
    text = strdup(image);
    if (!text)
        abort();
    result = !text[0]                 ? CUDA_INVALID_IMAGE
             : read_ptx(module, text) ? CUDA_SUCCESS
                                      : CUDA_INVALID_PTX;
    free(text);
    return result;
}

cuda_result cuModuleLoadDataEx(cuda_module *module, const void *image, unsigned option_count,
                               cuda_jit_option *options, void **option_values)
{
    cuda_result result = fake_enter(__func__, NEEDS_CONTEXT);
    cuda_module made;

    if (result != CUDA_SUCCESS)
        return result;
    if (!image)
        return CUDA_INVALID_VALUE;
    pthread_mutex_lock(&fake_lock);
    module_loads++;
    made = fake_object_new(KIND_MODULE, fake_current(), sizeof(*made));
    result = read_image(made, image);
    if (result == CUDA_SUCCESS && !fake_memory_hold(fake_current(), made->held_bytes))
        result = CUDA_OUT_OF_MEMORY;
    if (result == CUDA_SUCCESS)
        *module = made;
    else
        fake_object_free(made);
    pthread_mutex_unlock(&fake_lock);
    if (result == CUDA_INVALID_PTX)
        tell_error(option_count, options, option_values);
    return result;
}

/* Its functions stay known: they lead to no entry any more. */
cuda_result cuModuleUnload(cuda_module module)
{
    cuda_result result = fake_enter(__func__, NEEDS_CONTEXT);

    if (result != CUDA_SUCCESS)
        return result;
    pthread_mutex_lock(&fake_lock);
    if (!fake_object_is(KIND_MODULE, module))
        result = CUDA_INVALID_HANDLE;
    else
        result = fake_wait(fake_current(), fake_current()->device->submitted);
    if (result == CUDA_SUCCESS) {
        fake_memory_let_go(fake_current(), module->held_bytes);
        fake_object_free(module);
    }
    pthread_mutex_unlock(&fake_lock);
    return result;
}

/* --- linking: of one PTX text ------------------------------------------------------------ */

static cuda_result enter_link(const char *name, cuda_link link)
{
    cuda_result result = fake_enter(name, NEEDS_CONTEXT);

    if (result != CUDA_SUCCESS)
        return result;
    pthread_mutex_lock(&fake_lock);
    result = fake_object_is(KIND_LINK, link) ? CUDA_SUCCESS : CUDA_INVALID_HANDLE;
    pthread_mutex_unlock(&fake_lock);
    return result;
}

cuda_result cuLinkCreate_v2(unsigned option_count, cuda_jit_option *options, void **option_values,
                            cuda_link *link)
{
    cuda_result result = fake_enter(__func__, NEEDS_CONTEXT);

    (void)options;
    (void)option_values;
    if (result != CUDA_SUCCESS)
        return result;
    if (option_count)
        return CUDA_INVALID_VALUE;
    pthread_mutex_lock(&fake_lock);
    *link = fake_object_new(KIND_LINK, fake_current(), sizeof(**link));
    pthread_mutex_unlock(&fake_lock);
    return CUDA_SUCCESS;
}

/* Fat binaries are taken for ones whose parts were not made to be linked. */
cuda_result cuLinkAddData_v2(cuda_link link, cuda_jit_input type, void *data, size_t bytes,
                             const char *name, unsigned option_count, cuda_jit_option *options,
                             void **option_values)
{
    cuda_result result = enter_link(__func__, link);

    (void)name;
    (void)options;
    (void)option_values;
    if (result != CUDA_SUCCESS)
        return result;
    if (option_count || link->text)
        return CUDA_INVALID_VALUE;
    if (type != CUDA_JIT_INPUT_PTX)
        return CUDA_INVALID_IMAGE;
    link->text = strndup(data, bytes);
    if (!link->text)
        abort();
    if (!link->text[0])
        return CUDA_INVALID_IMAGE;
    return strstr(link->text, ".version") && strstr(link->text, ".target") ? CUDA_SUCCESS
                                                                           : CUDA_INVALID_PTX;
}

cuda_result cuLinkComplete(cuda_link link, void **cubin, size_t *bytes)
{
    cuda_result result = enter_link(__func__, link);

    if (result != CUDA_SUCCESS)
        return result;
    if (!link->text || link->cubin)
        return CUDA_INVALID_VALUE;
    remove_comments(link->text);
    link->cubin = make_linked(
        link->text, declared_bytes(link->text, link->text + strlen(link->text), ".global"), bytes);
    *cubin = link->cubin;
    return CUDA_SUCCESS;
}

cuda_result cuLinkDestroy(cuda_link link)
{
    cuda_result result = enter_link(__func__, link);

    if (result != CUDA_SUCCESS)
        return result;
    free(link->text);
    free(link->cubin);
    pthread_mutex_lock(&fake_lock);
    fake_object_free(link);
    pthread_mutex_unlock(&fake_lock);
    return CUDA_SUCCESS;
}

/* --- kernels of modules ------------------------------------------------------------------ */

static struct fake_entry *find_entry(cuda_module module, const char *name)
{
    for (size_t i = 0; i < module->count; i++) {
        if (strcmp(module->entries[i].name, name) == 0)
            return &module->entries[i];
    }
    return NULL;
}

static bool load_code(cuda_module module, struct fake_entry *entry)
{
    size_t bytes = entry->has_code ? 0 : fake_orders()->code_bytes;

    if (!fake_memory_hold(module->object.context, bytes))
        return false;
    module->held_bytes += bytes;
    entry->has_code = true;
    return true;
}

cuda_result cuModuleGetFunction(cuda_function *function, cuda_module module, const char *name)
{
    cuda_result result = fake_enter(__func__, NEEDS_CONTEXT);
    struct fake_entry *entry = NULL;

    if (result != CUDA_SUCCESS)
        return result;
    pthread_mutex_lock(&fake_lock);
    if (!fake_object_is(KIND_MODULE, module))
        result = CUDA_INVALID_HANDLE;
    else if (!(entry = find_entry(module, name)))
        result = CUDA_NOT_FOUND;
    else if (!load_code(module, entry))
        result = CUDA_OUT_OF_MEMORY;
    else
        *function = fake_object_new(KIND_FUNCTION, fake_current(), sizeof(**function));
    if (result == CUDA_SUCCESS) {
        (*function)->module = module;
        (*function)->entry = entry;
        (*function)->shared_bytes = SHARED_BYTES;
    }
    pthread_mutex_unlock(&fake_lock);
    return result;
}

/* --- functions
 * ------------------------------------------------------------------------------------------ */

static bool is_function(cuda_function function)
{
    return fake_object_is(KIND_FUNCTION, function) && fake_object_is(KIND_MODULE, function->module);
}

static cuda_result enter_function(const char *name, cuda_function function)
{
    cuda_result result = fake_enter(name, NEEDS_CONTEXT);

    if (result != CUDA_SUCCESS)
        return result;
    pthread_mutex_lock(&fake_lock);
    result = is_function(function) ? CUDA_SUCCESS : CUDA_INVALID_HANDLE;
    pthread_mutex_unlock(&fake_lock);
    return result;
}

cuda_result cuFuncGetAttribute(int *value, cuda_function_attribute attribute,
                               cuda_function function)
{
    static const int values[] = {
        [CUDA_FUNCTION_MAX_THREADS_PER_BLOCK] = THREADS_MAX,
        [CUDA_FUNCTION_NUM_REGS] = 32,
        [CUDA_FUNCTION_PTX_VERSION] = 75,
        [CUDA_FUNCTION_BINARY_VERSION] = 90,
        [CUDA_FUNCTION_MAX_DYNAMIC_SHARED_SIZE_BYTES] = 0,
    };
    cuda_result result = enter_function(__func__, function);

    if (result != CUDA_SUCCESS)
        return result;
    if (attribute < 0 || (size_t)attribute >= VGPU_ARRAY_LENGTH(values))
        return CUDA_INVALID_VALUE;
    *value = values[attribute];
    if (attribute == CUDA_FUNCTION_MAX_DYNAMIC_SHARED_SIZE_BYTES)
        *value = function->shared_bytes;
    else if (attribute == CUDA_FUNCTION_LOCAL_SIZE_BYTES)
        *value = (int)function->entry->local_bytes;
    return CUDA_SUCCESS;
}

cuda_result cuFuncSetAttribute(cuda_function function, cuda_function_attribute attribute, int value)
{
    cuda_result result = enter_function(__func__, function);

    if (result != CUDA_SUCCESS)
        return result;
    if (attribute != CUDA_FUNCTION_MAX_DYNAMIC_SHARED_SIZE_BYTES || value < 0 ||
        value > SHARED_OPTIN_BYTES)
        return CUDA_INVALID_VALUE;
    function->shared_bytes = value;
    return CUDA_SUCCESS;
}

#ifndef FAKE_CUDA_INCOMPLETE
cuda_result cuFuncGetParamInfo(cuda_function function, size_t index, size_t *offset_bytes,
                               size_t *size_bytes)
{
    cuda_result result = enter_function(__func__, function);

    if (result != CUDA_SUCCESS)
        return result;
    if (index >= function->entry->count)
        return CUDA_INVALID_VALUE;
    *offset_bytes = function->entry->offsets[index];
    *size_bytes = function->entry->sizes[index];
    return CUDA_SUCCESS;
}
#endif

/* --- launches
 * ------------------------------------------------------------------------------------------- */

static void run_launch(struct fake_work *work)
{
    work->result = fake_kernel_run(&work->launch);
}

/* The first eight bytes of each parameter: no kernel here takes more. */
static void take_parameters(struct fake_launch *launch, const struct fake_entry *entry,
                            void **parameters)
{
    snprintf(launch->name, sizeof(launch->name), "%s", entry->name);
    launch->count = entry->count;
    for (size_t i = 0; i < entry->count; i++) {
        size_t bytes =
            entry->sizes[i] < sizeof(launch->words[0]) ? entry->sizes[i] : sizeof(launch->words[0]);

        memcpy(&launch->words[i], parameters[i], bytes);
    }
}

/* Each thread that the device can hold has as much as the kernel that needs most. */
static bool give_local(cuda_context context, size_t local_bytes)
{
    size_t threads = (size_t)FAKE_MULTIPROCESSORS * (size_t)fake_orders()->multiprocessor_threads;

    if (local_bytes <= context->local_bytes)
        return true;
    if (!fake_memory_hold(context, (local_bytes - context->local_bytes) * threads))
        return false;
    context->local_bytes = local_bytes;
    return true;
}

static bool is_geometry(const unsigned grid[3], const unsigned block[3])
{
    return grid[0] && grid[0] <= 2147483647u && grid[1] && grid[1] <= 65535 && grid[2] &&
           grid[2] <= 65535 && block[0] && block[0] <= THREADS_MAX && block[1] &&
           block[1] <= THREADS_MAX && block[2] && block[2] <= 64 &&
           (uint64_t)block[0] * block[1] * block[2] <= THREADS_MAX;
}

cuda_result cuLaunchKernel(cuda_function function, unsigned grid_x, unsigned grid_y,
                           unsigned grid_z, unsigned block_x, unsigned block_y, unsigned block_z,
                           unsigned shared_bytes, cuda_stream stream, void **parameters,
                           void **extra)
{
    const unsigned grid[3] = {grid_x, grid_y, grid_z}, block[3] = {block_x, block_y, block_z};
    cuda_result result = enter_function(__func__, function);
    struct fake_work *work;

    if (result != CUDA_SUCCESS)
        return result;
    if (!is_geometry(grid, block) || shared_bytes > (unsigned)function->shared_bytes || extra ||
        (function->entry->count && !parameters))
        return CUDA_INVALID_VALUE;
    pthread_mutex_lock(&fake_lock);
    if (!give_local(fake_current(), function->entry->local_bytes)) {
        pthread_mutex_unlock(&fake_lock);
        return CUDA_OUT_OF_MEMORY;
    }
    work = fake_work_new(__func__, run_launch);
    work->launch.context = work->context;
    work->launch.blocks = grid_x;
    work->launch.threads = block_x;
    take_parameters(&work->launch, function->entry, parameters);
    result = fake_submit(stream, work);
    pthread_mutex_unlock(&fake_lock);
    return result;
}
