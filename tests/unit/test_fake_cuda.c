/* SPDX-License-Identifier: Apache-2.0 */
/* tests/doubles/fake_cuda*.c: the double does what the real library does. */
#include "gpu_double.h"

#include <sys/mman.h>

#define MIB (1ull << 20)

static const char ptx[] = ".version 6.4\n.target sm_70 // .entry no_entry()\n.address_size 64\n"
                          ".visible .entry fill(\n\t.param .u64 fill_0,\n\t.param .u32 fill_1,\n"
                          "\t.param .u64 fill_2\n)\n{ ret; }\n"
                          ".visible .entry vector_add(.param .u64 .ptr .align 4 a, .param .u64 b,"
                          ".param .u64 c, .param .u64 n) .maxntid 256 { ret; }\n"
                          ".visible .entry by_value(.param .u16 a, .param .align 8 .b8 b[24],"
                          " .param .f32 c) { ret; }\n"
                          ".entry fault() { ret; }\n.entry assert_fail { ret; }\n"
                          ".entry unheard_of() { ret; }\n.entry hang() { ret; }";

struct bench {
    struct gpu_double own;
    struct cuda cuda;
    cuda_context context;
    cuda_module module;
};

static void begin(struct bench *bench, const char *orders)
{
    struct vgpu_error error = {.message = ""};

    gpu_double_begin(&bench->own, "VGPU_FAKE_CUDA");
    gpu_double_order(&bench->own, orders);
    if (cuda_load(bench->own.path, &bench->cuda, &error) < 0)
        fail_msg("%s", error.message);
    assert_int_equal(bench->cuda.init(0), 0);
    assert_int_equal(bench->cuda.ctx_create(&bench->context, 0, 0), 0);
    assert_int_equal(bench->cuda.module_load_data_ex(&bench->module, ptx, 0, NULL, NULL), 0);
}

static void end(struct bench *bench)
{
    cuda_unload(&bench->cuda);
    gpu_double_end(&bench->own);
}

static cuda_function function(struct bench *bench, const char *name)
{
    cuda_function found = NULL;

    assert_int_equal(bench->cuda.module_get_function(&found, bench->module, name), 0);
    return found;
}

static cuda_result launch(struct bench *bench, const char *name, cuda_stream stream,
                          void **parameters)
{
    return bench->cuda.launch_kernel(function(bench, name), 1, 1, 1, 32, 1, 1, 0, stream,
                                     parameters, NULL);
}

static void launch_fill(struct bench *bench, cuda_stream stream, cuda_pointer at, uint32_t value,
                        uint64_t count)
{
    void *parameters[] = {&at, &value, &count};

    assert_int_equal(launch(bench, "fill", stream, parameters), 0);
}

static void memory_ends_at_the_exact_limit(void **state)
{
    struct bench bench;
    cuda_pointer addresses[4], more;
    size_t free_bytes, total_bytes;

    (void)state;
    begin(&bench, "memory_bytes 8388608\n"); /* four granules */
    for (int i = 0; i < 4; i++)
        assert_int_equal(bench.cuda.mem_alloc(&addresses[i], i ? 2 * MIB : 1), 0);
    assert_int_equal(bench.cuda.mem_get_info(&free_bytes, &total_bytes), 0);
    assert_int_equal(free_bytes, 0);
    assert_int_equal(total_bytes, 8 * MIB);
    assert_int_equal(bench.cuda.mem_alloc(&more, 1), CUDA_OUT_OF_MEMORY);
    assert_int_equal(bench.cuda.mem_free(addresses[1]), 0);
    assert_int_equal(bench.cuda.mem_alloc(&more, 2 * MIB + 1), CUDA_OUT_OF_MEMORY);
    assert_int_equal(bench.cuda.mem_alloc(&more, 2 * MIB), 0);
    assert_int_equal(bench.cuda.mem_free(more + 512), CUDA_INVALID_VALUE);
    assert_int_equal(bench.cuda.mem_alloc(&more, 0), CUDA_INVALID_VALUE);
    end(&bench);
}

