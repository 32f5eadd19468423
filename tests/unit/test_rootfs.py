import os
import tomllib

import pytest

from kmt.roots import rootfs

SOURCES = ["deb [signed-by=/k] http://mirror.test/debian trixie main"]


def command(**changes):
    return rootfs.command(["b", "a", "b"], "trixie", SOURCES, **{"root": True, **changes})


def test_every_package_says_why_it_is_there():
    table = tomllib.loads(rootfs.RECIPE.read_text())
    for kind in ("guest", "compiler"):
        assert table[kind], kind
        assert all(isinstance(why, str) and why for why in table[kind].values())


def test_packages_are_sorted_once_each_and_the_sources_come_last():
    words = command()
    assert "--include=a,b" in words
    assert words[-3:] == ["trixie", "-", *SOURCES]


def test_an_ordinary_user_gets_a_user_namespace_of_its_own():
    user = {"--user", "--map-root-user", "--map-auto"}
    assert user & set(command(root=True)) == set()
    assert user <= set(command(root=False)[: command(root=False).index("mmdebstrap")])


@pytest.mark.parametrize("root", [True, False])
def test_whatever_kills_it_leaves_no_process_and_no_mount(root):
    outer = command(root=root)[: command(root=root).index("mmdebstrap")]
    assert {"--mount", "--pid", "--fork", "--kill-child"} <= set(outer)


def test_recommended_packages_and_documents_stay_out():
    words = command()
    assert '--aptopt=APT::Install-Recommends "false"' in words
    assert "--dpkgopt=path-exclude=/usr/share/doc/*" in words
    assert "--dpkgopt=path-exclude=/usr/share/locale/*" in words


def test_the_machines_proxy_is_used_and_its_other_settings_are_not():
    dump = (
        'Acquire "";\nAcquire::http::Proxy "http://proxy.test:3128";\nAcquire::https::CAInfo "/etc/ca.pem";\n'
        'Acquire::http::Proxy::mirror.test "DIRECT";\nAcquire::Languages "de";\nAcquire::http::Timeout "9";\n'
        'Acquire::ftp::Proxy "x";\n'
    )
    options = rootfs.apt_options(dump)
    assert options == [
        'Acquire::http::Proxy "http://proxy.test:3128";',
        'Acquire::https::CAInfo "/etc/ca.pem";',
        'Acquire::http::Proxy::mirror.test "DIRECT";',
    ]
    assert f"--aptopt={options[0]}" in command(options=options)


@pytest.mark.parametrize(
    ("said", "hint"),
    [
        ("E: Unable to locate package nothere", "[tool.kmt] packages"),
        (f"dpkg: error: cannot write: {os.strerror(28)}", "KMT_CACHE"),
        ("E: You don't have enough free space in /var/cache/apt/archives/.", "KMT_CACHE"),
        ("E: Failed to fetch http://mirror.test/x  Could not connect", "apt-get update"),
        ('unshare: no line matching user "me" in /etc/subuid', "usermod --add-subuids"),
        ("unshare: unshare failed: No space left on device", "no namespaces"),
        ("unshare: unshare failed: Operation not permitted", "no namespaces"),
        ("something unheard of", "kmt.doctor"),
    ],
)
def test_a_failure_shows_the_words_and_what_to_do(said, hint):
    error = rootfs.failure("mmdebstrap failed", ["first", said])
    assert said in error.message
    assert hint in error.hint


def test_the_reason_is_shown_and_not_who_passed_it_on():
    said = [
        "Reading package lists",
        "E: Unable to locate package nothere",
        "E: setup failed: E: apt-get --yes install bpftool nothere failed",
        "E: mmdebstrap failed to run",
        "/usr/bin/tar: This does not look like a tar archive",
        "/usr/bin/tar: Exiting with failure status due to previous errors",
    ]
    assert rootfs.telling(said) == ["E: Unable to locate package nothere"]


def test_words_that_are_no_errors_are_better_than_none():
    assert rootfs.telling(["one", "two"], most=1) == ["two"]
