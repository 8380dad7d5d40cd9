/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Our device in a libvirt domain's XML.
 *
 *   <domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
 *     <devices><emulator>/usr/bin/qemu-with-vgpu</emulator> ...
 *     <qemu:commandline>
 *       <qemu:arg value='-device'/> <qemu:arg value='vgpu-stub,...'/>
 *
 * libvirt knows no such device, so it comes as arguments that libvirt hands to QEMU
 * as they are.  Arguments of others stand in the same list: ours are recognised
 * (device.c), taken out and put at the end, and all else stays as it was.
 */
#include "toolstack/private.h"

#include <errno.h>
#include <libxml/parser.h>
#include <libxml/tree.h>
#include <libxml/xmlsave.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define QEMU_NAMESPACE "http://libvirt.org/schemas/domain/qemu/1.0"
#define ARGUMENTS_MAX 1024u
#define XML_MAX_BYTES (4u << 20)

/* The arguments of <qemu:commandline>, with the elements that they stand in. */
struct command_line {
    size_t count;
    xmlNode *nodes[ARGUMENTS_MAX];
    char *values[ARGUMENTS_MAX];
};

/* libxml2 prints to standard error unless it is told not to. */
static xmlDoc *parse(const char *xml, struct vgpu_error *error)
{
    size_t bytes = strlen(xml);
    xmlDoc *document = NULL;
    xmlNode *root;

    if (bytes <= XML_MAX_BYTES)
        document = xmlReadMemory(xml, (int)bytes, "domain.xml", NULL,
                                 XML_PARSE_NONET | XML_PARSE_NOBLANKS | XML_PARSE_NOERROR |
                                     XML_PARSE_NOWARNING);
    root = document ? xmlDocGetRootElement(document) : NULL;
    if (root && !strcmp((const char *)root->name, "domain"))
        return document;
    xmlFreeDoc(document);
    error_set(error, EBADMSG, "a domain's XML was expected, but this is none: '%.40s'", xml);
    return NULL;
}

static bool is_element(const xmlNode *node, const char *name, const char *space)
{
    if (node->type != XML_ELEMENT_NODE || strcmp((const char *)node->name, name) != 0)
        return false;
    if (!space)
        return !node->ns;
    return node->ns && !strcmp((const char *)node->ns->href, space);
}

static xmlNode *child(xmlNode *parent, const char *name, const char *space)
{
    for (xmlNode *node = parent ? parent->children : NULL; node; node = node->next) {
        if (is_element(node, name, space))
            return node;
    }
    return NULL;
}

static void copy_content(xmlNode *node, char *text, size_t bytes)
{
    xmlChar *content = node ? xmlNodeGetContent(node) : NULL;

    text_copy(text, bytes, content ? (const char *)content : "");
    xmlFree(content);
}

/* -1: more arguments than anybody has. */
static int read_command_line(xmlNode *root, struct command_line *line, struct vgpu_error *error)
{
    xmlNode *parent = child(root, "commandline", QEMU_NAMESPACE);

    line->count = 0;
    for (xmlNode *node = parent ? parent->children : NULL; node; node = node->next) {
        if (!is_element(node, "arg", QEMU_NAMESPACE))
            continue;
        if (line->count == ARGUMENTS_MAX)
            return error_set(error, E2BIG, "the domain's <qemu:commandline> has over %u arguments",
                             ARGUMENTS_MAX);
        line->nodes[line->count] = node;
        line->values[line->count] = (char *)xmlGetProp(node, BAD_CAST "value");
        if (!line->values[line->count])
            line->values[line->count] = (char *)xmlStrdup(BAD_CAST "");
        line->count++;
    }
    return 0;
}

static void clear_command_line(struct command_line *line)
{
    for (size_t i = 0; i < line->count; i++)
        xmlFree(line->values[i]);
    free(line);
}

/* The arguments and what they say; NULL on failure. */
static struct command_line *load_command_line(xmlNode *root, struct device_arguments *ret_found,
                                              struct vgpu_error *error)
{
    struct command_line *line = calloc(1, sizeof(*line));

    if (!line) {
        error_set(error, ENOMEM, "no memory");
        return NULL;
    }
    if (read_command_line(root, line, error) < 0) {
        clear_command_line(line);
        return NULL;
    }
    device_read_arguments((const char *const *)line->values, line->count, ret_found);
    return line;
}

int libvirt_xml_read(const char *xml, struct toolstack_vm *ret_vm, struct vgpu_error *error)
{
    struct toolstack_vm vm = {.state = TOOLSTACK_OFF};
    struct device_arguments found;
    struct command_line *line;
    xmlDoc *document = parse(xml, error);
    xmlNode *root;

    if (!document)
        return -1;
    root = xmlDocGetRootElement(document);
    line = load_command_line(root, &found, error);
    if (!line) {
        xmlFreeDoc(document);
        return -1;
    }
    copy_content(child(root, "uuid", NULL), vm.uuid, sizeof(vm.uuid));
    copy_content(child(root, "name", NULL), vm.name, sizeof(vm.name));
    device_describe(&found, &vm);
    clear_command_line(line);
    xmlFreeDoc(document);
    *ret_vm = vm;
    return 0;
}

/* --- writing ---------------------------------------------------------------------- */

static void drop(xmlNode *node)
{
    xmlUnlinkNode(node);
    xmlFreeNode(node);
}

static void drop_ours(const struct command_line *line, const struct device_arguments *found)
{
    for (size_t i = 0; i + 1 < line->count; i++) {
        if (!device_owns_argument(found, (const char *const *)line->values, line->count, i))
            continue;
        drop(line->nodes[i]);
        drop(line->nodes[i + 1]);
        i++;
    }
}

