/* SPDX-License-Identifier: Apache-2.0 */
/* host/check_exports.c: exports that let a guest do more than it should. */
#include "host_tree.h"

#define SQUASHED "(rw,sync,all_squash,anonuid=100007,anongid=100007)"

static void expect_kernel(const char *text, enum host_verdict verdict, const char *found)
{
    struct tree tree;

    tree_begin(&tree);
    tree_write(&tree, "/etc/exports", text);
    tree_expect(&tree, "kernel-exports", verdict, found);
    tree_end(&tree);
}

static void expect_ganesha(const char *text, enum host_verdict verdict, const char *found)
{
    struct tree tree;

    tree_begin(&tree);
    tree_write(&tree, "/etc/ganesha/ganesha.conf", text);
    tree_expect(&tree, "ganesha-exports", verdict, found);
    tree_end(&tree);
}

/* --- the kernel's server ---------------------------------------------------------------- */

static void without_exports_of_the_share_there_is_nothing_to_judge(void **state)
{
    struct tree tree;

    (void)state;
    tree_begin(&tree);
    tree_expect(&tree, "kernel-exports", HOST_SKIP, "nothing of /var/vgpu");
    tree_expect(&tree, "ganesha-exports", HOST_SKIP, "nothing of /var/vgpu");
    tree.host.share = "";
    tree_expect(&tree, "kernel-exports", HOST_SKIP, "no share");
    tree_end(&tree);
    expect_kernel("/home *(rw,no_root_squash)\n/var/vgpu2/vm1 *(rw)\n", HOST_SKIP, "nothing");
}

static void the_documents_own_exports_pass(void **state)
{
    (void)state;
    expect_kernel("# comment\n"
                  "/var/vgpu/vm7  10.77.0.17" SQUASHED "\n"
                  "/var/vgpu/vm8  10.77.0.18(rw,all_squash) # of VM 8\n",
                  HOST_PASS, "2 exports");
}

static void everybody_in_any_spelling_fails(void **state)
{
    static const char *const clients[] = {"*" SQUASHED,
                                          "*.example.org" SQUASHED,
                                          "0.0.0.0/0" SQUASHED,
                                          "::/0" SQUASHED,
                                          "0.0.0.0" SQUASHED,
                                          "::" SQUASHED,
                                          "0.0.0.0/0.0.0.0" SQUASHED,
                                          "10.77.0.17/0" SQUASHED,
                                          SQUASHED,
                                          ""};
    char line[256];

    (void)state;
    for (size_t i = 0; i < sizeof(clients) / sizeof(clients[0]); i++) {
        snprintf(line, sizeof(line), "/var/vgpu/vm7 %s\n", clients[i]);
        expect_kernel(line, HOST_FAIL, "open to everybody");
    }
}

static void a_blank_before_the_options_opens_it_to_everybody(void **state)
{
    (void)state;
    expect_kernel("/var/vgpu/vm7 10.77.0.17 (rw,all_squash)\n", HOST_FAIL, "open to everybody");
}

static void root_that_stays_root_fails(void **state)
{
    (void)state;
    expect_kernel("/var/vgpu/vm7 10.77.0.17(rw,no_root_squash)\n", HOST_FAIL, "root of a guest");
    expect_kernel("/var/vgpu/vm7 -no_root_squash 10.77.0.17(rw)\n", HOST_FAIL, "root of a guest");
    expect_kernel("/var/vgpu/vm7 -no_root_squash 10.77.0.17(all_squash)\n", HOST_PASS, "1 export");
}

static void users_that_stay_who_they_say_are_a_warning(void **state)
{
    (void)state;
    expect_kernel("/var/vgpu/vm7 10.77.0.17(rw)\n", HOST_WARN, "a guest chooses which user");
}

static void a_network_is_a_warning(void **state)
{
    (void)state;
    expect_kernel("/var/vgpu/vm7 10.77.0.0/24" SQUASHED "\n", HOST_WARN, "whole network");
    expect_kernel("/var/vgpu/vm7 @guests" SQUASHED "\n", HOST_WARN, "netgroup");
}

static void one_export_for_all_fails_however_high_it_starts(void **state)
{
    (void)state;
    expect_kernel("/var/vgpu 10.77.0.17" SQUASHED "\n", HOST_FAIL, "all VMs");
    expect_kernel("/var/vgpu/ 10.77.0.17" SQUASHED "\n", HOST_FAIL, "all VMs");
    expect_kernel("/var 10.77.0.17" SQUASHED "\n", HOST_FAIL, "all VMs");
    expect_kernel("/ 10.77.0.17" SQUASHED "\n", HOST_FAIL, "all VMs");
}

