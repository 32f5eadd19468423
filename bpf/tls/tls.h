/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* What the TLS programs and user space say to each other (decoded in harness/watcher/tls.py). */
#ifndef TLS_H
#define TLS_H

#include <linux/types.h>

/* Plaintext of one process (tgid), in bytes. */
struct tls_traffic {
	__u64 received;
	__u64 sent;
};

/* All processes together, those that were forgotten too; every loss inside the kernel is counted here. */
struct tls_counters {
	__u64 calls;	/* calls that moved data, and were counted for their process */
	__u64 received;	/* bytes of these calls */
	__u64 sent;
	__u64 lost;	/* bytes of processes for which there was no room */
	__u64 unread;	/* calls whose number of bytes could not be read */
};

_Static_assert(sizeof(struct tls_traffic) == 16, "tls_traffic");
_Static_assert(sizeof(struct tls_counters) == 40, "tls_counters");

#endif
