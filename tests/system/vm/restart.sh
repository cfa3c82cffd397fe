# raidd dies, again and again, under a mounted filesystem that is being written: nobody above it notices more than a pause.
#   restart ROUNDS
. /lib/vm.sh
modprobe nbd nbds_max=2

raidd_start
raidctl create vol0 --level 5 --chunk 64K /dev/vda /dev/vdb /dev/vdc >/dev/null || fail create
# The kernel sends again what was lost with raidd after three times that.
raidctl tune vol0 member_timeout=1s || fail tune
raidctl attach vol0 /dev/nbd0 >/dev/null || fail attach
mkfs.ext4 -q -E nodiscard,lazy_itable_init=0 /dev/nbd0 || fail mkfs
mount /dev/nbd0 /mnt || fail mount

# Files that are on disk, by their word, with what is in them.
write_files() {
    number=0
    while [ ! -e /run/enough ]; do
        number=$((number + 1))
        file=/mnt/$((number % 40))
        head -c $((number % 7 * 30000 + 5000)) /dev/urandom >/run/new
        dd if=/run/new of=$file.new bs=64k conv=fsync 2>/dev/null && mv $file.new $file || { echo "write failed"; break; }
        sum=$(sha256sum </run/new)
        echo "${sum%% *}  $file" >>/run/sums
        echo $number >/run/written
    done
}
echo 0 >/run/written
write_files >/run/writer 2>&1 &
writer=$!

# progress MORE: waits for so many more files.
progress() {
    target=$(($(cat /run/written) + $1))
    tries=0
    until [ "$(cat /run/written)" -ge $target ]; do
        tries=$((tries + 1))
        [ $tries -lt 400 ] || fail "the writer is stuck at $(cat /run/written)"
        [ ! -s /run/writer ] || fail "the writer: $(cat /run/writer)"
        sleep 0.1
    done
}

progress 3
round=0
while [ $round -lt "$1" ]; do
    round=$((round + 1))
    case $((round % 5)) in
        0) kill -TERM $raidd; wait $raidd ;;
        1)  # It only sleeps, for longer than the kernel has patience: that takes its sockets away, and sends again.
            kill -STOP $raidd
            sleep 5
            kill -CONT $raidd
            progress 3 ;;
    esac
    kill -KILL $raidd 2>/dev/null
    wait $raidd 2>/dev/null
    raidd_start
    [ "$(raidctl status vol0 | grep -o '/dev/nbd0')" = /dev/nbd0 ] || fail "not attached again"
    progress 3
done

touch /run/enough
wait $writer
umount /mnt || fail umount
mount /dev/nbd0 /mnt || fail "mount again"
# The last word on each file counts.
awk '{ last[$2] = $0 } END { for (file in last) print last[file] }' /run/sums >/run/last
sha256sum -s -c /run/last || fail "content"
umount /mnt
e2fsck -fn /dev/nbd0 >/dev/null 2>&1 || fail e2fsck
raidctl wait vol0
raidctl scrub vol0 && raidctl wait vol0 || fail scrub
echo "mismatches: $(raidctl --json status vol0 | grep -o '"mismatches":[0-9]*')"
echo "timeouts: $(dmesg | grep -c 'nbd0.*timed out')"
echo "rounds: $round"
echo "files: $(cat /run/written) written, $(wc -l </run/last) compared"
io_errors
echo "io errors: $(io_errors | wc -l)"
raidctl detach vol0 || fail detach
raidd_stop
