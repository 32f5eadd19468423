/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Execs and exits of processes, for kernels without the process connector.
 *
 * Sees: every successful exec, and the end of every process's main thread (other threads may run on; the process's
 * own entry in /proc lives a moment longer).
 * Misses: nothing but what finds no room (counted).
 * Oldest kernel: 4.16 (tracepoint programs 4.7, functions that are called).
 *
 * It reads no kernel type and none of the tracepoints' records, so the object has no CO-RE relocation.
 */
#include "interface_types.h"

#include "event_output.h"
#include "processes.h"

EVENTS(process_events);

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct process_counters);
	__uint(max_entries, 1);
} counters SEC(".maps");

static __always_inline void emit(void *ctx, __u32 pid, __u32 did)
{
	struct process_event event = { .pid = pid, .did = did };
	struct process_counters *counted;
	__u32 zero = 0;
	long failed;

	log_debug("process %u did %u", pid, did);
	failed = send_event(ctx, &process_events, &event, sizeof(event));
	counted = bpf_map_lookup_elem(&counters, &zero);
	if (counted)
		__sync_fetch_and_add(failed ? &counted->lost : &counted->emitted, 1);
}

SEC("tracepoint/sched/sched_process_exec")
int tracepoint__sched__sched_process_exec(void *ctx)
{
	emit(ctx, bpf_get_current_pid_tgid() >> 32, PROCESS_EXEC);
	return 0;
}

SEC("tracepoint/sched/sched_process_exit")
int tracepoint__sched__sched_process_exit(void *ctx)
{
	__u64 thread = bpf_get_current_pid_tgid();

	if ((__u32)thread == thread >> 32)
		emit(ctx, thread >> 32, PROCESS_EXIT);
	return 0;
}

/* In the words that the kernel knows: it lends the tracing helpers to GPL-compatible programs only. */
char _license[] SEC("license") = "GPL";
