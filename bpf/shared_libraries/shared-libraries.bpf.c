/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Opens of TLS libraries: which process opened which path.
 *
 * Sees: successful open, openat and openat2 calls whose path has at most 119 bytes and whose first ".so" (at index 6
 * or later) stands right behind "libssl", "crypto" or "gnutls". The path is as the process wrote it: relative ones
 * stay relative, and links are not followed.
 * Misses: 32-bit system calls, io_uring and open_by_handle_at; maps of files opened before; some, neither the oldest
 * nor counted, where more threads are inside such a call at once than open_at_args has room for (the larger of 1024
 * and 256 a processor, of which the kernel may hold 128 a processor back); a path whose page is away both before and
 * after the call (counted); calls of a thread that was preempted for one whose program was running on that processor
 * (newer kernels, where these tracepoints can be preempted; the kernel counts them).
 * Oldest kernel: 5.5 (bpf_probe_read_user_str; bounded loops 5.3).
 *
 * It reads no kernel type, so the object has no CO-RE relocation and loads on a kernel without BTF: keep it so, one
 * relocation anywhere makes libbpf ask for BTF. The offsets into the tracepoints' records are those that
 * events/syscalls/<name>/format in tracefs shows.
 */
#include "interface_types.h"

#include "event_output.h"
#include "shared-libraries.h"

struct sys_enter {
	__u64 common;
	__u64 number;
	__u64 args[6];
};

struct sys_exit {
	__u64 common;
	__u64 number;
	long ret;
};

/* What a thread has asked to open, between entry and exit. A path that could not be read at entry (its page was not
 * there yet; the kernel itself will fetch it) is remembered by its address, with len 0. */
struct open_at {
	union {
		struct lib_path path;
		struct {
			__u64 pid_and_len;
			const char *address;
		} later;
	};
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, __u64);
	__type(value, struct open_at);
	__uint(max_entries, 1024); /* its loader gives it more on many processors */
} open_at_args SEC(".maps");
TELEMETRY(open_at_args);

EVENTS(shared_libraries);

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct lib_counters);
	__uint(max_entries, 1);
} counters SEC(".maps");

#define count(field)                                                                     \
	({                                                                               \
		__u32 zero = 0;                                                          \
		struct lib_counters *c = bpf_map_lookup_elem(&counters, &zero);          \
		if (c)                                                                   \
			__sync_fetch_and_add(&c->field, 1);                              \
	})

/* The length of the path, 0 for one that is empty or too long, or an error if it cannot be read now. */
static __always_inline long read_path(struct lib_path *path, const char *address)
{
	long size = bpf_probe_read_user_str(path->buf, sizeof(path->buf), address);
	char last;

	if (size < 0) {
		helper_failed(READ_USER_STR_HELPER, size);
		return size;
	}
	if (size == sizeof(path->buf)) {
		/* Either just fits or was cut: what stands where its NUL belongs? */
		long failed = bpf_probe_read_user(&last, 1, address + size - 1);

		if (failed)
			helper_failed(READ_USER_HELPER, failed);
		if (failed || last)
			return 0;
	}
	return size - 1;
}

static __always_inline int enter(const char *address)
{
	__u64 thread = bpf_get_current_pid_tgid();
	struct open_at open = {};
	long len = read_path(&open.path, address);

	if (len == 0) {
		/* Of an earlier call whose end was not seen: this one's end would tell it. */
		bpf_map_delete_elem(&open_at_args, &thread);
		return 0;
	}
	if (len > 0)
		open.path.len = len;
	else
		open.later.address = address;
	open.path.pid = thread >> 32;
	map_update(open_at_args, &thread, &open);
	return 0;
}

static __always_inline bool is(const char *at, const char *word)
{
	return at[0] == word[0] && at[1] == word[1] && at[2] == word[2] && at[3] == word[3] && at[4] == word[4] &&
	       at[5] == word[5];
}

/* Whether the first ".so" from index 6 on stands behind the name of a TLS library. */
static __always_inline bool is_tls_library(const struct lib_path *path)
{
	for (int i = 0; i <= LIB_PATH_MAX - 10; i++) {
		const char *at = &path->buf[i];

		if (at[6] == '.' && at[7] == 's' && at[8] == 'o')
			return is(at, "libssl") || is(at, "crypto") || is(at, "gnutls");
	}
	return false;
}

static __always_inline void emit(void *ctx, struct lib_path *path)
{
	log_debug("process %u opened a library, %u bytes of path", path->pid, path->len);
	if (send_event(ctx, &shared_libraries, path, sizeof(*path)))
		count(lost);
	else
		count(emitted);
}

static __always_inline int leave(struct sys_exit *ctx)
{
	__u64 thread = bpf_get_current_pid_tgid();
	struct open_at *open = bpf_map_lookup_elem(&open_at_args, &thread);

	if (!open)
		return 0;
	if (ctx->ret >= 0) {
		if (open->path.len == 0) {
			const char *address = open->later.address;
			long len;

			__builtin_memset(open->path.buf, 0, sizeof(open->path.buf));
			len = read_path(&open->path, address);
			if (len < 0)
				count(unread);
			else
				open->path.len = len;
		}
		if (open->path.len && is_tls_library(&open->path))
			emit(ctx, &open->path);
	}
	bpf_map_delete_elem(&open_at_args, &thread);
	return 0;
}

SEC("tracepoint/syscalls/sys_enter_open")
int tracepoint__syscalls__sys_enter_open(struct sys_enter *ctx)
{
	return enter((const char *)ctx->args[0]);
}

SEC("tracepoint/syscalls/sys_exit_open")
int tracepoint__syscalls__sys_exit_open(struct sys_exit *ctx)
{
	return leave(ctx);
}

SEC("tracepoint/syscalls/sys_enter_openat")
int tracepoint__syscalls__sys_enter_openat(struct sys_enter *ctx)
{
	return enter((const char *)ctx->args[1]);
}

SEC("tracepoint/syscalls/sys_exit_openat")
int tracepoint__syscalls__sys_exit_openat(struct sys_exit *ctx)
{
	return leave(ctx);
}

SEC("tracepoint/syscalls/sys_enter_openat2")
int tracepoint__syscalls__sys_enter_openat2(struct sys_enter *ctx)
{
	return enter((const char *)ctx->args[1]);
}

SEC("tracepoint/syscalls/sys_exit_openat2")
int tracepoint__syscalls__sys_exit_openat2(struct sys_exit *ctx)
{
	return leave(ctx);
}

/* In the words that the kernel knows: it lends the tracing helpers to GPL-compatible programs only. */
char _license[] SEC("license") = "GPL";
