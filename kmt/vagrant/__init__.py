"""Machines that the Vagrant CLI manages through libvirt: its daemon, its box, the file that ``vms/Vagrantfile`` reads.

Start at ``daemon.libvirt``. The backend that runs tests in them is ``kmt/backends/vagrant.py``.
"""
