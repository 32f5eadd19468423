#!/bin/sh
# The guest's pid 1: everything a test may expect of the machine, then the agent, then power off at once.
# /dev, /proc, /sys and /run are already mounted by the initramfs. Its static busybox runs this: under emulation a
# process of the root image takes a tenth of a second to start, one of busybox's a hundredth.
export PATH=/run/kmt/bin
export HOME=/root USER=root LANG=C.UTF-8 TERM=dumb PYTHONPATH=/run/kmt

word() { # the value of kmt.$1 on the kernel's command line
	read -r line </proc/cmdline
	for w in $line; do
		case $w in "kmt.$1="*) echo "${w#*=}" ;; esac
	done
}

try() { # not every kernel has each of these; a test that needs one says so itself
	"$@" 2>/dev/null || true
}

mkdir -p /dev/pts /dev/shm /run/lock /run/kmt/artifacts /tmp
mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount -t tmpfs -o mode=1777,size=50% tmpfs /tmp
ln -sf /proc/self/fd /dev/fd
ln -sf /proc/self/fd/0 /dev/stdin
ln -sf /proc/self/fd/1 /dev/stdout
ln -sf /proc/self/fd/2 /dev/stderr
try mount -t bpf -o mode=700 bpf /sys/fs/bpf
try mount -t tracefs tracefs /sys/kernel/tracing
try mount -t debugfs debugfs /sys/kernel/debug
try mount -t securityfs securityfs /sys/kernel/security
try mount -t cgroup2 cgroup2 /sys/fs/cgroup

set_to() { # a sysctl that this kernel may lack
	[ ! -w "/proc/sys/$1" ] || echo "$2" >"/proc/sys/$1" || true
}
name=$(word kernel)
set_to kernel/hostname "kmt-${name:-guest}"
set_to kernel/core_pattern '/run/kmt/artifacts/core.%e.%p'
set_to kernel/perf_event_paranoid -1
set_to kernel/kptr_restrict 0
set_to kernel/yama/ptrace_scope 0
set_to kernel/unprivileged_bpf_disabled 0
set_to kernel/sysrq 1
ip link set lo up
if [ "$(word dump)" = 1 ]; then # gives QEMU the kernel's VMCOREINFO
	try /usr/sbin/modprobe qemu_fw_cfg
fi
ulimit -l unlimited
ulimit -c unlimited
ulimit -n 65536

cd /
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
bin=/run/kmt/bin
echo "kmt: ready" >/dev/console
if [ "$(word shell)" = 1 ]; then
	TERM=linux $bin/setsid -c /bin/sh -i </dev/console >/dev/console 2>&1
else
	# In the background, so that "wait" goes on reaping whatever orphans pid 1 inherits.
	$bin/setsid python3 -B -m kmt_guest </dev/null >/dev/console 2>&1 &
	wait $!
	echo "kmt: the agent ended with status $?" >/dev/console
fi
$bin/sync
echo o >/proc/sysrq-trigger
# Powering off is done by a worker of the kernel; pid 1 must not end before it.
while :; do $bin/sleep 1; done
