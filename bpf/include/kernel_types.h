/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The kernel's types, and how to read them: one C source, three builds.
 *
 * CO-RE (nothing defined): types of our own, as little of them as the programs read. Every field is found by name in
 * the running kernel's BTF when the program is loaded, so neither order nor size means anything below, and a struct
 * that the kernel embeds in an anonymous one may stand flat. Constants of the system call interface: <linux/...>.
 * Prebuilt (COMPILE_PREBUILT): vmlinux.h, all types of the one kernel that the object is for, made from its BTF.
 * Runtime (COMPILE_RUNTIME): the kernel's own headers.
 * In the last two, BPF_CORE_READ reads at the offsets of that kernel and leaves no relocation.
 */
#ifndef KERNEL_TYPES_H
#define KERNEL_TYPES_H

#if defined(COMPILE_PREBUILT)
#include "vmlinux.h"
#elif defined(COMPILE_RUNTIME)
#include <linux/types.h>

#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/net.h>
#include <linux/ptrace.h>
#include <linux/skbuff.h>
#include <linux/socket.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <net/flow.h>
#include <net/inet_sock.h>
#include <net/sock.h>
#include <uapi/linux/bpf.h>
#else
#include <stdbool.h>
#include <stddef.h>

#include <linux/bpf.h>
#include <linux/ptrace.h>
#include <linux/types.h>
#endif

#include <bpf/bpf_helpers.h>

#include <bpf/bpf_core_read.h>

#ifndef COMPILE_RUNTIME
#define AF_INET 2
#define AF_INET6 10
#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define SOCK_STREAM 1
#define MSG_PEEK 2
#define MSG_ERRQUEUE 0x2000
#endif

enum tcp_state {
	TCP_ESTABLISHED_STATE = 1,
	TCP_SYN_SENT_STATE = 2,
	TCP_FIN_WAIT1_STATE = 4,
	TCP_FIN_WAIT2_STATE = 5,
	TCP_CLOSE_STATE = 7,
	TCP_LAST_ACK_STATE = 9,
	TCP_CLOSING_STATE = 11,
};

/* sock_common.skc_flags: the other side has ended its half (SOCK_DONE, which tcp_fin sets and nothing else of TCP). */
#define FIN_RECEIVED (1UL << 1)

#if defined(COMPILE_PREBUILT) || defined(COMPILE_RUNTIME)
#undef BPF_CORE_READ
#define BPF_CORE_READ BPF_PROBE_READ
#undef BPF_CORE_READ_INTO
#define BPF_CORE_READ_INTO BPF_PROBE_READ_INTO
#else
#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct ns_common {
	unsigned int inum;
};

struct net {
	struct ns_common ns;
};

typedef struct {
	struct net *net;
} possible_net_t;

struct in6_addr {
	union {
		__u8 u6_addr8[16];
		__be32 u6_addr32[4];
	} in6_u;
};

struct sock_common {
	__be32 skc_daddr;
	__be32 skc_rcv_saddr;
	__be16 skc_dport;
	__u16 skc_num;
	unsigned short skc_family;
	unsigned char skc_state;
	possible_net_t skc_net;
	unsigned long skc_flags;
	struct in6_addr skc_v6_daddr;
	struct in6_addr skc_v6_rcv_saddr;
};

struct sock {
	struct sock_common __sk_common;
	__u16 sk_type;
	__u16 sk_protocol;
};

struct socket {
	struct sock *sk;
};

struct inet_sock {
	__be16 inet_sport;
};

struct udp_sock {
	int pending;
};

struct tcp_sock {
	__u32 segs_in;
	__u32 segs_out;
	__u32 srtt_us;
	__u32 mdev_us;
	__u32 total_retrans;
	__u32 copied_seq;
	__u32 rcv_nxt;
	__u32 write_seq;
	__u32 snd_una;
	__u64 bytes_received;
	__u64 bytes_acked;
};

typedef struct {
	int counter;
} atomic_t;

typedef struct refcount_struct {
	atomic_t refs;
} refcount_t;

struct sk_buff {
	struct sock *sk;
	unsigned int len;
	__u16 transport_header;
	__u16 network_header;
	unsigned char *head;
	refcount_t users;
};

struct iphdr {
	__be32 saddr;
	__be32 daddr;
};

struct ipv6hdr {
	struct in6_addr saddr;
	struct in6_addr daddr;
};

struct udphdr {
	__be16 source;
	__be16 dest;
};

struct sockaddr {
	unsigned short sa_family;
};

/* sin6_port is at the same place. */
struct sockaddr_in {
	__be16 sin_port;
};

union flowi_uli {
	struct {
		__be16 dport;
		__be16 sport;
	} ports;
};

struct flowi4 {
	__be32 saddr;
	__be32 daddr;
	union flowi_uli uli;
};

struct flowi6 {
	struct in6_addr daddr;
	struct in6_addr saddr;
	union flowi_uli uli;
};

#pragma clang attribute pop
#endif

/* Only pointers to these are passed on. */
struct inet_cork;
struct msghdr;
struct page;
struct pipe_inode_info;
struct proto_accept_arg;
struct sockaddr_unsized;

#endif