static void copies_sets_and_kernels_keep_the_order_of_a_stream(void **state)
{
    uint32_t out[64], in[64];
    struct bench bench;
    cuda_stream stream;
    cuda_pointer at;

    (void)state;
    begin(&bench, "busy cuMemcpyHtoDAsync_v2 5ms\n");
    assert_int_equal(bench.cuda.stream_create(&stream, CUDA_STREAM_NON_BLOCKING), 0);
    assert_int_equal(bench.cuda.mem_alloc(&at, sizeof(in)), 0);
    for (uint32_t i = 0; i < 64; i++)
        in[i] = i;
    assert_int_equal(bench.cuda.memcpy_htod_async(at, in, sizeof(in), stream), 0);
    memset(in, 0xff, sizeof(in)); /* it was read already: the device does not know it */
    launch_fill(&bench, stream, at, 7, 16);
    assert_int_equal(bench.cuda.memset_d16_async(at + 8, 0x1234, 2, stream), 0);
    assert_int_equal(bench.cuda.memcpy_dtod_async(at + 128, at, 16, stream), 0);
    assert_int_equal(bench.cuda.memcpy_dtoh_async(out, at, sizeof(out), stream), 0);
    assert_int_equal(out[0], 7);
    assert_int_equal(out[2], 0x12341234);
    assert_int_equal(out[16], 16);
    assert_int_equal(out[34], 0x12341234);
    assert_int_equal(out[63], 63);
    end(&bench);
}

static void known_memory_is_copied_later_and_written_by_the_device(void **state)
{
    struct bench bench;
    volatile uint32_t *memory;
    cuda_pointer at, host;
    void *shared;

    (void)state;
    begin(&bench, "busy cuMemsetD8Async 50ms\n");
    shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    memory = shared;
    assert_int_equal(bench.cuda.mem_host_register(shared, 4096, CUDA_HOST_REGISTER_DEVICEMAP), 0);
    assert_int_equal(bench.cuda.mem_host_register(shared, 64, 0),
                     CUDA_HOST_MEMORY_ALREADY_REGISTERED);
    assert_int_equal(bench.cuda.mem_host_get_device_pointer(&host, shared, 0), 0);
    assert_int_equal(bench.cuda.mem_alloc(&at, 4096), 0);
    assert_int_equal(bench.cuda.memset_d8_async(at, 1, 4096, NULL), 0);
    assert_int_equal(bench.cuda.stream_query(NULL), CUDA_NOT_READY);
    assert_int_equal(bench.cuda.memcpy_dtoh_async(shared, at, 4, NULL), 0);
    assert_int_equal(bench.cuda.stream_write_value32(NULL, host + 8, 99, 0), 0);
    assert_int_equal(bench.cuda.stream_write_value32(NULL, host + 4096, 9, 0), CUDA_INVALID_VALUE);
    assert_int_equal(memory[2], 0);
    assert_int_equal(bench.cuda.stream_synchronize(NULL), 0);
    assert_int_equal(memory[0], 0x01010101);
    assert_int_equal(memory[2], 99);
    assert_int_equal(bench.cuda.mem_host_unregister(shared), 0);
    assert_int_equal(bench.cuda.mem_host_unregister(shared), CUDA_HOST_MEMORY_NOT_REGISTERED);
    munmap(shared, 4096);
    end(&bench);
}

static void events_tell_when_the_device_came_to_them(void **state)
{
    struct bench bench;
    cuda_event begun, done;
    cuda_pointer at;
    float ms = 0;

    (void)state;
    begin(&bench, "busy cuMemsetD8Async 30ms\n");
    assert_int_equal(bench.cuda.mem_alloc(&at, 16), 0);
    assert_int_equal(bench.cuda.event_create(&begun, 0), 0);
    assert_int_equal(bench.cuda.event_create(&done, 0), 0);
    assert_int_equal(bench.cuda.event_query(done), 0);
    assert_int_equal(bench.cuda.event_elapsed_time(&ms, begun, done), CUDA_INVALID_HANDLE);
    assert_int_equal(bench.cuda.event_record(begun, NULL), 0);
    assert_int_equal(bench.cuda.memset_d8_async(at, 1, 16, NULL), 0);
    assert_int_equal(bench.cuda.event_record(done, NULL), 0);
    assert_int_equal(bench.cuda.event_query(done), CUDA_NOT_READY);
    assert_int_equal(bench.cuda.event_synchronize(done), 0);
    assert_int_equal(bench.cuda.event_elapsed_time(&ms, begun, done), 0);
    assert_true(ms >= 29.0f);
    assert_int_equal(bench.cuda.event_destroy(done), 0);
    assert_int_equal(bench.cuda.event_query(done), CUDA_INVALID_HANDLE);
    end(&bench);
}

