/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * What a socket, a packet or a flow says of both ends of a connection.
 */
#ifndef TRACER_SOCKETS_H
#define TRACER_SOCKETS_H

#include <bpf/bpf_endian.h>

#include "tracer-maps.h"

/* A 128-bit address as it is on the wire. */
struct address {
	__u64 high;
	__u64 low;
};

/* ::ffff:a.b.c.d, in the words that struct address has on a little-endian machine. */
static __always_inline bool is_mapped(const struct address *address)
{
	return !address->high && (__u32)address->low == 0xffff0000;
}

/* A pair of mapped addresses is IPv4: that is what goes over the wire. */
static __always_inline void set_v6(struct conn_tuple *tuple, const struct address *local, const struct address *remote)
{
	if (is_mapped(local) && is_mapped(remote)) {
		tuple->saddr_l = local->low >> 32;
		tuple->daddr_l = remote->low >> 32;
		return;
	}
	tuple->saddr_h = local->high;
	tuple->saddr_l = local->low;
	tuple->daddr_h = remote->high;
	tuple->daddr_l = remote->low;
	tuple->metadata |= CONN_V6;
}

static __always_inline __u32 netns_of(struct sock *sk)
{
	return BPF_CORE_READ(sk, __sk_common.skc_net.net, ns.inum);
}

/*
 * Reset, or ended from both sides, a socket gives its port back before it is closed (inet_put_port sets skc_num to 0);
 * inet_sport still says which it was.
 */
static __always_inline __u16 local_port(struct sock *sk)
{
	__u16 port = BPF_CORE_READ(sk, __sk_common.skc_num);

	return port ?: bpf_ntohs(BPF_CORE_READ((struct inet_sock *)sk, inet_sport));
}

/* False unless the socket has both ends: a listening or never connected one has not. */
static __always_inline bool read_socket(struct conn_tuple *tuple, struct sock *sk, __u32 pid, __u32 metadata)
{
	__u16 family = BPF_CORE_READ(sk, __sk_common.skc_family);

	__builtin_memset(tuple, 0, sizeof(*tuple));
	tuple->metadata = metadata;
	if (family == AF_INET) {
		tuple->saddr_l = BPF_CORE_READ(sk, __sk_common.skc_rcv_saddr);
		tuple->daddr_l = BPF_CORE_READ(sk, __sk_common.skc_daddr);
	} else if (family == AF_INET6) {
		struct address local, remote;

		BPF_CORE_READ_INTO(&local, sk, __sk_common.skc_v6_rcv_saddr);
		BPF_CORE_READ_INTO(&remote, sk, __sk_common.skc_v6_daddr);
		set_v6(tuple, &local, &remote);
	} else {
		return false;
	}
	tuple->sport = local_port(sk);
	tuple->dport = bpf_ntohs(BPF_CORE_READ(sk, __sk_common.skc_dport));
	tuple->netns = netns_of(sk);
	tuple->pid = pid;
	return (tuple->saddr_h | tuple->saddr_l) && (tuple->daddr_h | tuple->daddr_l) && tuple->sport && tuple->dport;
}

/* Both ends of a datagram that was received, by its headers: the remote one is who sent it. */
static __always_inline bool read_packet(struct conn_tuple *tuple, struct sk_buff *skb, struct sock *sk, __u32 pid)
{
	unsigned char *head = BPF_CORE_READ(skb, head);
	unsigned char *network = head + BPF_CORE_READ(skb, network_header);
	struct udphdr *udp = (struct udphdr *)(head + BPF_CORE_READ(skb, transport_header));
	__u8 version = 0;
	long failed = bpf_probe_read_kernel(&version, 1, network);

	__builtin_memset(tuple, 0, sizeof(*tuple));
	if (failed) {
		helper_failed(READ_KERNEL_HELPER, failed);
		return false;
	}
	if (version >> 4 == 4) {
		tuple->saddr_l = BPF_CORE_READ((struct iphdr *)network, daddr);
		tuple->daddr_l = BPF_CORE_READ((struct iphdr *)network, saddr);
	} else {
		struct address local, remote;

		BPF_CORE_READ_INTO(&local, (struct ipv6hdr *)network, daddr);
		BPF_CORE_READ_INTO(&remote, (struct ipv6hdr *)network, saddr);
		set_v6(tuple, &local, &remote);
	}
	tuple->sport = bpf_ntohs(BPF_CORE_READ(udp, dest));
	tuple->dport = bpf_ntohs(BPF_CORE_READ(udp, source));
	tuple->netns = netns_of(sk);
	tuple->pid = pid;
	return true;
}

/* Both ends of a datagram that is about to be sent, by the flow that it was routed for. */
static __always_inline void read_flow4(struct conn_tuple *tuple, struct flowi4 *flow, struct sock *sk, __u32 pid)
{
	__builtin_memset(tuple, 0, sizeof(*tuple));
	tuple->saddr_l = BPF_CORE_READ(flow, saddr);
	tuple->daddr_l = BPF_CORE_READ(flow, daddr);
	tuple->sport = bpf_ntohs(BPF_CORE_READ(flow, uli.ports.sport));
	tuple->dport = bpf_ntohs(BPF_CORE_READ(flow, uli.ports.dport));
	tuple->netns = netns_of(sk);
	tuple->pid = pid;
}

static __always_inline void read_flow6(struct conn_tuple *tuple, struct flowi6 *flow, struct sock *sk, __u32 pid)
{
	struct address local, remote;

	__builtin_memset(tuple, 0, sizeof(*tuple));
	BPF_CORE_READ_INTO(&local, flow, saddr);
	BPF_CORE_READ_INTO(&remote, flow, daddr);
	set_v6(tuple, &local, &remote);
	tuple->sport = bpf_ntohs(BPF_CORE_READ(flow, uli.ports.sport));
	tuple->dport = bpf_ntohs(BPF_CORE_READ(flow, uli.ports.dport));
	tuple->netns = netns_of(sk);
	tuple->pid = pid;
}

#endif
