# Far more is written to a filesystem on an attached array than the machine has memory, on the machine that raidd runs on.
# What the kernel keeps of it can only be given up by writing it, through raidd.
. /lib/vm.sh
modprobe nbd nbds_max=1
raidd_start
raidctl create vol0 --level 5 --chunk 64K --init zero /dev/vda /dev/vdb /dev/vdc >/dev/null || fail create
raidctl attach vol0 /dev/nbd0 >/dev/null || fail attach
mkfs.ext4 -q /dev/nbd0 || fail mkfs
mount /dev/nbd0 /mnt || fail mount
# All that the kernel allows, and none of it written before it must be.
echo 90 >/proc/sys/vm/dirty_ratio
echo 80 >/proc/sys/vm/dirty_background_ratio
echo "locked: $(awk '/VmLck/ { print $2 }' /proc/$raidd/status)"
for name in a b; do
    dd if=/dev/urandom of=/run/block bs=1M count=1 2>/dev/null
    (for index in $(seq 180); do cat /run/block; done >/mnt/$name) || fail "write $name"
done
sync || fail sync
for name in a b; do echo "size: $(stat -c %s /mnt/$name)"; done
umount /mnt || fail umount
dmesg | grep -iE 'out of memory|blocked for more' && fail "the kernel complains"
echo "io errors: $(io_errors | wc -l)"
raidctl detach vol0 || fail detach
raidd_stop