static void entries_and_their_parameters_are_read_from_ptx(void **state)
{
    static const size_t offsets[] = {0, 8, 32}, sizes[] = {2, 24, 4};
    struct bench bench;
    size_t offset, bytes;
    cuda_function found;

    (void)state;
    begin(&bench, "");
    found = function(&bench, "by_value");
    for (size_t i = 0; i < 3; i++) {
        assert_int_equal(bench.cuda.func_get_param_info(found, i, &offset, &bytes), 0);
        assert_int_equal(offset, offsets[i]);
        assert_int_equal(bytes, sizes[i]);
    }
    assert_int_equal(bench.cuda.func_get_param_info(found, 3, &offset, &bytes), CUDA_INVALID_VALUE);
    found = function(&bench, "vector_add");
    assert_int_equal(bench.cuda.func_get_param_info(found, 0, &offset, &bytes), 0);
    assert_int_equal(bytes, 8);
    assert_int_equal(bench.cuda.func_get_param_info(found, 4, &offset, &bytes), CUDA_INVALID_VALUE);
    assert_int_equal(bench.cuda.module_get_function(&found, bench.module, "no_entry"),
                     CUDA_NOT_FOUND);
    assert_int_equal(bench.cuda.module_unload(bench.module), 0);
    assert_int_equal(bench.cuda.module_get_function(&found, bench.module, "fill"),
                     CUDA_INVALID_HANDLE);
    end(&bench);
}

static void what_is_no_ptx_is_refused_with_a_log(void **state)
{
    char log[64] = "";
    cuda_jit_option options[] = {CUDA_JIT_ERROR_LOG_BUFFER, CUDA_JIT_ERROR_LOG_BUFFER_SIZE_BYTES};
    void *values[] = {log, (void *)sizeof(log)};
    struct bench bench;
    cuda_module module;
    size_t offset, bytes;

    (void)state;
    begin(&bench, "entry mine 8 4 8\n");
    assert_int_equal(bench.cuda.module_load_data_ex(&module, "hello", 2, options, values),
                     CUDA_INVALID_PTX);
    assert_non_null(strstr(log, "no PTX"));
    assert_int_equal(bench.cuda.module_load_data_ex(&module, "", 0, NULL, NULL),
                     CUDA_INVALID_IMAGE);
    assert_int_equal(bench.cuda.module_load_data_ex(&bench.module, "\177ELF...", 0, NULL, NULL), 0);
    assert_int_equal(bench.cuda.func_get_param_info(function(&bench, "mine"), 2, &offset, &bytes),
                     0);
    assert_int_equal(offset, 16);
    end(&bench);
}

static void a_fault_stays_with_its_context(void **state)
{
    struct bench bench;
    cuda_pointer at;
    cuda_context other;

    (void)state;
    begin(&bench, "");
    assert_int_equal(bench.cuda.mem_alloc(&at, 16), 0);
    launch_fill(&bench, NULL, at + 4 * MIB, 1, 4); /* of nobody */
    assert_int_equal(bench.cuda.ctx_synchronize(), CUDA_ILLEGAL_ADDRESS);
    assert_int_equal(bench.cuda.mem_free(at), CUDA_ILLEGAL_ADDRESS);
    assert_int_equal(bench.cuda.ctx_destroy(bench.context), CUDA_ILLEGAL_ADDRESS);
    assert_int_equal(bench.cuda.ctx_create(&other, 0, 0), 0);
    assert_int_equal(bench.cuda.mem_alloc(&at, 16), 0);
    assert_int_equal(bench.cuda.module_load_data_ex(&bench.module, ptx, 0, NULL, NULL), 0);
    assert_int_equal(launch(&bench, "assert_fail", NULL, NULL), 0);
    assert_int_equal(bench.cuda.stream_synchronize(NULL), CUDA_ASSERT);
    end(&bench);
}