static void quotes_escapes_and_continued_lines_are_read(void **state)
{
    (void)state;
    expect_kernel("\"/var/vgpu/vm7\" *" SQUASHED "\n", HOST_FAIL, "open to everybody");
    expect_kernel("/var\\057vgpu/vm7 *" SQUASHED "\n", HOST_FAIL, "open to everybody");
    expect_kernel("/var/vgpu/vm7 \\\n  10.77.0.17" SQUASHED " \\\n  *" SQUASHED "\n", HOST_FAIL,
                  "open to everybody");
    expect_kernel("/var/vgpu/vm7 *" SQUASHED, HOST_FAIL, "open to everybody");
}

static void files_of_exports_d_count_by_their_ending(void **state)
{
    struct tree tree;

    (void)state;
    tree_begin(&tree);
    tree_write(&tree, "/etc/exports.d/vm7.exports.bak", "/var/vgpu/vm7 *(rw)\n");
    tree_expect(&tree, "kernel-exports", HOST_SKIP, "nothing");
    tree_write(&tree, "/etc/exports.d/vm7.exports", "/var/vgpu/vm7 *(rw)\n");
    tree_expect(&tree, "kernel-exports", HOST_FAIL, "open to everybody");
    tree_end(&tree);
}

static void a_guest_that_may_mount_two_directories_fails(void **state)
{
    (void)state;
    expect_kernel("/var/vgpu/vm7 10.77.0.17" SQUASHED "\n/var/vgpu/vm8 10.77.0.17" SQUASHED "\n",
                  HOST_FAIL, "10.77.0.17 may mount both /var/vgpu/vm7 and /var/vgpu/vm8");
    expect_kernel("/var/vgpu/vm7 FE80::0:7" SQUASHED "\n/var/vgpu/vm8 fe80::7" SQUASHED "\n",
                  HOST_FAIL, "fe80::7 may mount both");
    expect_kernel("/var/vgpu/vm7 Web.example" SQUASHED "\n/var/vgpu/vm8 web.example" SQUASHED "\n",
                  HOST_FAIL, "web.example may mount both");
    expect_kernel("/var/vgpu/vm7 10.77.0.17" SQUASHED "\n/var/vgpu/vm7/ 10.77.0.17" SQUASHED "\n",
                  HOST_PASS, "2 exports");
}

static void a_directory_that_two_guests_may_mount_is_a_warning(void **state)
{
    (void)state;
    expect_kernel("/var/vgpu/vm7 10.77.0.17" SQUASHED " 10.77.0.18" SQUASHED "\n", HOST_WARN,
                  "/var/vgpu/vm7 is for two guests, 10.77.0.17 and 10.77.0.18");
}

static void an_export_that_is_no_vms_directory_is_a_warning(void **state)
{
    (void)state;
    expect_kernel("/var/vgpu/.retired/vm7-20260131T120000Z 10.77.0.17" SQUASHED "\n", HOST_WARN,
                  ".retired is exported and no VM's directory");
    expect_kernel("/var/vgpu 10.77.0.17" SQUASHED "\n", HOST_FAIL, "one export for");
    expect_kernel("/ 10.77.0.17" SQUASHED "\n", HOST_FAIL, "one export for");
}

static void register_vm(const struct tree *tree, uint32_t vm_id, uint32_t channels)
{
    struct store_vm vm;

    store_vm_init(&vm);
    vm.vm_id = vm_id;
    vm.channels = channels;
    tree_register(tree, &vm);
}

static void what_is_left_of_vms_that_are_not_registered_is_a_warning(void **state)
{
    struct tree tree;

    (void)state;
    tree_begin(&tree);
    tree_write(&tree, "/etc/exports",
               "/var/vgpu/vm7 10.77.0.17" SQUASHED "\n/var/vgpu/vm8 10.77.0.18" SQUASHED "\n");
    tree_directory(&tree, "/var/vgpu/vm8", 0700);
    tree_expect(&tree, "kernel-exports", HOST_PASS, "2 exports"); /* there is no registry */
    register_vm(&tree, 7, STORE_CHANNEL_FILE);
    register_vm(&tree, 8, STORE_CHANNEL_WINDOW);
    tree_expect(&tree, "kernel-exports", HOST_WARN,
                "vm8 is exported, and no VM 8 with the file channel is registered");
    tree_expect(&tree, "share", HOST_WARN,
                "vm8 is there, and no VM 8 with the file channel is registered");
    tree_end(&tree);
}

/* --- nfs-ganesha ---------------------------------------------------------------------------- */

#define EXPORT(more)                                                                               \
    "EXPORT { Export_Id = 7; Path = /var/vgpu/vm7; Pseudo = /vm7; Access_Type = None;\n"           \
    "  Squash = All; FSAL { Name = VFS; } " more " }\n"

