/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Plaintext bytes through TLS libraries: how many each process received and sent.
 *
 * Sees: what OpenSSL's SSL_read, SSL_write, SSL_read_ex, SSL_write_ex and SSL_write_ex2 and GnuTLS's
 * gnutls_record_recv and gnutls_record_send return to their callers; which of them, in which file, user space says by
 * attaching. Peeks count nothing: the bytes count when they are read for good.
 * Misses: calls that were under way when it was attached or are when it is taken off; of calls of the _ex functions
 * some, where more are under way at once than tls_calls has room for (8192, or 256 a processor); SSL_sendfile and kernel TLS;
 * gnutls_record_send2, _send_range and _recv_packet; libraries that are linked into a program.
 * Oldest kernel: 5.5 (bpf_probe_read_user).
 *
 * It reads no kernel type and so has no CO-RE relocation; the registers of a uprobe are those that ptrace shows, an
 * interface. Functions that return the number by a pointer are hooked at both ends; entry and return of a call meet
 * by thread and stack pointer. In OpenSSL 3.3 SSL_write_ex became a jump to SSL_write_ex2, both at one place on the
 * stack: the first of the two returns counts and forgets, so that they count once.
 */
#include "interface_types.h"

#include "error_telemetry.h"
#include "log_debug.h"
#include "tls.h"

/* struct pt_regs as user space knows it (asm/ptrace.h), of the machine the program runs on. */
#if defined(__TARGET_ARCH_x86)
struct registers {
	__u64 r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8, rax, rcx, rdx, rsi, rdi, orig_rax, rip, cs, flags, rsp, ss;
};
#define ARGUMENT_4(regs) ((regs)->rcx)
#define ARGUMENT_5(regs) ((regs)->r8)
#define RETURNED(regs) ((regs)->rax)
#define STACK_AT_ENTRY(regs) ((regs)->rsp)
/* The return address has been taken off. */
#define STACK_AT_RETURN(regs) ((regs)->rsp - 8)
#elif defined(__TARGET_ARCH_arm64)
struct registers {
	__u64 x[31], sp, pc, pstate;
};
#define ARGUMENT_4(regs) ((regs)->x[3])
#define ARGUMENT_5(regs) ((regs)->x[4])
#define RETURNED(regs) ((regs)->x[0])
#define STACK_AT_ENTRY(regs) ((regs)->sp)
#define STACK_AT_RETURN(regs) ((regs)->sp)
#else
#error "the calling convention of this machine is not written down here"
#endif

struct call {
	__u64 thread;
	__u64 stack;
};

/* Calls under way, with the address where each will put its number of bytes. An LRU, for a return may be missed. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct call);
	__type(value, __u64);
	__uint(max_entries, 8192); /* its loader gives it more on many processors */
} tls_calls SEC(".maps");
TELEMETRY(tls_calls);

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, __u32);
	__type(value, struct tls_traffic);
	__uint(max_entries, 16384);
} tls_traffic SEC(".maps");
TELEMETRY(tls_traffic);

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct tls_counters);
	__uint(max_entries, 1);
} counters SEC(".maps");

#define count(field, amount)                                                             \
	({                                                                               \
		__u32 zero = 0;                                                          \
		struct tls_counters *c = bpf_map_lookup_elem(&counters, &zero);          \
		if (c)                                                                   \
			__sync_fetch_and_add(&c->field, (amount));                       \
	})

static __always_inline int add(__u64 received, __u64 sent)
{
	__u32 pid = bpf_get_current_pid_tgid() >> 32;
	struct tls_traffic *traffic = bpf_map_lookup_elem(&tls_traffic, &pid);

	log_debug("process %u received %llu and sent %llu", pid, received, sent);
	if (!traffic) {
		struct tls_traffic none = {};

		map_insert(tls_traffic, &pid, &none);
		traffic = bpf_map_lookup_elem(&tls_traffic, &pid);
	}
	if (!traffic) {
		count(lost, received + sent);
		return 0;
	}
	if (received) {
		__sync_fetch_and_add(&traffic->received, received);
		count(received, received);
	}
	if (sent) {
		__sync_fetch_and_add(&traffic->sent, sent);
		count(sent, sent);
	}
	count(calls, 1);
	return 0;
}

static __always_inline int enter(struct registers *regs, __u64 address)
{
	struct call call = {bpf_get_current_pid_tgid(), STACK_AT_ENTRY(regs)};

	map_update(tls_calls, &call, &address);
	return 0;
}

/* The number of bytes that a call which says so by pointer has moved. */
static __always_inline __u64 moved(struct registers *regs)
{
	struct call call = {bpf_get_current_pid_tgid(), STACK_AT_RETURN(regs)};
	__u64 *address = bpf_map_lookup_elem(&tls_calls, &call);
	__u64 number = 0;
	long failed;

	if (!address)
		return 0;
	if ((int)RETURNED(regs) == 1) {
		failed = bpf_probe_read_user(&number, sizeof(number), (void *)*address);
		if (failed) {
			helper_failed(READ_USER_HELPER, failed);
			number = 0;
			count(unread, 1);
		}
	}
	bpf_map_delete_elem(&tls_calls, &call);
	return number;
}

/* int SSL_read(SSL *, void *, int) */
SEC("uretprobe")
int received_int(struct registers *regs)
{
	int number = (int)RETURNED(regs);

	return number > 0 ? add(number, 0) : 0;
}

/* int SSL_write(SSL *, const void *, int) */
SEC("uretprobe")
int sent_int(struct registers *regs)
{
	int number = (int)RETURNED(regs);

	return number > 0 ? add(0, number) : 0;
}

/* ssize_t gnutls_record_recv(gnutls_session_t, void *, size_t) */
SEC("uretprobe")
int received_long(struct registers *regs)
{
	long number = (long)RETURNED(regs);

	return number > 0 ? add(number, 0) : 0;
}

/* ssize_t gnutls_record_send(gnutls_session_t, const void *, size_t) */
SEC("uretprobe")
int sent_long(struct registers *regs)
{
	long number = (long)RETURNED(regs);

	return number > 0 ? add(0, number) : 0;
}

/* int SSL_read_ex(SSL *, void *, size_t, size_t *), int SSL_write_ex(SSL *, const void *, size_t, size_t *) */
SEC("uprobe")
int enter_pointer_4(struct registers *regs)
{
	return enter(regs, ARGUMENT_4(regs));
}

/* int SSL_write_ex2(SSL *, const void *, size_t, uint64_t, size_t *) */
SEC("uprobe")
int enter_pointer_5(struct registers *regs)
{
	return enter(regs, ARGUMENT_5(regs));
}

SEC("uretprobe")
int received_pointer(struct registers *regs)
{
	__u64 number = moved(regs);

	return number ? add(number, 0) : 0;
}

SEC("uretprobe")
int sent_pointer(struct registers *regs)
{
	__u64 number = moved(regs);

	return number ? add(0, number) : 0;
}

/* In the words that the kernel knows: it lends the tracing helpers to GPL-compatible programs only. */
char _license[] SEC("license") = "GPL";