static void a_context_sees_only_its_own_memory(void **state)
{
    struct bench bench;
    cuda_context other;
    cuda_pointer at;

    (void)state;
    begin(&bench, "");
    assert_int_equal(bench.cuda.mem_alloc(&at, 16), 0);
    assert_int_equal(bench.cuda.ctx_create(&other, 0, 0), 0);
    assert_int_equal(bench.cuda.memset_d8_async(at, 1, 16, NULL), CUDA_INVALID_VALUE);
    assert_int_equal(bench.cuda.ctx_set_current(bench.context), 0);
    assert_int_equal(bench.cuda.memset_d8_async(at, 1, 16, NULL), 0);
    assert_int_equal(bench.cuda.ctx_destroy(bench.context), 0);
    assert_int_equal(bench.cuda.mem_free(at), CUDA_INVALID_CONTEXT);
    end(&bench);
}

static void contexts_of_two_devices_copy_and_wait_across(void **state)
{
    struct bench bench;
    cuda_context other;
    cuda_pointer here, there;
    cuda_stream stream;
    cuda_event event;
    uint32_t word = 0;

    (void)state;
    begin(&bench, "devices 2\nbusy cuMemsetD32Async 50ms\n");
    assert_int_equal(bench.cuda.mem_alloc(&here, 16), 0);
    assert_int_equal(bench.cuda.event_create(&event, CUDA_EVENT_DEFAULT), 0);
    assert_int_equal(bench.cuda.memset_d32_async(here, 0xabcd, 4, NULL), 0);
    assert_int_equal(bench.cuda.event_record(event, NULL), 0);
    assert_int_equal(bench.cuda.ctx_create(&other, 0, 1), 0);
    assert_int_equal(bench.cuda.mem_alloc(&there, 16), 0);
    assert_int_equal(bench.cuda.stream_create(&stream, CUDA_STREAM_DEFAULT), 0);
    assert_int_equal(bench.cuda.stream_wait_event(stream, event, 0), 0);
    assert_int_equal(bench.cuda.memcpy_peer_async(there, bench.context, here, other, 16, stream),
                     CUDA_INVALID_VALUE);
    assert_int_equal(bench.cuda.memcpy_peer_async(there, other, here, bench.context, 16, stream),
                     0);
    assert_int_equal(bench.cuda.memcpy_dtoh_async(&word, there, 4, stream), 0);
    assert_int_equal(word, 0xabcd);
    assert_int_equal(bench.cuda.ctx_destroy(bench.context), 0);
    assert_int_equal(bench.cuda.memcpy_peer_async(there, other, here, bench.context, 16, stream),
                     CUDA_INVALID_CONTEXT);
    end(&bench);
}

static void copy_word(void *argument)
{
    uint32_t *words = argument;

    words[1] = words[0];
}

static void functions_of_the_host_run_when_their_stream_comes_to_them(void **state)
{
    struct bench bench;
    cuda_pointer at;
    uint32_t *words;
    void *memory;

    (void)state;
    begin(&bench, "busy cuMemsetD32Async 50ms\n");
    assert_int_equal(bench.cuda.mem_host_alloc(&memory, 4096, 0), 0);
    words = memory;
    words[0] = words[1] = 1;
    assert_int_equal(bench.cuda.mem_alloc(&at, 16), 0);
    assert_int_equal(bench.cuda.memset_d32_async(at, 7, 4, NULL), 0);
    assert_int_equal(bench.cuda.memcpy_dtoh_async(words, at, 4, NULL), 0);
    assert_int_equal(bench.cuda.launch_host_func(NULL, NULL, words), CUDA_INVALID_VALUE);
    assert_int_equal(bench.cuda.launch_host_func(NULL, copy_word, words), 0);
    assert_int_equal(bench.cuda.stream_synchronize(NULL), 0);
    assert_int_equal(words[1], 7);
    assert_int_equal(bench.cuda.mem_free_host(memory), 0);
    end(&bench);
}

