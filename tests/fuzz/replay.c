/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Runs a fuzz target on files: `TARGET FILE|DIRECTORY...`.  Prints one TAP line
 * a file; a broken invariant aborts, as it does under the fuzzer.
 */
#include "fuzz.h"

#include <dirent.h>
#include <string.h>
#include <sys/stat.h>

#define INPUT_MAX_BYTES (1u << 20)

static unsigned replayed;

static void replay_file(const char *path)
{
    FILE *file = fopen(path, "rbe");
    uint8_t *data = malloc(INPUT_MAX_BYTES);
    uint8_t *exact;
    size_t bytes;

    if (!file || !data) {
        perror(path);
        exit(2);
    }
    bytes = fread(data, 1, INPUT_MAX_BYTES, file);
    fclose(file);
    /* In memory of its own size, so that a sanitizer sees a read past it. */
    exact = malloc(bytes ? bytes : 1);
    if (!exact)
        abort();
    memcpy(exact, data, bytes);
    free(data);
    LLVMFuzzerTestOneInput(exact, bytes);
    free(exact);
    printf("ok %u - %s\n", ++replayed, strrchr(path, '/') ? strrchr(path, '/') + 1 : path);
}

static int is_visible(const struct dirent *entry)
{
    return entry->d_name[0] != '.';
}

static void replay_directory(const char *path)
{
    struct dirent **entries;
    int count = scandir(path, &entries, is_visible, alphasort);

    if (count < 0) {
        perror(path);
        exit(2);
    }
    for (int i = 0; i < count; i++) {
        char *file = NULL;

        if (asprintf(&file, "%s/%s", path, entries[i]->d_name) < 0)
            abort();
        replay_file(file);
        free(file);
        free(entries[i]);
    }
    free(entries);
}

int main(int argc, char **argv)
{
    setvbuf(stdout, NULL, _IOLBF, 0); /* an abort must not hide which file it was */
    for (int i = 1; i < argc; i++) {
        struct stat info;

        if (stat(argv[i], &info) < 0) {
            perror(argv[i]);
            return 2;
        }
        if (S_ISDIR(info.st_mode))
            replay_directory(argv[i]);
        else
            replay_file(argv[i]);
    }
    if (replayed == 0) {
        fprintf(stderr, "usage: %s FILE|DIRECTORY...: nothing to replay\n", argv[0]);
        return 2;
    }
    printf("1..%u\n", replayed);
    return 0;
}