static void the_documents_own_ganesha_exports_pass(void **state)
{
    (void)state;
    expect_ganesha("NFS_CORE_PARAM { Protocols = 4; } # only\n" EXPORT(
                       "CLIENT { Clients = 10.77.0.17; Access_Type = RW; }"),
                   HOST_PASS, "1 export,");
}

static void ganesha_clients_are_judged(void **state)
{
    (void)state;
    expect_ganesha(EXPORT("CLIENT { Clients = *; Access_Type = RW; }"), HOST_FAIL, "everybody");
    expect_ganesha(EXPORT("CLIENT { Clients = 10.77.0.17, 0.0.0.0/0; }"), HOST_FAIL, "everybody");
    expect_ganesha(EXPORT("CLIENT { Clients = 10.77.0.0/24; }"), HOST_WARN, "network");
    expect_ganesha(EXPORT("CLIENT { Clients = 10.77.0.17; Squash = No_Root_Squash; }"), HOST_FAIL,
                   "root of a guest");
}

static void ganesha_access_for_all_is_found_wherever_it_stands(void **state)
{
    (void)state;
    expect_ganesha("EXPORT { Path = \"/var/vgpu/vm7\"; Access_Type = RW; Squash = All; }",
                   HOST_FAIL, "everybody");
    expect_ganesha("EXPORT_DEFAULTS { Access_Type = RW; }\n"
                   "EXPORT { Path = /var/vgpu/vm7; Squash = all_squash; }",
                   HOST_FAIL, "everybody");
    expect_ganesha("export{path=/var/vgpu/vm7;access_type=rw;squash=all;}", HOST_FAIL, "everybody");
}

static void ganesha_squash_is_judged(void **state)
{
    (void)state;
    expect_ganesha("EXPORT { Path = /var/vgpu/vm7; CLIENT { Clients = 10.0.0.1; } }", HOST_WARN,
                   "chooses which user");
    expect_ganesha("EXPORT { Path = /var/vgpu/vm7; Squash = None; CLIENT { Clients = 10.0.0.1; } }",
                   HOST_FAIL, "root of a guest");
    expect_ganesha("EXPORT_DEFAULTS { Squash = All; }\n"
                   "EXPORT { Path = /var/vgpu/vm7; CLIENT { Clients = 10.0.0.1; } }",
                   HOST_PASS, "1 export");
}

static void ganesha_exporting_the_share_fails(void **state)
{
    (void)state;
    expect_ganesha("EXPORT { Path = /var/vgpu; Squash = All; CLIENT { Clients = 10.0.0.1; } }",
                   HOST_FAIL, "all VMs");
}

static void ganesha_files_one_folder_below_are_read(void **state)
{
    struct tree tree;

    (void)state;
    tree_begin(&tree);
    tree_write(&tree, "/etc/ganesha/vgpu/vm7.conf",
               EXPORT("CLIENT { Clients = *; Access_Type = RW; }"));
    tree_expect(&tree, "ganesha-exports", HOST_FAIL, "everybody");
    tree_end(&tree);
}

static void the_administrators_own_folder_is_read_too(void **state)
{
    struct tree tree;

    (void)state;
    tree_begin(&tree);
    tree.host.exports_dir = "/srv/exports";
    tree_write(&tree, "/srv/exports/vm7.conf", EXPORT("CLIENT { Clients = *; Access_Type = RW; }"));
    tree_expect(&tree, "ganesha-exports", HOST_FAIL, "everybody");
    tree_expect(&tree, "kernel-exports", HOST_SKIP, "nothing");
    tree_write(&tree, "/srv/exports/vgpu-vm7.exports", "/var/vgpu/vm7 *(rw)\n");
    tree_expect(&tree, "kernel-exports", HOST_FAIL, "everybody");
    tree_end(&tree);
}

static void a_file_is_not_read_twice(void **state)
{
    struct tree tree;

    (void)state;
    tree_begin(&tree);
    tree.host.exports_dir = "/etc/ganesha/vgpu";
    tree_write(&tree, "/etc/ganesha/vgpu/vm7.conf",
               EXPORT("CLIENT { Clients = 10.77.0.17; Access_Type = RW; }"));
    tree_expect(&tree, "ganesha-exports", HOST_PASS, "1 export,");
    tree_end(&tree);
}

