/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The kprobe tracer: the same maps, events and meanings as the fentry tracer, for kernels without BPF trampolines or
 * without BTF. Here are the places in the kernel where it listens; what it makes of what it hears is in the headers.
 *
 * Sees, counts and misses: what the top of tracer-fentry.bpf.c says. Besides: a call whose end finds no free return probe
 * (user space asks for kprobe_max_active of them a function) or that interrupts another probe is missed; the kernel
 * counts these, and user space reads them (harness/ebpf/kprobes.py). Of TCP its bytes are told at the end all the same if
 * it was a transfer. Each beginning has one program here (the fentry tracer has two), and where that misses a connect or
 * the return of an accept, the connection begins with the first transfer that is seen: bytes before it are never told.
 * (The end of a TCP socket has two, of two kinds. That of a datagram socket has one: passed by, its flows stay.)
 * Before 6.3, two threads of which one looks at a TCP socket's data while the other reads it are told apart only by how
 * far the socket's data was read meanwhile.
 * Oldest kernel: 5.7 (bpf_get_ns_current_pid_tgid).
 *
 * Arguments are taken by place, and only those that never changed their place are.
 */
#include "kernel_types.h"

#include <bpf/bpf_tracing.h>

#include "tracer-tcp.h"
#include "tracer-udp.h"

/* What a call was given, between its begin and its end: of each function one call a thread. */
struct call {
	__u64 thread;
	__u64 function;
};

struct call_args {
	__u64 sock;
	__u32 copied_seq;
	__be16 port;
};

enum function {
	ACCEPT,
	TCP_SENDMSG,
	TCP_SENDPAGE,
	TCP_RECVMSG,
	TCP_SPLICE_READ,
	UDP_SENDMSG,
	UDPV6_SENDMSG,
	UDP_SENDPAGE,
	INET_BIND,
	INET6_BIND,
};

HASH(call_args, struct call, struct call_args, 4096);

static __always_inline void begins(enum function function, struct call_args *args)
{
	struct call call = { .thread = bpf_get_current_pid_tgid(), .function = function };

	map_update(call_args, &call, args);
}

static __always_inline void begins_with(enum function function, struct sock *sk)
{
	struct call_args args = { .sock = (__u64)sk };

	begins(function, &args);
}

/* False if its begin was not seen. */
static __always_inline bool ends(enum function function, struct call_args *args)
{
	struct call call = { .thread = bpf_get_current_pid_tgid(), .function = function };
	struct call_args *begun = bpf_map_lookup_elem(&call_args, &call);

	if (!begun)
		return false;
	*args = *begun;
	bpf_map_delete_elem(&call_args, &call);
	return true;
}

/* The socket that the call was given which ends here, or NULL. */
static __always_inline struct sock *ended(enum function function)
{
	struct call_args args;

	return ends(function, &args) ? (struct sock *)args.sock : NULL;
}

