/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Types of the system call interface and the helpers: for programs that read no type of the kernel's own.
 *
 * Such a program has no CO-RE relocation, and compiles in all three builds (kernel_types.h) without vmlinux.h.
 */
#ifndef INTERFACE_TYPES_H
#define INTERFACE_TYPES_H

#ifdef COMPILE_RUNTIME
#include <linux/types.h>

#include <uapi/linux/bpf.h>
#else
#include <stdbool.h>

#include <linux/bpf.h>
#include <linux/types.h>
#endif

#include <bpf/bpf_helpers.h>

#endif
