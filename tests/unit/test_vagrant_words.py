"""What Vagrant says. The lines are those of Vagrant 2.3.4 with vagrant-libvirt 0.11.2, as they came."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmt.errors import VmLostError, VmNeverStartedError
from kmt.vagrant.words import MISSING, OFF, RUNNING, Line, StaleMachineError, about, complaint, parse, state, trouble

STATUS = r"""1795371109,6.12,metadata,provider,libvirt
1795371109,6.12,provider-name,libvirt
1795371109,6.12,state,not_created
1795371109,6.12,state-human-short,not created
1795371109,6.12,state-human-long,The Libvirt domain is not created. Run `vagrant up` to create it.
1795371109,,ui,info,Current machine states:\n\n6.12                      not created (libvirt)\n
"""
NOT_FOUND = r"""1795371111,6.12,action,up,start
1795371111,6.12,ui,output,==> 6.12: Box 'no/such-box' could not be found. Attempting to find and install...
1795371111,,ui,error,The box 'no/such-box' could not be found or\ncould not be accessed in the remote catalog. If this
1795371111,,error-exit,Vagrant::Errors::BoxAddShortNotFound,The box 'no/such-box' could not be found or\ncould not be accessed in the remote catalog. If this is a private\nbox on HashiCorp's Vagrant Cloud%!(VAGRANT_COMMA) please verify you're logged in via\n`vagrant login`.
"""  # noqa: E501


def test_commas_and_line_breaks_come_back():
    (line,) = parse(r"1795371111,6.1,ssh-config,Host 6.1\n  Port 2222\n  # one%!(VAGRANT_COMMA) two")
    assert line == Line("6.1", "ssh-config", ("Host 6.1\n  Port 2222\n  # one, two",))


def test_what_ruby_warns_of_is_passed_over():
    text = f"/usr/lib/ruby/x.rb:10: warning: x is deprecated, use y\n\n{STATUS}cut off in the mid"
    assert parse(text) == parse(STATUS)


@given(st.text())
def test_whatever_comes_is_no_error(text):
    for line in parse(text):
        assert line.kind


@given(st.text(st.characters(exclude_characters="\r\n\\%", exclude_categories=["Cs", "Zl", "Zp", "Cc"]), min_size=1))
def test_a_word_survives_as_vagrant_codes_it(word):
    coded = word.replace(",", "%!(VAGRANT_COMMA)")
    assert about(parse(f"1,6.1,ssh-config,{coded}"), "6.1", "ssh-config") == word


@pytest.mark.parametrize(
    ("said", "meant"),
    [("not_created", MISSING), ("poweroff", OFF), ("shutoff", OFF), ("running", RUNNING), ("paused", "paused")],
)
def test_a_machine_that_is_off_has_two_names_for_it(said, meant):
    assert state(parse(STATUS.replace("not_created", said)), "6.12") == meant


def test_of_a_machine_that_is_not_named_nothing_is_known():
    assert state(parse(STATUS), "6.1") == ""


def test_the_error_that_it_ends_with_is_what_counts():
    assert complaint(parse(NOT_FOUND), "warning").startswith("The box 'no/such-box' could not be found or\ncould")
    assert complaint(parse("1,,ui,error,first\n1,,ui,error,second"), "x") == "second"
    assert complaint([], "bash: vagrant: broken") == "bash: vagrant: broken"


@pytest.mark.parametrize(
    ("complained", "kind", "said"),
    [
        (
            "The box 'no/such-box' could not be found or\ncould not be accessed in the remote catalog.",
            VmNeverStartedError,
            r"^vagrant up 6\.1: there is no box no/such-box \(vagrant box add no/such-box\)$",
        ),
        (
            "The provider 'virtualbox' that was requested to back the machine\n'6.12' is reporting that it isn't",
            VmNeverStartedError,
            r"the provider is virtualbox, .* \(unset VAGRANT_DEFAULT_PROVIDER\)$",
        ),
        (
            "The provider 'libvirt' could not be found, but was requested to\nback the machine '6.1'.",
            VmNeverStartedError,
            r"^Vagrant has no provider libvirt \(apt-get install vagrant-libvirt\)$",
        ),
        (
            "the plugin vagrant-libvirt is missing: apt-get install vagrant-libvirt",
            VmNeverStartedError,
            r"plugin libvirt is missing.*\(apt-get install",
        ),
        (
            "Error while connecting to Libvirt: Error making a connection to libvirt URI qemu:///system:\nCall to "
            "virConnectOpen failed: Failed to connect socket to '/var/run/libvirt/libvirt-sock': No such file",
            VmLostError,
            r"libvirtd has ended, or does not answer \(run it again; ./inv kmt\.doctor",
        ),
        ("nsenter: cannot open /proc/15651/ns/mnt: No such file or directory", VmLostError, "libvirtd has ended"),
        (
            "There was an error talking to Libvirt. The error message is shown\nbelow:\n\nCall to virDomainCreate "
            "failed: internal error: process exited while connecting to monitor: -netdev user,id=kmt: Could not "
            "set up host forwarding rule 'tcp:127.0.0.1:40022-:22'",
            VmNeverStartedError,
            r"somebody else listens at the port that is 6\.1's for SSH \(tcp:127\.0\.0\.1:40022-:22\)",
        ),
        (
            "Error while uploading image to storage pool: cannot write: No space left on device",
            VmNeverStartedError,
            r"the disk is full \(make room: ./inv kmt\.clean",
        ),
        (
            "Received error when query the box image details from '/x/box.img'.\nStdout: \nStderr: qemu-img: Could",
            VmNeverStartedError,
            "its box is broken",
        ),
        (
            "Name `kmt-6.1` of domain about to create is already taken. Please try to run\n`vagrant up` command again.",
            StaleMachineError,
            r"libvirt remembers another machine of that name \(vagrant destroy -f 6\.1\)",
        ),
        ("Authentication failed for user root@127.0.0.1", VmNeverStartedError, "refuses Vagrant's key"),
        ("something\nquite else\n\t", VmNeverStartedError, r"failed: something quite else$"),
        ("", VmNeverStartedError, "it does not say why"),
    ],
    ids=lambda v: str(v)[:24],
)
def test_each_way_to_fail_is_one_line(complained, kind, said):
    error = trouble(complained, "6.1", "vagrant up 6.1", "./inv kmt.")
    assert type(error) is kind
    assert "\n" not in str(error)
    with pytest.raises(kind, match=said):
        raise error
