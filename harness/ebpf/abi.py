"""libbpf's C interface as ctypes sees it: every function we call, with its types, and what it prints.

Laws: each function has argtypes and restype (without them ctypes cuts pointers to 32 bits); no callback raises;
callbacks that C keeps are kept here too. ``libbpf.py`` makes objects out of this, ``buffers.py`` event buffers.
"""

from __future__ import annotations

import ctypes as c
import functools
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from harness.errors import LibraryError

SONAME = "libbpf.so.1"
OLDEST = (1, 1)
"""Debian 12 has it."""

WARNING = 0
"""The print level of what goes wrong."""

Pointer = c.c_void_p
SizePointer = c.POINTER(c.c_size_t)


class OpenOptions(c.Structure):
    """``struct bpf_object_open_opts`` up to the field that we set; ``sz`` tells libbpf how much of it there is."""

    _fields_ = (
        ("sz", c.c_size_t),
        ("object_name", c.c_char_p),
        ("relaxed_maps", c.c_bool),
        ("pin_root_path", c.c_char_p),
        ("reserved", c.c_uint32),
        ("kconfig", c.c_char_p),
        ("btf_custom_path", c.c_char_p),
    )


class UprobeOptions(c.Structure):
    """``struct bpf_uprobe_opts`` up to the field that we set."""

    _fields_ = (
        ("sz", c.c_size_t),
        ("ref_ctr_offset", c.c_size_t),
        ("bpf_cookie", c.c_uint64),
        ("retprobe", c.c_bool),
    )


class KprobeMultiOptions(c.Structure):
    """``struct bpf_kprobe_multi_opts`` up to the field that we set."""

    _fields_ = (
        ("sz", c.c_size_t),
        ("syms", Pointer),
        ("addrs", Pointer),
        ("cookies", Pointer),
        ("cnt", c.c_size_t),
        ("retprobe", c.c_bool),
    )


class UprobeMultiOptions(c.Structure):
    """``struct bpf_uprobe_multi_opts`` up to the field that we set."""

    _fields_ = (
        ("sz", c.c_size_t),
        ("syms", Pointer),
        ("offsets", Pointer),
        ("ref_ctr_offsets", Pointer),
        ("cookies", Pointer),
        ("cnt", c.c_size_t),
        ("retprobe", c.c_bool),
    )


class MapOptions(c.Structure):
    """``struct bpf_map_create_opts`` up to the field that we set."""

    _fields_ = (
        ("sz", c.c_size_t),
        ("btf_fd", c.c_uint32),
        ("btf_key_type_id", c.c_uint32),
        ("btf_value_type_id", c.c_uint32),
        ("btf_vmlinux_value_type_id", c.c_uint32),
        ("inner_map_fd", c.c_uint32),
    )


class ProgramInfo(c.Structure):
    """``struct bpf_prog_info`` (linux/bpf.h) up to the field that we read."""

    _fields_ = (("others", c.c_uint64 * 26), ("recursion_misses", c.c_uint64))


PrintCallback = c.CFUNCTYPE(c.c_int, c.c_int, c.c_char_p, Pointer)
SampleCallback = c.CFUNCTYPE(None, Pointer, c.c_int, Pointer, c.c_uint32)
LostCallback = c.CFUNCTYPE(None, Pointer, c.c_int, c.c_uint64)
RingCallback = c.CFUNCTYPE(c.c_int, Pointer, Pointer, c.c_size_t)

# name: (result, *arguments)
_FUNCTIONS: dict[str, tuple[object, ...]] = {
    "libbpf_major_version": (c.c_uint32,),
    "libbpf_minor_version": (c.c_uint32,),
    "libbpf_num_possible_cpus": (c.c_int,),
    "libbpf_probe_bpf_map_type": (c.c_int, c.c_int, Pointer),
    "libbpf_probe_bpf_prog_type": (c.c_int, c.c_int, Pointer),
    "bpf_object__open_mem": (Pointer, c.c_char_p, c.c_size_t, Pointer),
    "bpf_object__load": (c.c_int, Pointer),
    "bpf_object__close": (None, Pointer),
    "bpf_object__btf": (Pointer, Pointer),
    "bpf_object__next_program": (Pointer, Pointer, Pointer),
    "bpf_object__next_map": (Pointer, Pointer, Pointer),
    "bpf_program__name": (c.c_char_p, Pointer),
    "bpf_program__section_name": (c.c_char_p, Pointer),
    "bpf_program__set_autoload": (c.c_int, Pointer, c.c_bool),
    "bpf_program__set_log_buf": (c.c_int, Pointer, Pointer, c.c_size_t),
    "bpf_program__fd": (c.c_int, Pointer),
    "bpf_obj_get_info_by_fd": (c.c_int, c.c_int, Pointer, c.POINTER(c.c_uint32)),
    "bpf_program__attach": (Pointer, Pointer),
    "bpf_program__attach_perf_event": (Pointer, Pointer, c.c_int),
    "bpf_program__attach_uprobe_opts": (Pointer, Pointer, c.c_int, c.c_char_p, c.c_size_t, Pointer),
    "bpf_link__destroy": (c.c_int, Pointer),
    "bpf_link__fd": (c.c_int, Pointer),
    "bpf_obj_pin": (c.c_int, c.c_int, c.c_char_p),
    "bpf_map_create": (c.c_int, c.c_int, c.c_char_p, c.c_uint32, c.c_uint32, c.c_uint32, Pointer),
    "bpf_map__name": (c.c_char_p, Pointer),
    "bpf_map__fd": (c.c_int, Pointer),
    "bpf_map__type": (c.c_int, Pointer),
    "bpf_map__set_type": (c.c_int, Pointer, c.c_int),
    "bpf_map__key_size": (c.c_uint32, Pointer),
    "bpf_map__set_key_size": (c.c_int, Pointer, c.c_uint32),
    "bpf_map__value_size": (c.c_uint32, Pointer),
    "bpf_map__set_value_size": (c.c_int, Pointer, c.c_uint32),
    "bpf_map__set_max_entries": (c.c_int, Pointer, c.c_uint32),
    "bpf_map__initial_value": (Pointer, Pointer, SizePointer),
    "bpf_map_lookup_elem": (c.c_int, c.c_int, Pointer, Pointer),
    "bpf_map_update_elem": (c.c_int, c.c_int, Pointer, Pointer, c.c_uint64),
    "bpf_map_delete_elem": (c.c_int, c.c_int, Pointer),
    "bpf_map_get_next_key": (c.c_int, c.c_int, Pointer, Pointer),
    "bpf_map_lookup_batch": (
        c.c_int,
        c.c_int,
        Pointer,
        Pointer,
        Pointer,
        Pointer,
        c.POINTER(c.c_uint32),
        Pointer,
    ),
    "btf__parse_elf": (Pointer, c.c_char_p, Pointer),
    "btf__free": (None, Pointer),
    "btf__raw_data": (Pointer, Pointer, c.POINTER(c.c_uint32)),
    "perf_buffer__new": (Pointer, c.c_int, c.c_size_t, SampleCallback, LostCallback, Pointer, Pointer),
    "perf_buffer__buffer_cnt": (c.c_size_t, Pointer),
    "perf_buffer__epoll_fd": (c.c_int, Pointer),
    "perf_buffer__free": (None, Pointer),
    "ring_buffer__new": (Pointer, c.c_int, RingCallback, Pointer, Pointer),
    "ring_buffer__consume": (c.c_int, Pointer),
    "ring_buffer__epoll_fd": (c.c_int, Pointer),
    "ring_buffer__free": (None, Pointer),
}

