# The kernel makes arrays, fills them, and leaves each in some state; at last the plug is pulled.
#
#   SOURCE                                    the disk that they are filled from
#   NAME STATE MEMBERS OPTION... -- DISK...   an array each: mdadm's options, its members and a spare
#
# Disks are numbers, as for scsi_disk. Where half of something is done, that is up to sector $half.
. /lib/vm.sh
with_md
export MDADM_NO_UDEV=1
half=16384
source=/dev/$(scsi_disk "$1")
shift

rewrite() {         # rewrite MD: blocks of 64 KiB that were filled with others; the host does the same
    for at in 3 40 77 130; do
        dd if="$source" of="/dev/$1" bs=64k skip=$((at + 200)) seek=$at count=5 oflag=direct 2>/run/dd ||
            fail "$1: $(cat /run/dd)"
    done
}

stop_half_way() {   # stop_half_way MD: once it has come to the middle
    tries=0
    until grep -q "^$half " "/sys/block/$1/md/sync_completed"; do
        tries=$((tries + 1))
        [ $tries -lt 300 ] || fail "$1 is not half done: $(cat "/sys/block/$1/md/sync_completed")"
        sleep 0.05
    done
    rewrite "$1"
    mdadm --stop "/dev/$1" 2>&1 || fail "$1: mdadm --stop"
}

make() {            # make MD NAME STATE MEMBERS OPTION... -- DISK...
    md=$1 name=$2 state=$3 count=$4
    shift 4
    options=
    while [ "$1" != -- ]; do options="$options $1"; shift; done
    shift
    members=
    spare=
    for index; do
        disk=$(scsi_disk "$index")
        if [ $count -gt 0 ]; then members="$members /dev/$disk"; else spare=/dev/$disk; fi
        [ "$index" != "$2" ] || second=$disk
        count=$((count - 1))
    done
    dir=/sys/block/$md/md
    mdadm --create "/dev/$md" --run --metadata 1.2 --name "$name" $options --raid-devices $(echo $members | wc -w) $members 2>&1 ||
        fail "$name: mdadm --create"
    md_settle "$md"
    dd if="$source" of="/dev/$md" bs=1M count="$(($(cat "/sys/block/$md/size") / 2048))" oflag=direct 2>/run/dd || fail "$name: $(cat /run/dd)"
    case $state in
    clean) ;;
    degraded)
        mdadm "/dev/$md" --fail "/dev/$second" --remove "/dev/$second" 2>&1 || fail "$name: --fail"
        rewrite "$md"
        ;;
    recovered)
        mdadm "/dev/$md" --add "$spare" --fail "/dev/$second" 2>&1 || fail "$name: --add"
        rewrite "$md"
        md_settle "$md"
        ;;
    re-added)
        mdadm "/dev/$md" --fail "/dev/$second" --remove "/dev/$second" 2>&1 || fail "$name: --fail"
        rewrite "$md"
        mdadm "/dev/$md" --re-add "/dev/$second" 2>&1 || fail "$name: --re-add"
        md_settle "$md"
        ;;
    bad) echo "8192 8" >"$dir/dev-$second/bad_blocks" && rewrite "$md" ;;
    recovery)
        mdadm "/dev/$md" --fail "/dev/$second" --remove "/dev/$second" 2>&1 || fail "$name: --fail"
        echo $half >"$dir/sync_max"
        mdadm "/dev/$md" --add "$spare" 2>&1 || fail "$name: --add"
        stop_half_way "$md"
        return
        ;;
    replacement)
        echo $half >"$dir/sync_max"
        mdadm "/dev/$md" --add "$spare" 2>&1 || fail "$name: --add"
        echo want_replacement >"$dir/dev-$second/state"
        stop_half_way "$md"
        return
        ;;
    resync)
        mdadm --stop "/dev/$md" 2>&1 || fail "$name: mdadm --stop"
        mdadm --assemble --readonly --update=resync "/dev/$md" $members 2>&1 || fail "$name: --update=resync"
        echo $half >"$dir/sync_max"
        mdadm --readwrite "/dev/$md" || fail "$name: --readwrite"
        stop_half_way "$md"
        return
        ;;
    crashed)
        crashed="$crashed $md:$name"
        return
        ;;
    esac
    md_settle "$md"
    mdadm --stop "/dev/$md" 2>&1 || fail "$name: mdadm --stop"
}

write_on() {        # writes block after block, and says so of each when it is written
    at=0
    while [ $at -lt 160 ]; do
        dd if="$source" of="/dev/$1" bs=64k skip=$((at + 200)) seek=$at count=1 oflag=direct 2>/run/dd || fail "$2: $(cat /run/dd)"
        echo "$2 wrote: $at"
        : >"/run/$1.wrote"
        at=$((at + 1))
    done
}

crashed=
number=0
for array; do
    make md$number $array
    number=$((number + 1))
done
for array in $crashed; do write_on "${array%%:*}" "${array#*:}" & done
for array in $crashed; do
    until [ -e "/run/${array%%:*}.wrote" ]; do sleep 0.01; done
done
crash
