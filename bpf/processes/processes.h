/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* What the processes programs and user space say to each other (decoded in harness/processes/events.py). */
#ifndef PROCESSES_H
#define PROCESSES_H

#include <linux/types.h>

enum process_did {
	PROCESS_EXEC = 1,
	PROCESS_EXIT = 2,
};

/* pid is the process (tgid). */
struct process_event {
	__u32 pid;
	__u32 did;
};

/* Every loss inside the kernel is counted here. */
struct process_counters {
	__u64 emitted;	/* events handed to user space */
	__u64 lost;	/* events that found no room */
};

_Static_assert(sizeof(struct process_event) == 8, "process_event");
_Static_assert(sizeof(struct process_counters) == 16, "process_counters");

#endif
