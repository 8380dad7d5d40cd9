/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What every fuzz target needs.
 *
 * A target defines LLVMFuzzerTestOneInput().  Built with -Dfuzzers=true libFuzzer drives it;
 * otherwise replay.c does, with the files of the corpus, so that every input
 * that was ever interesting is a test in every build.
 */
#ifndef VGPU_TESTS_FUZZ_H
#define VGPU_TESTS_FUZZ_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

/* assert() that no build option can take away. */
#define FUZZ_REQUIRE(condition)                                                                    \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: broken: %s\n", __FILE__, __LINE__, #condition);                \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

#endif /* VGPU_TESTS_FUZZ_H */