static void a_folder_that_only_begins_like_the_usual_one_is_read_too(void **state)
{
    static const char *const folders[] = {"/etc/exports.d2", "/etc/exports.d/vgpu",
                                          "/etc/ganesha-vgpu", "/etc/ganesha/a/b"};
    struct tree tree;

    (void)state;
    for (size_t i = 0; i < sizeof(folders) / sizeof(folders[0]); i++) {
        char path[PATH_MAX];

        tree_begin(&tree);
        tree.host.exports_dir = folders[i];
        snprintf(path, sizeof(path), "%s/vm7.conf", folders[i]);
        tree_write(&tree, path, EXPORT("CLIENT { Clients = *; Access_Type = RW; }"));
        tree_expect(&tree, "ganesha-exports", HOST_FAIL, "everybody");
        snprintf(path, sizeof(path), "%s/vgpu-vm7.exports", folders[i]);
        tree_write(&tree, path, "/var/vgpu/vm7 *(rw,all_squash)\n");
        tree_expect(&tree, "kernel-exports", HOST_FAIL, "everybody");
        tree_end(&tree);
    }
}

static void one_ganesha_client_of_two_exports_fails(void **state)
{
    (void)state;
    expect_ganesha(EXPORT("CLIENT { Clients = 10.77.0.17; }") "EXPORT { Path = /var/vgpu/vm8; "
                                                              "Access_Type = None; Squash = All; "
                                                              "CLIENT { Clients = 10.77.0.17; } }",
                   HOST_FAIL, "10.77.0.17 may mount both /var/vgpu/vm7 and /var/vgpu/vm8");
    expect_ganesha(EXPORT("CLIENT { Clients = ::; }"), HOST_FAIL, "everybody");
}

static void a_file_of_braces_is_read_to_its_end(void **state)
{
    char *text = malloc(400001);
    struct tree tree;

    (void)state;
    assert_non_null(text);
    for (size_t i = 0; i < 100000; i++)
        memcpy(text + 4 * i, "a { ", 4);
    text[400000] = '\0';
    tree_begin(&tree);
    tree_write(&tree, "/etc/ganesha/ganesha.conf", text);
    tree_expect(&tree, "ganesha-exports", HOST_SKIP, "nothing");
    free(text);
    tree_end(&tree);
}

static void broken_ganesha_files_are_read_to_their_end(void **state)
{
    static const char *const texts[] = {
        "}}}{{{",
        "EXPORT { Path = /var/vgpu/vm7",
        "EXPORT",
        "= = =",
        "{ { { { { { { { { { { {",
        "a { b { c { d { e { f { g { h { i { j { Path = x; } } } } } } } } } }",
        "\"",
        "#",
    };
    struct host_check check;
    struct tree tree;

    (void)state;
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        tree_begin(&tree);
        tree_write(&tree, "/etc/ganesha/ganesha.conf", texts[i]);
        check = tree_check(&tree, "ganesha-exports");
        assert_true(check.found[0]);
        tree_end(&tree);
    }
    expect_ganesha("} EXPORT { Path = /var/vgpu; Access_Type = RW; }", HOST_FAIL, "all VMs");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(without_exports_of_the_share_there_is_nothing_to_judge),
        cmocka_unit_test(the_documents_own_exports_pass),
        cmocka_unit_test(everybody_in_any_spelling_fails),
        cmocka_unit_test(a_blank_before_the_options_opens_it_to_everybody),
        cmocka_unit_test(root_that_stays_root_fails),
        cmocka_unit_test(users_that_stay_who_they_say_are_a_warning),
        cmocka_unit_test(a_network_is_a_warning),
        cmocka_unit_test(one_export_for_all_fails_however_high_it_starts),
        cmocka_unit_test(quotes_escapes_and_continued_lines_are_read),
        cmocka_unit_test(files_of_exports_d_count_by_their_ending),
        cmocka_unit_test(a_guest_that_may_mount_two_directories_fails),
        cmocka_unit_test(a_directory_that_two_guests_may_mount_is_a_warning),
        cmocka_unit_test(an_export_that_is_no_vms_directory_is_a_warning),
        cmocka_unit_test(what_is_left_of_vms_that_are_not_registered_is_a_warning),
        cmocka_unit_test(the_documents_own_ganesha_exports_pass),
        cmocka_unit_test(ganesha_clients_are_judged),
        cmocka_unit_test(ganesha_access_for_all_is_found_wherever_it_stands),
        cmocka_unit_test(ganesha_squash_is_judged),
        cmocka_unit_test(ganesha_exporting_the_share_fails),
        cmocka_unit_test(ganesha_files_one_folder_below_are_read),
        cmocka_unit_test(the_administrators_own_folder_is_read_too),
        cmocka_unit_test(a_file_is_not_read_twice),
        cmocka_unit_test(a_folder_that_only_begins_like_the_usual_one_is_read_too),
        cmocka_unit_test(one_ganesha_client_of_two_exports_fails),
        cmocka_unit_test(a_file_of_braces_is_read_to_its_end),
        cmocka_unit_test(broken_ganesha_files_are_read_to_their_end),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
