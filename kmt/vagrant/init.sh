#!/bin/sh
# Pid 1 of a machine that Vagrant manages: after kmt/guest/initramfs.sh, which has put the root together. A network
# card with the address that QEMU's user-mode network forwards to, an SSH server; the rest is the agent's and people's.
export PATH=/run/kmt/bin
mkdir -p /dev/pts /dev/shm /run/lock /tmp /root/.ssh /etc/dropbear
mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount -t tmpfs -o mode=1777,size=50% tmpfs /tmp
ln -sf /proc/self/fd /dev/fd
ln -sf /proc/self/fd/0 /dev/stdin
ln -sf /proc/self/fd/1 /dev/stdout
ln -sf /proc/self/fd/2 /dev/stderr

/usr/sbin/modprobe -q virtio_net
ip link set lo up
for card in /sys/class/net/e*; do # eth0, or enp0s2 where something renames it
	ip addr add 10.0.2.15/24 dev "${card##*/}"
	ip link set "${card##*/}" up
done
: >/etc/fstab # Vagrant edits it
printf '#!/bin/sh\necho o >/proc/sysrq-trigger\n' >/usr/sbin/shutdown # vagrant halt runs it
/run/kmt/bin/busybox chmod 755 /usr/sbin/shutdown
cp /run/kmt/authorized_keys /root/.ssh/authorized_keys
cd /
ulimit -l unlimited
ulimit -c unlimited
ulimit -n 65536
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
# -R: host keys when they are first asked for; -s: no passwords; -E: words to standard error.
LD_LIBRARY_PATH=/run/kmt/ssh /run/kmt/ssh/dropbear -R -F -E -s -P "" </dev/null >/dev/console 2>&1 &
echo "kmt: sshd is up" >/dev/console
wait $!
echo "kmt: sshd ended with status $?" >/dev/console
echo o >/proc/sysrq-trigger
while :; do /run/kmt/bin/sleep 1; done
