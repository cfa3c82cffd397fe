# An array as /dev/nbdN: attached, used, refused where it must be, detached.
. /lib/vm.sh
modprobe nbd nbds_max=4
refused() { "$@" >/tmp/said 2>&1 && fail "not refused: $*"; echo "refused: $(cat /tmp/said)"; }

raidd_start
raidctl create vol0 --level 5 /dev/vda /dev/vdb /dev/vdc >/dev/null || fail create
refused raidctl detach vol0
device=$(raidctl attach vol0 /dev/nbd2 --connections 3 --wait 60s) || fail attach
echo "device: $device"
echo "status: $(raidctl status vol0 | grep Device)"
echo "backend: $(cat /sys/block/nbd2/backend)"
echo "size: $(blockdev --getsize64 /dev/nbd2) of $(raidctl --json status vol0 | grep -o '"size_bytes":[0-9]*' | head -n 1)"
echo "queue: $(cat /sys/block/nbd2/queue/logical_block_size) $(cat /sys/block/nbd2/queue/write_cache) $(cat /sys/block/nbd2/queue/fua) $(raidctl --json status vol0 | grep -o '"connections":[0-9]*')"
refused raidctl attach vol0
refused raidctl stop vol0
refused raidctl add vol0 $device
mkfs.ext4 -q -E nodiscard $device || fail mkfs
mount $device /mnt || fail mount
cp -r /bin /lib /mnt || fail cp
refused raidctl detach vol0
umount /mnt || fail umount
sum=$(content /dev/nbd2)
raidctl detach vol0 || fail detach
echo "after: $(blockdev --getsize64 /dev/nbd2) $(raidctl status vol0 | grep -c Device)"
[ "$(raidctl attach vol0)" = /dev/nbd0 ] || fail "the first free device"
[ "$sum" = "$(content /dev/nbd0)" ] || fail "other content"
# Somebody else takes it away: raidd notices.
nbd-client -d /dev/nbd0 || fail "nbd-client -d"
tries=0
while grep -q attached /var/lib/raidd/arrays.json; do
    tries=$((tries + 1)); [ $tries -lt 100 ] || fail "raidd believes it is attached"; sleep 0.1
done
[ "$(raidctl attach vol0)" = /dev/nbd0 ] || fail "attach again"
echo "io errors: $(io_errors | wc -l)"
# A device that is taken away under its user stays dead, whatever is done with the array; the next one is another.
mount /dev/nbd0 /mnt || fail "mount again"
raidctl detach vol0 --force || fail "detach --force"
refused raidctl detach vol0
kill -KILL $raidd; wait $raidd 2>/dev/null
raidd_start
[ -z "$(raidctl status vol0 | grep Device)" ] || fail "attached by itself"
dd if=/dev/nbd0 of=/dev/null bs=4k count=1 iflag=direct 2>/dev/null && fail "a dead device was brought back to life"
other=$(raidctl attach vol0) || fail "attach beside it"
[ "$other" != /dev/nbd0 ] || fail "the dead device was taken"
umount /mnt
sum=$(content $other)       # the mount before has written to it
# Where the driver is missing for once, what is wanted is not forgotten.
raidctl detach vol0 && [ "$(raidctl attach vol0 /dev/nbd3)" = /dev/nbd3 ] || fail "attach as another"
raidd_stop
nbd-client -d /dev/nbd3 2>/dev/null
tries=0
until rmmod nbd 2>/dev/null; do tries=$((tries + 1)); [ $tries -lt 100 ] || fail rmmod; sleep 0.1; done
raidd_start
sleep 1
raidd_stop
modprobe nbd nbds_max=4
raidd_start
echo "remembered: $(raidctl status vol0 | grep -o '/dev/nbd.*')"
[ "$sum" = "$(content /dev/nbd3)" ] || fail "other content on /dev/nbd3"
# Nothing is left that goes round.
connected() { grep -c 'connections replaced' /run/raidd.log; }
replaced=$(connected)
sleep 3
[ "$(connected)" = "$replaced" ] || fail "connections are replaced all the time"
raidctl stop vol0 --force || fail stop
echo "at last: $(blockdev --getsize64 /dev/nbd3)"
raidd_stop
