/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Events on their way to user space: through a ring buffer where the kernel has one, else through a perf buffer.
 */
#ifndef EVENT_OUTPUT_H
#define EVENT_OUTPUT_H

#include "error_telemetry.h"
#include "log_debug.h"

/* Filled in before loading. */
const volatile __u64 ringbuffers_enabled;

/* Turned into a ring buffer before loading where the kernel has one. */
#define EVENTS(name)                                                                     \
	struct {                                                                         \
		__uint(type, BPF_MAP_TYPE_PERF_EVENT_ARRAY);                             \
		__uint(key_size, sizeof(__u32));                                         \
		__uint(value_size, sizeof(__u32));                                       \
		__uint(max_entries, 0);                                                  \
	} name SEC(".maps")

/* 0, or why there was no room, which is counted. */
static __always_inline long send_event(void *ctx, void *events, void *event, __u64 size)
{
	long failed;

	if (ringbuffers_enabled)
		failed = bpf_ringbuf_output(events, event, size, 0);
	else
		failed = bpf_perf_event_output(ctx, events, BPF_F_CURRENT_CPU, event, size);
	if (failed) {
		log_debug("an event of %llu bytes found no room: %ld", size, failed);
		helper_failed(ringbuffers_enabled ? RINGBUF_OUTPUT_HELPER : PERF_EVENT_OUTPUT_HELPER, failed);
	}
	return failed;
}

#endif
