#!/bin/busybox sh
# The lab machine's first program, in its initramfs: drivers, then the root file system.
/bin/busybox mount -t devtmpfs dev /dev
# KVM takes the TSC's frequency as it finds it. Linux measures it again in its second second; where a busy host had it
# wrong before, vCPUs of a KVM that came too early have no TSC of their own: "user requested TSC rate below hardware speed".
/bin/busybox mount -t sysfs sys /sys
clock=/sys/devices/system/clocksource/clocksource0/current_clocksource
for wait in $(/bin/busybox seq 100); do
    read -r name <$clock
    [ "$name" = tsc ] && break
    /bin/busybox sleep 0.1
done
[ "$name" = tsc ] || echo "lab: the clock is $name, not tsc" >/dev/kmsg
/bin/busybox umount /sys
while read -r module; do
    /bin/busybox insmod "/modules/$module" || echo "lab: no module $module" >/dev/kmsg
done </modules/order
/bin/busybox mount -t ext4 -o noatime,noinit_itable /dev/vda /root || exec /bin/busybox poweroff -f
exec /bin/busybox switch_root /root /lab/init
