"""QEMU's command line: what must always be in it, and what must never be."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmt.backends import qemu_args
from kmt.backends.base import Machine
from kmt.backends.qemu_args import Files

FILES = Files(Path("/k/vmlinuz"), Path("/k/initramfs"), Path("/i/root"), Path("/k/disk"), Path("/c/disk"))


def command(accelerator="tcg", *, files=FILES, name="6.1", lsm="yama", channel=5, **machine):
    return qemu_args.command("qemu", files, Machine(**machine), accelerator, name=name, lsm=lsm, channel=channel)


def after(argv, option):
    return argv[argv.index(option) + 1]


def words(argv):
    return after(argv, "-append").split()


@pytest.mark.parametrize("accelerator", ["tcg", "kvm"])
def test_a_panic_ends_qemu(accelerator):
    argv = command(accelerator)
    assert "-no-reboot" in argv
    assert {"panic=-1", "oops=panic"} <= set(words(argv))


def test_the_console_is_qemus_output_and_the_kernels():
    argv = command()
    assert after(argv, "-serial") == "chardev:console"
    assert after(argv, "-chardev").startswith("stdio,id=console")
    assert {"console=ttyS0", "printk.time=1"} <= set(words(argv))


@pytest.mark.parametrize("cpus", [1, 2, 4])
def test_emulation_never_runs_vcpus_in_parallel(cpus):
    argv = command(cpus=cpus)
    assert after(argv, "-accel") == ("tcg,tb-size=512" if cpus == 1 else "tcg,thread=single,tb-size=512")
    assert after(argv, "-smp") == str(cpus)
    assert "-cx16" in after(argv, "-cpu").split(",")


def test_hardware_virtualisation_has_the_hosts_cpu_and_none_of_emulations_words():
    argv = command("kvm", cpus=4)
    assert after(argv, "-accel") == "kvm"
    assert after(argv, "-cpu") == "host"
    assert not {"tsc=reliable", "no_timer_check", "mitigations=off"} & set(words(argv))


def test_disks_are_read_only_and_found_by_serial():
    argv = command(compiler=True)
    backings = [argv[i + 1] for i, word in enumerate(argv) if word == "-blockdev"]
    devices = [argv[i + 1] for i, word in enumerate(argv) if word == "-device" and "blk" in argv[i + 1]]
    assert [d.rpartition("serial=")[2] for d in devices] == ["kmt-root", "kmt-kernel", "kmt-compiler"]
    assert len(backings) == 3
    assert all("read-only=on" in backing for backing in backings)


def test_the_compiler_is_attached_only_when_asked_for():
    assert "/c/disk" not in " ".join(command())
    assert "/c/disk" in " ".join(command(compiler=True))


def test_a_kernel_without_modules_has_no_disk_of_its_own():
    argv = command(files=Files(Path("/k/vmlinuz"), Path("/k/initramfs"), Path("/i/root")))
    assert "kmt-kernel" not in " ".join(argv)


def test_commas_in_a_path_are_no_options():
    argv = command(files=Files(Path("/k"), Path("/r"), Path("/a,readonly=off,b")))
    assert "filename=/a,,readonly=off,,b" in after(argv, "-blockdev")


def test_no_network():
    assert not [word for word in command() if "net" in word and word != "-nodefaults"]
    assert "-nodefaults" in command()


def test_the_channel_is_an_inherited_descriptor():
    argv = command(channel=17)
    assert "socket,id=agent,fd=17" in argv
    assert "virtserialport,chardev=agent,name=kmt.agent" in argv


def test_without_a_channel_it_is_a_shell():
    argv = command(channel=None)
    assert "kmt.shell=1" in words(argv)
    assert "virtserialport" not in " ".join(argv)
    assert "kmt.shell=1" not in words(command())


@pytest.mark.parametrize(
    ("configured", "word"),
    [
        ("lockdown,yama", "lsm=lockdown,yama,bpf"),
        ("yama,bpf,ipe", "lsm=yama,bpf,ipe"),
        ("", "lsm=bpf"),
        (None, None),
    ],
)
def test_lsm_keeps_the_kernels_list_and_has_bpf(configured, word):
    found = [w for w in words(command(lsm=configured)) if w.startswith("lsm=")]
    assert found == ([word] if word else [])


def test_lsm_is_read_from_a_configuration():
    text = 'CONFIG_A=y\n# CONFIG_LSM is not here\nCONFIG_LSM="landlock,bpf"\nCONFIG_LSM_X="no"\n'
    assert qemu_args.configured_lsm(text) == "landlock,bpf"
    assert qemu_args.configured_lsm("CONFIG_A=y\n") is None


@given(st.text(max_size=40))
def test_a_name_is_one_word(name):
    said = [w for w in words(command(name=name)) if w.startswith("kmt.kernel=")]
    assert len(said) == 1
    assert said[0].isascii()
    assert words(command(name=name))[-1] == said[0]


def test_memory():
    assert after(command(memory_mib=3072), "-m") == "3072M"


def test_the_probe_has_nothing_but_a_console():
    argv = qemu_args.probe_command("qemu", Files(Path("/v"), Path("/i")), "kvm")
    assert "-device" not in argv
    assert "-blockdev" not in argv
    assert after(argv, "-accel") == "kvm"


def with_memory(**memory):
    argv = qemu_args.command(
        "qemu",
        FILES,
        Machine(memory_mib=512),
        "tcg",
        name="6.1",
        lsm=None,
        channel=5,
        monitor=6,
        memory=qemu_args.Memory(7, **memory),
    )
    return argv, [argv[i + 1] for i, word in enumerate(argv) if word == "-object"]


def test_memory_that_is_kept_is_written_through_and_boots():
    argv, backings = with_memory(shared=True, incoming=False)
    assert backings == ["memory-backend-file,id=kmt-ram,size=512M,mem-path=/proc/self/fd/7,share=on"]
    assert "memory-backend=kmt-ram" in argv
    assert "-incoming" not in argv


def test_memory_that_is_shared_with_others_is_copied_on_write_and_waits_for_its_state():
    argv, backings = with_memory(shared=False, incoming=True)
    assert backings[0].endswith("mem-path=/proc/self/fd/7,share=off")
    assert after(argv, "-incoming") == "defer"


def test_the_machine_is_the_same_whatever_its_memory_lies_in():
    kept, _ = with_memory(shared=True, incoming=False)
    restored, _ = with_memory(shared=False, incoming=True)
    assert [word.replace("share=off", "share=on") for word in restored if word not in ("-incoming", "defer")] == kept


def test_the_monitor_is_an_inherited_descriptor_and_only_where_asked_for():
    argv, _ = with_memory(shared=True, incoming=False)
    assert "socket,id=monitor,fd=6" in argv
    assert "chardev=monitor,mode=control" in argv
    assert "-mon" not in command()
