# The kernel takes arrays over: mdadm assembles them, they do what they have to, their redundancy is compared, and their
# content is copied to a disk for the host to look at.
#
#   OUT                             the disk for content
#   NAME PLACE MIB DISK... [+DISK]  an array each: where how much of its content goes, in MiB, its members, and a disk
#                                   that is added to it
#
# Disks are numbers, as for scsi_disk.
. /lib/vm.sh
with_md
export MDADM_NO_UDEV=1
out=$(scsi_disk "$1")
shift

# At most so many at once: each has a stripe cache.
at_once=16

each() {            # each DO: "DO MD NAME PLACE MIB DISK..." for every array of the batch
    for md in $(ls /run/batch); do
        "$1" "$md" $(cat "/run/batch/$md")
    done
}

named() {           # named NAME PLACE MIB NUMBER...: the same with the names of the disks
    echo "$1 $2 $3"
    shift 3
    for number; do
        case $number in +*) echo "+$(scsi_disk "${number#+}")" ;; *) scsi_disk "$number" ;; esac
    done
}

sectors_moved() {   # sectors_moved WHEN NAME DISK...: read/written of each disk, since the guest was started
    echo "$2 $1:$(shift 2; for disk; do awk '{ printf " %d/%d", $3, $7 }' "/sys/block/${disk#+}/stat"; done)"
}

assemble() {
    md=$1 name=$2
    shift 4
    sectors_moved before "$name" "$@"
    members=
    for disk; do
        case $disk in +*) ;; *) members="$members /dev/$disk" ;; esac
    done
    # Where a member was lost with the power, that is meant.
    mdadm --assemble --run "/dev/$md" $members 2>&1 || fail "$name: mdadm --assemble"
}

work() {            # to the end of what it begins by itself
    md=$1 name=$2
    shift 4
    # A resync counts what it has mended.
    [ ! -e "/sys/block/$md/md/mismatch_cnt" ] || echo "$name mended: $(cat "/sys/block/$md/md/mismatch_cnt")"
    echo "$name bad blocks:" $(cat /sys/block/$md/md/rd*/bad_blocks)
    sectors_moved after "$name" "$@"
    echo "$name found:$(mdadm --detail "/dev/$md" | sed -n 's/^ *State ://p')"
}

complete() {
    md=$1 name=$2
    shift 4
    for disk; do
        case $disk in +*) mdadm "/dev/$md" --add "/dev/${disk#+}" 2>&1 || fail "$name: mdadm --add" ;; esac
    done
}

compare() {
    # RAID 0 has nothing to compare.
    [ ! -e "/sys/block/$1/md/sync_action" ] || echo check >"/sys/block/$1/md/sync_action"
}

copy() {
    md=$1 name=$2 place=$3 mib=$4
    [ ! -e "/sys/block/$md/md/mismatch_cnt" ] || echo "$name mismatches: $(cat "/sys/block/$md/md/mismatch_cnt")"
    dd if="/dev/$md" of="/dev/$out" bs=1M iflag=direct oflag=direct seek="$place" count="$mib" 2>/run/dd || fail "$name: $(cat /run/dd)"
}

leave() {
    md=$1 name=$2
    shift 4
    mdadm --detail "/dev/$md" >/run/detail || fail "$name: mdadm --detail"
    sed -n "s/^ *\([A-Z][A-Za-z ]*\) : /$name \1: /p" /run/detail
    mdadm --stop "/dev/$md" 2>&1 || fail "$name: mdadm --stop"
    disks=
    for disk; do disks="$disks /dev/${disk#+}"; done
    mdadm --examine $disks >/run/examine 2>&1 || fail "$name: mdadm --examine"
    [ "$(grep -c 'Checksum : .* correct' /run/examine)" = $# ] || fail "$name: $(cat /run/examine)"
}

while [ $# -gt 0 ]; do
    rm -rf /run/batch
    mkdir /run/batch
    count=0
    while [ $# -gt 0 ] && [ $count -lt $at_once ]; do
        named $1 >/run/batch/md$count
        count=$((count + 1))
        shift
    done
    for do in assemble work complete compare copy leave; do
        case $do in work | compare | copy) md_settle $(ls /run/batch) ;; esac
        each $do
    done
done
