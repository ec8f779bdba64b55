#!/bin/busybox sh
# The lab machine's first program, in its initramfs: drivers, then the root file system.
/bin/busybox mount -t devtmpfs dev /dev
while read -r module; do
    /bin/busybox insmod "/modules/$module" || echo "lab: no module $module" >/dev/kmsg
done </modules/order
/bin/busybox mount -t ext4 -o noatime,noinit_itable /dev/vda /root || exec /bin/busybox poweroff -f
exec /bin/busybox switch_root /root /lab/init