# Of libraries that are not too old; the rest works without.
_OPTIONAL: dict[str, tuple[object, ...]] = {
    "bpf_program__attach_kprobe_multi_opts": (Pointer, Pointer, c.c_char_p, Pointer),
    "bpf_program__attach_uprobe_multi": (Pointer, Pointer, c.c_int, c.c_char_p, c.c_char_p, Pointer),
}


class _Said(threading.local):
    """What libbpf printed; a thread hears what its own calls say."""

    def __init__(self) -> None:
        self.lines: deque[str] = deque(maxlen=200)


_said = _Said()


@functools.cache
def library() -> c.CDLL:
    """The library, loaded once. LibraryError where it is missing or older than ``OLDEST``."""
    try:
        lib = c.CDLL(SONAME, use_errno=True)
        for name, (result, *arguments) in _FUNCTIONS.items():
            function = getattr(lib, name)
            function.restype = result
            function.argtypes = arguments
    except (OSError, AttributeError) as error:
        raise LibraryError(f"{SONAME} cannot be used: {error}", hint="install Debian's libbpf1") from None
    version = (lib.libbpf_major_version(), lib.libbpf_minor_version())
    if version < OLDEST:
        found, wanted = (".".join(map(str, v)) for v in (version, OLDEST))
        raise LibraryError(f"{SONAME} is version {found}", hint=f"version {wanted} or later is needed")
    lib.libbpf_set_print.argtypes = [PrintCallback]
    lib.libbpf_set_print.restype = Pointer
    lib.libbpf_set_print(_print)
    return lib


@functools.cache
def consume_perf_buffer() -> Callable[[int, int], int]:
    """``perf_buffer__consume_buffer``, called without letting go of the interpreter.

    Otherwise each event's callback would have to get it back, and wait for it while another thread runs.
    """
    function = c.PyDLL(SONAME).perf_buffer__consume_buffer
    function.restype, function.argtypes = c.c_int, (Pointer, c.c_size_t)
    return function


@functools.cache
def optional(name: str) -> Callable[..., int | None]:
    """A function of later libraries. LibraryError where this one has it not."""
    try:
        function: Callable[..., int | None] = getattr(library(), name)
    except AttributeError:
        raise LibraryError(f"{SONAME} has no {name}", hint="a later libbpf is needed") from None
    function.restype, *function.argtypes = _OPTIONAL[name]  # type: ignore[attr-defined]
    return function


@contextmanager
def hearing() -> Iterator[list[str]]:
    """Gather the warnings that libbpf prints meanwhile to this thread's calls."""
    # BCC uses the same library, and sets a printer of its own whenever it loads a program.
    library().libbpf_set_print(_print)
    _said.lines.clear()
    heard: list[str] = []
    try:
        yield heard
    finally:
        heard.extend(_said.lines)


_vsnprintf = c.CDLL(None).vsnprintf
_vsnprintf.restype = c.c_int
_vsnprintf.argtypes = [c.c_char_p, c.c_size_t, c.c_char_p, Pointer]


def _keep(level: int, template: bytes, arguments: int) -> int:
    # A va_list is passed on as a pointer: so it is in the ABIs of x86-64 (an array) and arm64 (a large struct).
    try:
        if level == WARNING:
            text = c.create_string_buffer(8192)
            _vsnprintf(text, len(text), template, arguments)
            _said.lines.extend(text.value.decode(errors="replace").splitlines())
    except BaseException:
        _said.lines.append("a message of libbpf could not be read")
    return 0


_print = PrintCallback(_keep)
