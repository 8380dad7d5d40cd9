/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-or-later */
/*
 * vgpu/file_channel.h - the file channel: names and limits that client and
 * mediator agree on.  docs/protocol.md is the specification.
 *
 * A VM has one directory `vm<id>/` in a share.  The client writes one line
 * `pool:priority:vm_id:command` to request.txt, the mediator answers with one
 * line `status:message` in response.txt.  Files are opened, read or written,
 * and closed; never mapped, because the directory may be on NFS.
 */
#ifndef VGPU_FILE_CHANNEL_H
#define VGPU_FILE_CHANNEL_H

#define VGPU_FILE_HOST_SHARE "/var/vgpu"
#define VGPU_FILE_GUEST_SHARE "/mnt/vgpu"

#define VGPU_FILE_REQUEST "request.txt"
#define VGPU_FILE_RESPONSE "response.txt"
#define VGPU_FILE_COMMAND "command.txt"

/* What response.txt holds when no answer stands in it, without the newline. */
#define VGPU_FILE_READY "0:Ready"

/* First character of an answer. */
#define VGPU_STATUS_CHAR_READY '0'
#define VGPU_STATUS_CHAR_SUCCESS '1'
#define VGPU_STATUS_CHAR_ERROR '2'

/* Bytes of a command, without the terminating NUL or newline. */
#define VGPU_COMMAND_MAX_BYTES 255

/* Bytes of a whole request line: "A:2:4294967295:" and a command. */
#define VGPU_REQUEST_MAX_BYTES (15 + VGPU_COMMAND_MAX_BYTES)

/* Bytes of an answer's message, without status, NUL and newline. */
#define VGPU_MESSAGE_MAX_BYTES 1000

#endif /* VGPU_FILE_CHANNEL_H */
