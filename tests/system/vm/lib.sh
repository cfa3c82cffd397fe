# Functions for guest scripts:  . /lib/vm.sh
# A script runs in a guest of its own, as root, with nothing but busybox and what `prepare` put there.

fail() {            # fail WHY...: says so, with what the kernel knows, and ends the script
    echo "failed: $*"
    cat /proc/mdstat 2>/dev/null
    [ ! -e /run/raidd.log ] || tail -n 30 /run/raidd.log
    dmesg | grep -E 'md[:/0-9]|raid|nbd|EXT4|XFS|I/O' | tail -n 20
    exit 1
}

scsi_disk() {       # scsi_disk NUMBER: its name; they are given as the kernel comes by, in whatever order
    ls "/sys/bus/scsi/devices/0:0:$1:0/block"
}

with_md() {         # loads the md driver
    modprobe raid0 && modprobe raid1 && modprobe raid10 && modprobe crc32c_generic && modprobe raid456 || fail "no md driver"
}

md_settle() {       # md_settle MD...: waits until the kernel's arrays do nothing of their own
    quiet=0
    while [ $quiet -lt 2 ]; do
        quiet=$((quiet + 1))
        for md; do
            action=/sys/block/$md/md/sync_action
            if [ -e "$action" ] && [ "$(cat "$action")" != idle ]; then quiet=0; fi
        done
        sleep 0.1
    done
}

md_mismatches() {   # md_mismatches MD: compares all redundancy; prints how many sectors disagree
    if [ -e "/sys/block/$1/md/sync_action" ]; then
        echo check >"/sys/block/$1/md/sync_action"
        md_settle "$1"
        cat "/sys/block/$1/md/mismatch_cnt"
    else
        echo 0
    fi
}

content() {         # content DEVICE: sha256 of all of it, from the disks and not from caches
    echo 3 >/proc/sys/vm/drop_caches
    sha256sum "$1" | cut -d' ' -f1
}

raidd_start() {     # raidd_start [OPTION...]: starts raidd, waits until it serves; $raidd is its process
    mkdir -p /run/raidd /var/lib/raidd
    raidd --memory 64M --reactors "$(nproc)" "$@" >>/run/raidd.log 2>&1 &
    raidd=$!
    tries=0
    until raidctl list >/dev/null 2>&1; do
        tries=$((tries + 1))
        [ $tries -lt 300 ] || fail "raidd does not serve"
        kill -0 $raidd 2>/dev/null || fail "raidd has ended"
        sleep 0.1
    done
}

raidd_stop() {      # ends it in good order
    kill -TERM $raidd
    wait $raidd || fail "raidd ended with $?"
}

io_errors() {       # what the kernel's log says about I/O that failed
    dmesg | grep -E 'I/O error|Buffer I/O|EXT4-fs (error|warning)|XFS.*(error|shutdown|corrupt)|Aborting journal|lost (async|sync) page write'
}

crash() {           # the machine dies at once, as if the plug were pulled
    echo "@@CRASH@@"
    sleep 0.1       # until the UART has drained
    echo b >/proc/sysrq-trigger
    sleep 60
}
