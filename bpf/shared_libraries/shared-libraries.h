/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* What the shared-libraries programs and user space say to each other (decoded in harness/ebpf/events.py). */
#ifndef SHARED_LIBRARIES_H
#define SHARED_LIBRARIES_H

#include <linux/types.h>

#define LIB_PATH_MAX 120

/* The event of an opened library: len bytes of path, the rest of buf is zero. pid is the process (tgid). */
struct lib_path {
	__u32 pid;
	__u32 len;
	char buf[LIB_PATH_MAX];
};

/* Every loss inside the kernel is counted here. */
struct lib_counters {
	__u64 emitted;	/* events handed to user space */
	__u64 lost;	/* events that found no room */
	__u64 unread;	/* paths that could be read neither before nor after the system call */
};

_Static_assert(sizeof(struct lib_path) == 128, "lib_path");
_Static_assert(__builtin_offsetof(struct lib_path, buf) == 8, "lib_path.buf");
_Static_assert(sizeof(struct lib_counters) == 24, "lib_counters");

#endif
