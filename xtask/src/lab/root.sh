#!/bin/sh
# The lab machine's first program on its root file system: what a program expects of a Linux
# host, then the steps. Three ports of a virtio console lead to the host: `control` for what
# this script has to say, `out` and `err` for what the steps say.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts -o ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t tmpfs -o mode=755 run /run
mount -t cgroup2 cgroup /sys/fs/cgroup
mount -t debugfs debug /sys/kernel/debug
ln -s /proc/self/fd /dev/fd
chmod 666 /dev/kvm /dev/net/tun
hostname lab
ip link set lo up

port() {
    for port in /sys/class/virtio-ports/*; do
        [ "$(cat "$port/name")" = "$1" ] && echo "/dev/${port##*/}"
    done
}
exec 3<>"$(port control)"
# Without the host nobody waits for this machine.
(
    cat <&3 >/dev/null
    poweroff -f
) &

# Through pipes: a port can be opened only once, and a program may open its output again.
mkfifo /run/out /run/err
cat /run/out >"$(port out)" 3>&- &
out=$!
cat /run/err >"$(port err)" 3>&- &
err=$!
exec 4>/run/out 5>/run/err

step() {
    name=$1
    echo "start $name" >&3
    cd "$2" || echo "no folder $2" >&5
    shift 2
    "$@" </dev/null >&4 2>&5 3>&- 4>&- 5>&-
    echo "end $? $name" >&3
}
# Before the first step: what VMs switch in the kernel stays as it is then.
mkfifo /run/standing
(. /lab/standing) >/run/standing 2>&1 </dev/null 3>&- 4>&- 5>&- &
read -r standing </run/standing
[ "$standing" = standing ] || echo "no VM stands: $standing" >&5
echo ready >&3
while sleep 15; do
    echo alive >&3
done &
. /lab/steps
[ -f /lab/results ] && cat /lab/results >"$(port results)"
exec 4>&- 5>&-
# What a step left running holds its outputs open.
(
    sleep 5
    echo done >&3
    poweroff -f
) &
wait $out $err
echo done >&3
poweroff -f
