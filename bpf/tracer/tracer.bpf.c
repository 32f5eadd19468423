/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The kprobe tracer: the same maps, events and meanings as the fentry tracer, for kernels without BPF trampolines or
 * without BTF. Here are the places in the kernel where it listens; what it makes of what it hears is in the headers.
 *
 * Sees, counts and misses: what the top of tracer-fentry.bpf.c says. Besides: a call whose end finds no free return probe
 * (user space asks for kprobe_max_active of them a function) or that interrupts another probe is missed; the kernel
 * counts these, and user space reads them (harness/ebpf/kprobes.py). Two threads of which one looks at a TCP socket's
 * data while the other reads it are told apart only by how far the socket's data was read meanwhile.
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

static __always_inline int begins(enum function function, struct call_args *args)
{
	struct call call = { .thread = bpf_get_current_pid_tgid(), .function = function };

	map_update(call_args, &call, args);
	return 0;
}

static __always_inline int begins_with(enum function function, struct sock *sk)
{
	struct call_args args = { .sock = (__u64)sk };

	return begins(function, &args);
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

SEC("kprobe/tcp_connect")
int BPF_KPROBE(kprobe__tcp_connect, struct sock *sk)
{
	on_tcp_connect(sk);
	return 0;
}

SEC("kprobe/tcp_finish_connect")
int BPF_KPROBE(kprobe__tcp_finish_connect, struct sock *sk)
{
	on_tcp_finish_connect(sk);
	return 0;
}

SEC("kprobe/inet_csk_accept")
int BPF_KPROBE(kprobe__inet_csk_accept, struct sock *listener)
{
	return begins_with(ACCEPT, listener);
}

SEC("kretprobe/inet_csk_accept")
int BPF_KRETPROBE(kretprobe__inet_csk_accept, struct sock *sk)
{
	struct call_args args;

	if (ends(ACCEPT, &args))
		on_inet_csk_accept((struct sock *)args.sock, sk);
	return 0;
}

SEC("kprobe/inet_csk_listen_stop")
int BPF_KPROBE(kprobe__inet_csk_listen_stop, struct sock *listener)
{
	on_inet_csk_listen_stop(listener);
	return 0;
}

SEC("kprobe/tcp_sendmsg")
int BPF_KPROBE(kprobe__tcp_sendmsg, struct sock *sk)
{
	return begins_with(TCP_SENDMSG, sk);
}

SEC("kretprobe/tcp_sendmsg")
int BPF_KRETPROBE(kretprobe__tcp_sendmsg, int sent)
{
	struct call_args args;

	if (ends(TCP_SENDMSG, &args))
		on_tcp_sent((struct sock *)args.sock, sent);
	return 0;
}

SEC("kprobe/tcp_sendpage")
int BPF_KPROBE(kprobe__tcp_sendpage, struct sock *sk)
{
	return begins_with(TCP_SENDPAGE, sk);
}

SEC("kretprobe/tcp_sendpage")
int BPF_KRETPROBE(kretprobe__tcp_sendpage, int sent)
{
	struct call_args args;

	if (ends(TCP_SENDPAGE, &args))
		on_tcp_sent((struct sock *)args.sock, sent);
	return 0;
}

/* Where the flags are changed in 5.19; that the socket's data was read on does not show for a peek or an error. */
SEC("kprobe/tcp_recvmsg")
int BPF_KPROBE(kprobe__tcp_recvmsg, struct sock *sk)
{
	struct call_args args = {
		.sock = (__u64)sk,
		.copied_seq = BPF_CORE_READ((struct tcp_sock *)sk, copied_seq),
	};

	return begins(TCP_RECVMSG, &args);
}

SEC("kretprobe/tcp_recvmsg")
int BPF_KRETPROBE(kretprobe__tcp_recvmsg, int copied)
{
	struct call_args args;
	struct tcp_sock *tcp;

	if (!ends(TCP_RECVMSG, &args))
		return 0;
	tcp = (struct tcp_sock *)args.sock;
	if (BPF_CORE_READ(tcp, copied_seq) != args.copied_seq)
		on_tcp_received((struct sock *)tcp, 0, copied);
	return 0;
}

SEC("kprobe/tcp_splice_read")
int BPF_KPROBE(kprobe__tcp_splice_read, struct socket *socket)
{
	return begins_with(TCP_SPLICE_READ, BPF_CORE_READ(socket, sk));
}

SEC("kretprobe/tcp_splice_read")
int BPF_KRETPROBE(kretprobe__tcp_splice_read, long copied)
{
	struct call_args args;

	if (ends(TCP_SPLICE_READ, &args))
		on_tcp_received((struct sock *)args.sock, 0, copied);
	return 0;
}

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

SEC("kprobe/tcp_close")
int BPF_KPROBE(kprobe__tcp_close, struct sock *sk)
{
	on_tcp_close(ctx, sk);
	return 0;
}

SEC("kretprobe/tcp_close")
int BPF_KRETPROBE(kretprobe__tcp_close)
{
	flush_batch(ctx);
	return 0;
}

SEC("kprobe/tcp_disconnect")
int BPF_KPROBE(kprobe__tcp_disconnect, struct sock *sk)
{
	on_tcp_abandoned(ctx, sk);
	return 0;
}

SEC("kprobe/tcp_v4_destroy_sock")
int BPF_KPROBE(kprobe__tcp_v4_destroy_sock, struct sock *sk)
{
	on_tcp_abandoned(ctx, sk);
	return 0;
}

SEC("kprobe/udp_send_skb")
int BPF_KPROBE(kprobe__udp_send_skb, struct sk_buff *skb, struct flowi4 *flow)
{
	on_udp_send_skb4(skb, flow);
	return 0;
}

SEC("kprobe/udp_v6_send_skb")
int BPF_KPROBE(kprobe__udp_v6_send_skb, struct sk_buff *skb, struct flowi6 *flow)
{
	on_udp_send_skb6(skb, flow);
	return 0;
}

SEC("kprobe/udp_sendmsg")
int BPF_KPROBE(kprobe__udp_sendmsg, struct sock *sk)
{
	return begins_with(UDP_SENDMSG, sk);
}

SEC("kretprobe/udp_sendmsg")
int BPF_KRETPROBE(kretprobe__udp_sendmsg, int sent)
{
	struct call_args args;

	if (ends(UDP_SENDMSG, &args))
		on_udp_sent((struct sock *)args.sock, sent);
	return 0;
}

SEC("kprobe/udpv6_sendmsg")
int BPF_KPROBE(kprobe__udpv6_sendmsg, struct sock *sk)
{
	return begins_with(UDPV6_SENDMSG, sk);
}

SEC("kretprobe/udpv6_sendmsg")
int BPF_KRETPROBE(kretprobe__udpv6_sendmsg, int sent)
{
	struct call_args args;

	if (ends(UDPV6_SENDMSG, &args))
		on_udpv6_sent((struct sock *)args.sock, sent);
	return 0;
}

SEC("kprobe/udp_sendpage")
int BPF_KPROBE(kprobe__udp_sendpage, struct sock *sk)
{
	on_udp_sendpage();
	return begins_with(UDP_SENDPAGE, sk);
}

SEC("kretprobe/udp_sendpage")
int BPF_KRETPROBE(kretprobe__udp_sendpage, int sent)
{
	struct call_args args;

	if (ends(UDP_SENDPAGE, &args))
		on_udp_page_sent((struct sock *)args.sock, sent);
	return 0;
}

SEC("kprobe/skb_consume_udp")
int BPF_KPROBE(kprobe__skb_consume_udp, struct sock *sk, struct sk_buff *skb, int copied)
{
	on_skb_consume_udp(sk, skb, copied);
	return 0;
}

static __always_inline int bind_begins(enum function function, struct socket *socket, void *address)
{
	struct call_args args = {
		.sock = (__u64)BPF_CORE_READ(socket, sk),
		.port = BPF_CORE_READ((struct sockaddr_in *)address, sin_port),
	};

	return begins(function, &args);
}

static __always_inline int bind_ends(enum function function, int failed)
{
	struct call_args args;

	if (ends(function, &args) && !failed)
		on_udp_bound((struct sock *)args.sock, args.port);
	return 0;
}

SEC("kprobe/inet_bind")
int BPF_KPROBE(kprobe__inet_bind, struct socket *socket, void *address)
{
	return bind_begins(INET_BIND, socket, address);
}

SEC("kretprobe/inet_bind")
int BPF_KRETPROBE(kretprobe__inet_bind, int failed)
{
	return bind_ends(INET_BIND, failed);
}

SEC("kprobe/inet6_bind")
int BPF_KPROBE(kprobe__inet6_bind, struct socket *socket, void *address)
{
	return bind_begins(INET6_BIND, socket, address);
}

SEC("kretprobe/inet6_bind")
int BPF_KRETPROBE(kretprobe__inet6_bind, int failed)
{
	return bind_ends(INET6_BIND, failed);
}

SEC("kprobe/udp_destroy_sock")
int BPF_KPROBE(kprobe__udp_destroy_sock, struct sock *sk)
{
	on_udp_destroy_sock(ctx, sk);
	return 0;
}

SEC("kretprobe/udp_destroy_sock")
int BPF_KRETPROBE(kretprobe__udp_destroy_sock)
{
	flush_batch(ctx);
	return 0;
}

SEC("kprobe/udpv6_destroy_sock")
int BPF_KPROBE(kprobe__udpv6_destroy_sock, struct sock *sk)
{
	on_udp_destroy_sock(ctx, sk);
	return 0;
}

SEC("kretprobe/udpv6_destroy_sock")
int BPF_KRETPROBE(kretprobe__udpv6_destroy_sock)
{
	flush_batch(ctx);
	return 0;
}

/* In the words that the kernel knows: it lends the tracing helpers to GPL-compatible programs only. */
char _license[] SEC("license") = "GPL";