static void orders_fail_calls_by_their_number(void **state)
{
    struct bench bench;
    cuda_pointer at;
    char path[PATH_MAX + 8], line[64], *log;

    (void)state;
    begin(&bench, "fail cuMemAlloc_v2 2 2\nlog 1\n");
    assert_int_equal(bench.cuda.mem_alloc(&at, 1), 0);
    assert_int_equal(bench.cuda.mem_alloc(&at, 1), CUDA_OUT_OF_MEMORY);
    assert_int_equal(bench.cuda.mem_alloc(&at, 1), 0);
    gpu_double_order(&bench.own, "fail cuStreamSynchronize * 719\n");
    assert_int_equal(bench.cuda.stream_synchronize(NULL), CUDA_LAUNCH_FAILED);
    assert_int_equal(bench.cuda.stream_synchronize(NULL), CUDA_LAUNCH_FAILED);
    gpu_double_order(&bench.own, "lost 1 214\n");
    assert_int_equal(bench.cuda.mem_alloc(&at, 1), CUDA_ECC_UNCORRECTABLE);
    assert_int_equal(bench.cuda.init(0), CUDA_ECC_UNCORRECTABLE);
    gpu_double_order(&bench.own, "");
    assert_int_equal(bench.cuda.mem_alloc(&at, 1), 0);
    snprintf(path, sizeof(path), "%s.log", bench.own.path);
    log = unit_read_file(path);
    snprintf(line, sizeof(line), "%d cuInit\n%d cuCtxCreate_v2\n", getpid(), getpid());
    assert_non_null(strstr(log, line));
    assert_null(strstr(log, "cuStreamSynchronize"));
    free(log);
    end(&bench);
}

static void launches_wait_where_the_queue_is_full(void **state)
{
    struct bench bench;

    (void)state;
    begin(&bench, "queue_depth 1\ndelay_us 1000\n");
    for (int i = 0; i < 10; i++)
        assert_int_equal(launch(&bench, "unheard_of", NULL, NULL), 0);
    assert_int_equal(bench.cuda.ctx_synchronize(), 0);
    assert_int_equal(bench.cuda.stream_query(NULL), 0);
    end(&bench);
}

static void all_that_comes_into_a_stream_waits_where_the_queue_is_full(void **state)
{
    cuda_pointer memory;
    cuda_event event;
    struct bench bench;

    (void)state;
    begin(&bench, "queue_depth 2\nbusy cuLaunchKernel 300ms\n");
    assert_int_equal(bench.cuda.mem_alloc(&memory, 4096), 0);
    assert_int_equal(bench.cuda.event_create(&event, 0), 0);
    assert_int_equal(launch(&bench, "unheard_of", NULL, NULL), 0);
    assert_int_equal(bench.cuda.event_record(event, NULL), 0);
    assert_int_equal(bench.cuda.stream_query(NULL), CUDA_NOT_READY);
    assert_int_equal(bench.cuda.stream_wait_event(NULL, event, 0), 0);      /* behind the kernel */
    assert_int_equal(bench.cuda.memset_d8_async(memory, 1, 4096, NULL), 0); /* and the record */
    assert_int_equal(bench.cuda.event_query(event), 0);
    assert_int_equal(bench.cuda.ctx_synchronize(), 0);
    end(&bench);
}