/* A program at the beginning of a function, with those of its arguments that are read; or at its end, with its result. */
#define AT_BEGIN(function, work, arguments...)                                           \
	SEC("kprobe/" #function)                                                         \
	int BPF_KPROBE(kprobe__##function, arguments)                                    \
	{                                                                                \
		work;                                                                    \
		return 0;                                                                \
	}
#define AT_END(function, work, result...)                                                \
	SEC("kretprobe/" #function)                                                      \
	int BPF_KRETPROBE(kretprobe__##function, ##result)                               \
	{                                                                                \
		work;                                                                    \
		return 0;                                                                \
	}

/* Both, where the end wants the socket that the call was given, and what it returns. */
#define CALL(number, function, on_end)                                                   \
	AT_BEGIN(function, begins_with(number, sk), struct sock *sk)                     \
	AT_END(function, struct sock *sk = ended(number); if (sk) on_end(sk, result), int result)

AT_BEGIN(tcp_connect, on_tcp_connect(sk), struct sock *sk)
AT_BEGIN(tcp_finish_connect, on_tcp_finish_connect(sk), struct sock *sk)

AT_BEGIN(inet_csk_accept, begins_with(ACCEPT, listener), struct sock *listener)
AT_END(inet_csk_accept, struct sock *listener = ended(ACCEPT); if (listener) on_inet_csk_accept(listener, sk),
       struct sock *sk)
AT_BEGIN(inet_csk_listen_stop, on_inet_csk_listen_stop(listener), struct sock *listener)

/*
 * Where the kernel tells what a call of any socket came to (6.3), that is listened to, and not tcp_sendmsg and tcp_recvmsg:
 * one program a call, which needs to remember nothing.
 */
static __always_inline bool is_tcp(struct sock *sk)
{
	return BPF_CORE_READ(sk, sk_protocol) == IPPROTO_TCP && BPF_CORE_READ(sk, sk_type) == SOCK_STREAM;
}

SEC("raw_tp/sock_send_length")
int BPF_PROG(raw_tp__sock_send_length, struct sock *sk, int sent)
{
	if (sent > 0 && is_tcp(sk))
		on_tcp_sent(sk, sent);
	return 0;
}

SEC("raw_tp/sock_recv_length")
int BPF_PROG(raw_tp__sock_recv_length, struct sock *sk, int copied, int flags)
{
	if (copied > 0 && is_tcp(sk))
		on_tcp_received(sk, flags, copied);
	return 0;
}

CALL(TCP_SENDMSG, tcp_sendmsg, on_tcp_sent)
CALL(TCP_SENDPAGE, tcp_sendpage, on_tcp_sent)

/* Where the flags are changed in 5.19; that the socket's data was read on does not show for a peek or an error. */
static __always_inline void receive_begins(struct sock *sk)
{
	struct call_args args = {
		.sock = (__u64)sk,
		.copied_seq = BPF_CORE_READ((struct tcp_sock *)sk, copied_seq),
	};

	begins(TCP_RECVMSG, &args);
}

static __always_inline void receive_ends(int copied)
{
	struct call_args args;
	struct tcp_sock *tcp;

	if (!ends(TCP_RECVMSG, &args))
		return;
	tcp = (struct tcp_sock *)args.sock;
	if (BPF_CORE_READ(tcp, copied_seq) != args.copied_seq)
		on_tcp_received((struct sock *)tcp, 0, copied);
}

AT_BEGIN(tcp_recvmsg, receive_begins(sk), struct sock *sk)
AT_END(tcp_recvmsg, receive_ends(copied), int copied)
AT_BEGIN(tcp_splice_read, begins_with(TCP_SPLICE_READ, BPF_CORE_READ(socket, sk)), struct socket *socket)
AT_END(tcp_splice_read, struct sock *sk = ended(TCP_SPLICE_READ); if (sk) on_tcp_received(sk, 0, copied), long copied)

/* events/tcp/tcp_retransmit_skb/format. A return probe would not do: these calls have no thread of their own. */
struct tcp_retransmit_record {
	__u64 common;
	struct sk_buff *skb;
	struct sock *sk;
};

SEC("tracepoint/tcp/tcp_retransmit_skb")
int tracepoint__tcp__tcp_retransmit_skb(struct tcp_retransmit_record *record)
{
	on_tcp_retransmit(record->sk, 0);
	return 0;
}

AT_BEGIN(tcp_close, on_tcp_close(ctx, sk), struct sock *sk)
AT_END(tcp_close, flush_batch(ctx))
AT_BEGIN(tcp_disconnect, on_tcp_abandoned(ctx, sk), struct sock *sk)
AT_BEGIN(tcp_v4_destroy_sock, on_tcp_abandoned(ctx, sk), struct sock *sk)

/*
 * The same place, and no kprobe: the kernel passes kprobes by while their CPU is within another, or within a system call
 * on a map (bpf_disable_instrumentation), as when user space reads conn_stats. A subflow of MPTCP has no other end.
 */
SEC("raw_tp/tcp_destroy_sock")
int BPF_PROG(raw_tp__tcp_destroy_sock, struct sock *sk)
{
	on_tcp_abandoned(ctx, sk);
	return 0;
}

AT_BEGIN(udp_send_skb, on_udp_send_skb4(skb, flow), struct sk_buff *skb, struct flowi4 *flow)
AT_BEGIN(udp_v6_send_skb, on_udp_send_skb6(skb, flow), struct sk_buff *skb, struct flowi6 *flow)
CALL(UDP_SENDMSG, udp_sendmsg, on_udp_sent)
CALL(UDPV6_SENDMSG, udpv6_sendmsg, on_udpv6_sent)
AT_BEGIN(udp_sendpage, on_udp_sendpage(); begins_with(UDP_SENDPAGE, sk), struct sock *sk)
AT_END(udp_sendpage, struct sock *sk = ended(UDP_SENDPAGE); if (sk) on_udp_page_sent(sk, sent), int sent)

AT_BEGIN(skb_consume_udp, on_skb_consume_udp(sk, skb, copied), struct sock *sk, struct sk_buff *skb, int copied)

static __always_inline void bind_begins(enum function function, struct socket *socket, void *address)
{
	struct call_args args = {
		.sock = (__u64)BPF_CORE_READ(socket, sk),
		.port = BPF_CORE_READ((struct sockaddr_in *)address, sin_port),
	};

	begins(function, &args);
}

static __always_inline void bind_ends(enum function function, int failed)
{
	struct call_args args;

	if (ends(function, &args) && !failed)
		on_udp_bound((struct sock *)args.sock, args.port);
}

AT_BEGIN(inet_bind, bind_begins(INET_BIND, socket, address), struct socket *socket, void *address)
AT_END(inet_bind, bind_ends(INET_BIND, failed), int failed)
AT_BEGIN(inet6_bind, bind_begins(INET6_BIND, socket, address), struct socket *socket, void *address)
AT_END(inet6_bind, bind_ends(INET6_BIND, failed), int failed)

AT_BEGIN(udp_destroy_sock, on_udp_destroy_sock(ctx, sk), struct sock *sk)
AT_END(udp_destroy_sock, flush_batch(ctx))
AT_BEGIN(udpv6_destroy_sock, on_udp_destroy_sock(ctx, sk), struct sock *sk)
AT_END(udpv6_destroy_sock, flush_batch(ctx))

/* In the words that the kernel knows: it lends the tracing helpers to GPL-compatible programs only. */
char _license[] SEC("license") = "GPL";