/* The namespace under whatever prefix the document has for it. */
static xmlNs *qemu_namespace(xmlDoc *document, xmlNode *root)
{
    xmlNs *space = xmlSearchNsByHref(document, root, BAD_CAST QEMU_NAMESPACE);

    return space ? space : xmlNewNs(root, BAD_CAST QEMU_NAMESPACE, BAD_CAST "qemu");
}

static void add_argument(xmlNode *parent, const char *value)
{
    xmlNode *node = xmlNewChild(parent, parent->ns, BAD_CAST "arg", NULL);

    if (node)
        xmlNewProp(node, BAD_CAST "value", BAD_CAST value);
}

static void add_option(xmlNode *parent, const char *option, const char *value)
{
    add_argument(parent, option);
    add_argument(parent, value);
}

/* <address type='pci' bus='0x00' slot='0x1f' .../> of all devices, wherever it stands. */
static void note_slots(xmlNode *parent, uint32_t *used)
{
    for (xmlNode *node = parent ? parent->children : NULL; node; node = node->next) {
        char *bus, *slot;

        if (node->type != XML_ELEMENT_NODE)
            continue;
        note_slots(node, used);
        if (!is_element(node, "address", NULL))
            continue;
        bus = (char *)xmlGetProp(node, BAD_CAST "bus");
        slot = (char *)xmlGetProp(node, BAD_CAST "slot");
        if (bus && slot && strtoul(bus, NULL, 0) == 0 && strtoul(slot, NULL, 0) < 32)
            *used |= 1u << strtoul(slot, NULL, 0);
        xmlFree(bus);
        xmlFree(slot);
    }
}

static void add_ours(xmlDoc *document, xmlNode *root, const struct toolstack_device *device,
                     const char *extra)
{
    xmlNode *parent = child(root, "commandline", QEMU_NAMESPACE);
    char text[DEVICE_TEXT_BYTES];

    if (!parent)
        parent = xmlNewChild(root, qemu_namespace(document, root), BAD_CAST "commandline", NULL);
    if (!parent)
        return;
    if (device->window) {
        device_format_memory(device, text);
        add_option(parent, "-object", text);
        device_format_chardev(device, text);
        add_option(parent, "-chardev", text);
    }
    device_format(device, extra, text);
    add_option(parent, "-device", text);
}

/* An empty <qemu:commandline> goes too. */
static void drop_if_empty(xmlNode *root)
{
    xmlNode *parent = child(root, "commandline", QEMU_NAMESPACE);

    for (xmlNode *node = parent ? parent->children : NULL; node; node = node->next) {
        if (node->type == XML_ELEMENT_NODE)
            return;
    }
    if (parent)
        drop(parent);
}

static bool is_distribution_qemu(const char *path)
{
    return !strcmp(path, "/usr/bin/qemu-system-x86_64") || !strcmp(path, "/usr/bin/kvm") ||
           !strcmp(path, "/usr/bin/qemu-kvm") || !strcmp(path, "/usr/libexec/qemu-kvm");
}

/* Where there is no <emulator>, libvirt fills it in before we see it. */
static void set_emulator(xmlNode *root, bool with_device, const char *wrapper)
{
    xmlNode *devices = child(root, "devices", NULL);
    xmlNode *emulator = child(devices, "emulator", NULL);
    char now[4096];

    if (!devices)
        devices = xmlNewChild(root, NULL, BAD_CAST "devices", NULL);
    if (with_device && devices && !emulator) {
        xmlNewTextChild(devices, NULL, BAD_CAST "emulator", BAD_CAST wrapper);
        return;
    }
    copy_content(emulator, now, sizeof(now));
    if (with_device && is_distribution_qemu(now))
        xmlNodeSetContent(emulator, BAD_CAST wrapper);
    else if (!with_device && emulator && !strcmp(now, wrapper))
        xmlNodeSetContent(emulator, BAD_CAST "/usr/bin/qemu-system-x86_64");
}

static char *print(xmlDoc *document)
{
    xmlBuffer *buffer = xmlBufferCreate();
    xmlSaveCtxt *save =
        buffer ? xmlSaveToBuffer(buffer, NULL, XML_SAVE_NO_DECL | XML_SAVE_FORMAT) : NULL;
    char *text = NULL;

    if (save && xmlSaveDoc(save, document) >= 0 && xmlSaveClose(save) >= 0)
        text = strdup((const char *)xmlBufferContent(buffer));
    xmlBufferFree(buffer);
    return text;
}

int libvirt_xml_write(const char *xml, const struct toolstack_device *device, const char *wrapper,
                      char **ret_xml, struct vgpu_error *error)
{
    struct device_arguments found;
    struct command_line *line;
    uint32_t used_slots = 0;
    xmlDoc *document;
    xmlNode *root;
    char *text;

    if (device && device_check(device, error) < 0)
        return -1;
    document = parse(xml, error);
    if (!document)
        return -1;
    root = xmlDocGetRootElement(document);
    line = load_command_line(root, &found, error);
    if (!line) {
        xmlFreeDoc(document);
        return -1;
    }
    drop_ours(line, &found);
    clear_command_line(line);
    note_slots(child(root, "devices", NULL), &used_slots);
    if (device && device_place(&found, used_slots, error) < 0) {
        xmlFreeDoc(document);
        return -1;
    }
    if (device)
        add_ours(document, root, device, found.extra);
    drop_if_empty(root);
    set_emulator(root, device, wrapper);
    text = print(document);
    xmlFreeDoc(document);
    if (!text)
        return error_set(error, ENOMEM, "no memory for the domain's XML");
    *ret_xml = text;
    return 0;
}