/* Streams run beside each other, but where an event or the default stream orders them. */
static void with_engines_streams_overtake_each_other(void **state)
{
    cuda_stream slow, quick;
    cuda_event event;
    struct bench bench;

    (void)state;
    begin(&bench, "engines 2\nbusy cuLaunchKernel 100ms\n");
    assert_int_equal(bench.cuda.stream_create(&slow, 0), 0);
    assert_int_equal(bench.cuda.stream_create(&quick, 0), 0);
    assert_int_equal(bench.cuda.event_create(&event, 0), 0);
    assert_int_equal(launch(&bench, "unheard_of", slow, NULL), 0);
    assert_int_equal(bench.cuda.event_record(event, quick), 0);
    assert_int_equal(bench.cuda.stream_synchronize(quick), 0);
    assert_int_equal(bench.cuda.stream_query(slow), CUDA_NOT_READY);
    assert_int_equal(bench.cuda.event_record(event, slow), 0);
    assert_int_equal(bench.cuda.stream_wait_event(quick, event, 0), 0);
    assert_int_equal(bench.cuda.stream_synchronize(quick), 0);
    assert_int_equal(bench.cuda.stream_query(slow), 0);
    assert_int_equal(launch(&bench, "unheard_of", slow, NULL), 0);
    assert_int_equal(bench.cuda.event_record(event, NULL), 0);
    assert_int_equal(bench.cuda.stream_synchronize(NULL), 0);
    assert_int_equal(bench.cuda.stream_query(slow), 0);
    end(&bench);
}

static void without_engines_a_call_returns_when_its_work_has_ended(void **state)
{
    cuda_stream stream;
    cuda_event event;
    struct bench bench;

    (void)state;
    begin(&bench, "engines 0\nbusy cuLaunchKernel 20ms\n");
    assert_int_equal(bench.cuda.stream_create(&stream, 0), 0);
    assert_int_equal(bench.cuda.event_create(&event, 0), 0);
    assert_int_equal(launch(&bench, "unheard_of", stream, NULL), 0);
    assert_int_equal(bench.cuda.stream_query(stream), 0);
    assert_int_equal(bench.cuda.event_record(event, stream), 0);
    assert_int_equal(bench.cuda.event_query(event), 0);
    assert_int_equal(bench.cuda.stream_wait_event(NULL, event, 0), 0);
    assert_int_equal(bench.cuda.stream_query(NULL), 0);
    end(&bench);
}

static void a_launch_that_no_device_takes_is_refused(void **state)
{
    struct bench bench;
    cuda_function found;

    (void)state;
    begin(&bench, "");
    found = function(&bench, "unheard_of");
    assert_int_equal(bench.cuda.launch_kernel(found, 0, 1, 1, 32, 1, 1, 0, NULL, NULL, NULL), 1);
    assert_int_equal(bench.cuda.launch_kernel(found, 1, 1, 1, 1024, 2, 1, 0, NULL, NULL, NULL), 1);
    assert_int_equal(bench.cuda.launch_kernel(found, 1, 1, 1, 32, 1, 1, 65536, NULL, NULL, NULL),
                     1);
    assert_int_equal(
        bench.cuda.func_set_attribute(found, CUDA_FUNCTION_MAX_DYNAMIC_SHARED_SIZE_BYTES, 65536),
        0);
    assert_int_equal(bench.cuda.launch_kernel(found, 1, 1, 1, 32, 1, 1, 65536, NULL, NULL, NULL),
                     0);
    end(&bench);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(memory_ends_at_the_exact_limit),
        cmocka_unit_test(copies_sets_and_kernels_keep_the_order_of_a_stream),
        cmocka_unit_test(known_memory_is_copied_later_and_written_by_the_device),
        cmocka_unit_test(events_tell_when_the_device_came_to_them),
        cmocka_unit_test(entries_and_their_parameters_are_read_from_ptx),
        cmocka_unit_test(what_is_no_ptx_is_refused_with_a_log),
        cmocka_unit_test(a_fault_stays_with_its_context),
        cmocka_unit_test(a_context_sees_only_its_own_memory),
        cmocka_unit_test(contexts_of_two_devices_copy_and_wait_across),
        cmocka_unit_test(functions_of_the_host_run_when_their_stream_comes_to_them),
        cmocka_unit_test(orders_fail_calls_by_their_number),
        cmocka_unit_test(launches_wait_where_the_queue_is_full),
        cmocka_unit_test(all_that_comes_into_a_stream_waits_where_the_queue_is_full),
        cmocka_unit_test(with_engines_streams_overtake_each_other),
        cmocka_unit_test(without_engines_a_call_returns_when_its_work_has_ended),
        cmocka_unit_test(a_launch_that_no_device_takes_is_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
