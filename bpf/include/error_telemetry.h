/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * What maps and helpers refused, by error number: for every program that updates maps through map_update and map_insert,
 * and reports what other helpers returned to helper_failed.
 *
 * map_err_telemetry_map has an entry for each map, keyed by the constant NAME_telemetry_key that TELEMETRY(NAME)
 * declares and user space finds by that name, and sets, before loading; helper_err_telemetry_map has one, key 0, a row of 64 numbers a helper.
 * User space puts the entries in (512 bytes of zeros are too much for a program's stack). harness/ebpf/error_telemetry.py
 * reads them.
 */
#ifndef ERROR_TELEMETRY_H
#define ERROR_TELEMETRY_H

/* Not __noinline: it says noinline, of which the kernel's own headers make something else. */
#define SUBPROGRAM __attribute__((__noinline__))

#define MAX_ERRNO_SLOT 63
#define EEXIST_ERRNO 17

enum telemetry_helper {
	READ_KERNEL_HELPER = 0,
	PERF_EVENT_OUTPUT_HELPER = 1,
	RINGBUF_OUTPUT_HELPER = 2,
	READ_USER_HELPER = 3,
	READ_USER_STR_HELPER = 4,
	TELEMETRY_HELPERS = 5,
};

struct map_errors {
	__u64 count[MAX_ERRNO_SLOT + 1];
};

struct helper_errors {
	__u64 count[TELEMETRY_HELPERS * (MAX_ERRNO_SLOT + 1)];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, __u64);
	__type(value, struct map_errors);
	__uint(max_entries, 128);
} map_err_telemetry_map SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, __u64);
	__type(value, struct helper_errors);
	__uint(max_entries, 1);
} helper_err_telemetry_map SEC(".maps");

#define TELEMETRY(map) const volatile __u64 map##_telemetry_key

/* Errors above 63 share the last slot. */
static __always_inline __u64 error_slot(long error)
{
	__u64 number = -error;

	return number > MAX_ERRNO_SLOT ? MAX_ERRNO_SLOT : number;
}

static SUBPROGRAM int map_failed(__u64 key, long error)
{
	struct map_errors *errors = bpf_map_lookup_elem(&map_err_telemetry_map, &key);

	if (errors)
		__sync_fetch_and_add(&errors->count[error_slot(error)], 1);
	return 0;
}

static SUBPROGRAM int helper_failed(enum telemetry_helper helper, long error)
{
	__u64 key = 0, slot = helper * (MAX_ERRNO_SLOT + 1) + error_slot(error);
	struct helper_errors *errors = bpf_map_lookup_elem(&helper_err_telemetry_map, &key);

	if (errors && slot < TELEMETRY_HELPERS * (MAX_ERRNO_SLOT + 1))
		__sync_fetch_and_add(&errors->count[slot], 1);
	return 0;
}

/*
 * Put a value in, whatever is there. 0, or the error that was counted.
 * An int on purpose: before 6.4 a map's own function returns one, and its upper half is not the sign's.
 */
#define map_update(map, key, value)                                                      \
	({                                                                               \
		int map_error = bpf_map_update_elem(&map, key, value, BPF_ANY);         \
		if (map_error)                                                           \
			map_failed(map##_telemetry_key, map_error);                      \
		map_error;                                                               \
	})

/* The same unless something is there, which is no failure: EEXIST is returned and not counted. */
#define map_insert(map, key, value)                                                      \
	({                                                                               \
		int map_error = bpf_map_update_elem(&map, key, value, BPF_NOEXIST);     \
		if (map_error && map_error != -EEXIST_ERRNO)                             \
			map_failed(map##_telemetry_key, map_error);                      \
		map_error;                                                               \
	})

#endif
