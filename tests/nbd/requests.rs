//! Requests one at a time: data, edges, every error, and what the device is asked for.

use raidd::io::{Fua, IoErrorKind, Zeroing};

use crate::disk::{Call, Disk, initial};
use crate::peer::*;
use crate::world::World;

const SIZE: usize = 40 << 20;
const END: u64 = SIZE as u64;

fn with_disk(disk: impl Fn(&World) -> Disk, test: impl AsyncFn(&Server) + 'static) {
    let world = World::new(3);
    let server = Server::of(&world, disk(&world));
    let same = server.clone();
    world.run(async move { test(&same).await });
    world.settle();
    server.assert_idle();
}

fn with_server(test: impl AsyncFn(&Server) + 'static) {
    with_disk(|world| Disk::new(world, SIZE), test);
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|index| (index * 31 + index / 1021 + 1) as u8).collect()
}

#[test]
fn what_is_written_is_read_at_any_alignment() {
    with_server(async |server| {
        let mut peer = server.enter(false).await;
        let mut oracle: Vec<u8> = (0..SIZE).map(initial).collect();
        let places = [
            (0, 4096),
            (1, 1),
            (511, 2),
            (4095, 2),
            (4103, 1001),
            (13, 8192),
            ((1 << 20) - 1, 2),
            ((1 << 20) - 700, (3 << 20) + 900),
            (5 << 20, 8 << 20),
            ((5 << 20) + 1, (8 << 20) - 1),
            (SIZE - 1, 1),
            (SIZE - 4096, 4096),
        ];
        for (offset, len) in places {
            let data = pattern(len);
            assert_eq!(peer.write(0, offset as u64, &data).await, 0);
            oracle[offset..offset + len].copy_from_slice(&data);
            assert!(peer.read(0, offset as u64, len as u32).await.unwrap() == data, "{offset}+{len}");
        }
        assert!(server.disk.content() == oracle);
        for start in (0..SIZE).step_by(8 << 20) {
            let data = peer.read(0, start as u64, 8 << 20).await.unwrap();
            assert!(data == oracle[start..start + (8 << 20)]);
        }
    });
}

#[test]
fn the_device_is_asked_in_its_own_terms() {
    with_server(async |server| {
        let mut peer = server.enter(false).await;
        let mib = 1 << 20;
        assert_eq!(peer.read(FUA, 513, 3).await.unwrap().len(), 3);
        assert_eq!(server.disk.calls(), [Call::Read(512, 512)]);
        assert_eq!(peer.read(0, mib - 100, (2 << 20) + 200).await.unwrap().len(), (2 << 20) + 200);
        let mut calls = server.disk.calls();
        calls.sort_by_key(|call| format!("{call:?}").len());
        let expected = [
            Call::Read(mib - 512, 512),
            Call::Read(3 * mib, 512),
            Call::Read(mib, 1 << 20),
            Call::Read(2 * mib, 1 << 20),
        ];
        assert!(calls.len() == 4 && expected.iter().all(|call| calls.contains(call)), "{calls:?}");

        assert_eq!(peer.write(0, 3, &pattern(5)).await, 0);
        assert_eq!(peer.write(FUA, mib - 1, &pattern((1 << 20) + 2)).await, 0);
        assert_eq!(peer.ask(FLUSH, FUA, 0, 0, &[]).await, 0);
        assert_eq!(peer.ask(FLUSH, 0, 4096, 4096, &[]).await, 0);
        assert_eq!(peer.ask(TRIM, 0, 5, 4100, &[]).await, 0);
        assert_eq!(peer.ask(TRIM, FUA, 0, SIZE as u32, &[]).await, 0);
        assert_eq!(peer.ask(ZEROES, 0, 1, 2, &[]).await, 0);
        assert_eq!(peer.ask(ZEROES, FUA | NO_HOLE, 0, SIZE as u32, &[]).await, 0);
        let expected = [
            Call::Write(3, 5, 1, Fua::No),
            Call::Write(mib - 1, (1 << 20) + 2, 3, Fua::Yes),
            Call::Flush,
            Call::Flush,
            Call::Discard(5, 4100),
            Call::Discard(0, END),
            Call::Flush,
            Call::Zeroes(1, 2, Zeroing::Unmap, Fua::No),
            Call::Zeroes(0, END, Zeroing::Allocate, Fua::Yes),
        ];
        assert_eq!(server.disk.calls(), expected);
    });
}

#[test]
fn zeroes_are_written_where_the_device_cannot_make_them() {
    with_server(async |server| {
        server.disk.zero_by_writing();
        let mut peer = server.enter(false).await;
        let (offset, len) = ((1 << 20) - 3, (9 << 20) + 5);
        assert_eq!(peer.ask(ZEROES, FUA, offset as u64, len as u32, &[]).await, 0);
        let content = server.disk.content();
        assert!(content[offset..offset + len].iter().all(|&byte| byte == 0));
        assert_eq!(
            (content[offset - 1], content[offset + len]),
            (initial(offset - 1), initial(offset + len))
        );
        let calls = server.disk.calls();
        let (flush, writes) = calls.split_last().unwrap();
        assert_eq!(*flush, Call::Flush);
        assert!(writes.iter().all(|call| matches!(call, Call::Write(_, 0..=0x40_0000, 1..=4, Fua::No))));
    });
}

#[test]
fn the_table_of_errors() {
    with_server(async |server| {
        let mut peer = server.enter(true).await;
        let beyond =
            [(END, 512), (END - 1, 2), (END + (1 << 30), 1), (1 << 63, 4096), (u64::MAX - 4095, 8192)];
        for (offset, len) in beyond {
            assert_eq!(peer.read(0, offset, len).await, Err(EINVAL));
            assert_eq!(peer.ask(TRIM, 0, offset, len, &[]).await, EINVAL);
            assert_eq!(peer.write(0, offset, &vec![1; len as usize]).await, ENOSPC);
            assert_eq!(peer.ask(ZEROES, 0, offset, len, &[]).await, ENOSPC);
        }
        for command in [STATUS, 8, 9, 100, 0x7fff, 0xffff] {
            assert_eq!(peer.ask(command, 0, 0, 0, &[]).await, EINVAL, "command {command}");
        }
        for flag in (1..16).map(|bit| 1 << bit) {
            assert_eq!(peer.read(flag, 0, 16).await, Err(EINVAL));
            assert_eq!(peer.write(flag, 0, &[1; 700]).await, EINVAL);
            for command in [FLUSH, TRIM, CACHE, ZEROES, STATUS] {
                if command != ZEROES || ![NO_HOLE, FAST_ZERO].contains(&flag) {
                    assert_eq!(peer.ask(command, flag, 0, 0, &[]).await, EINVAL, "{command} {flag:#x}");
                }
            }
        }
        // One more than was advertised; a WRITE's payload is drained.
        let too_long = (8 << 20) + 1;
        assert_eq!(peer.read(0, 0, too_long).await, Err(EINVAL));
        assert_eq!(peer.read(0, 0, u32::MAX).await, Err(EINVAL));
        assert_eq!(peer.write(0, 0, &vec![1; too_long as usize]).await, EINVAL);
        for command in [READ, WRITE, TRIM, ZEROES] {
            for offset in [0, 1, END] {
                assert_eq!(peer.ask(command, FUA, offset, 0, &[]).await, 0, "nothing at {offset}");
            }
        }
        assert_eq!(server.disk.calls(), []);
        assert_eq!(peer.read(0, 0, 1).await.unwrap(), [initial(0)]);
    });
}

#[test]
fn a_write_too_long_to_drain_ends_the_connection() {
    with_server(async |server| {
        for len in [(64 << 20) + 1, u32::MAX] {
            let mut peer = server.enter(false).await;
            peer.request(WRITE, 0, 0, len, &[1; 4096]).await;
            peer.expect_close().await;
        }
    });
}

#[test]
fn read_only_and_coarse_devices() {
    with_disk(
        |world| Disk::with_info(world, 1 << 20, |info| info.read_only = true),
        async |server| {
            let mut peer = server.enter(false).await;
            assert_eq!(peer.write(0, 0, &[1; 4096]).await, EPERM);
            assert_eq!(peer.ask(TRIM, 0, 0, 4096, &[]).await, EPERM);
            assert_eq!(peer.ask(ZEROES, 0, 0, 4096, &[]).await, EPERM);
            assert_eq!(peer.ask(FLUSH, 0, 0, 0, &[]).await, 0);
            assert_eq!(peer.read(0, 0, 1).await.unwrap(), [initial(0)]);
        },
    );
    with_disk(
        |world| Disk::with_info(world, 1 << 20, |info| info.write_block_bytes = 512),
        async |server| {
            let mut peer = server.enter(false).await;
            for (offset, len) in [(1, 512), (0, 511), (256, 1)] {
                assert_eq!(peer.read(0, offset, len).await, Err(EINVAL));
                assert_eq!(peer.write(0, offset, &vec![1; len as usize]).await, EINVAL);
            }
            assert_eq!(peer.write(0, 512, &[1; 512]).await, 0);
        },
    );
}

#[test]
fn what_the_device_answers_reaches_the_client() {
    with_server(async |server| {
        let mut peer = server.enter(false).await;
        let table = [
            (IoErrorKind::Media, EIO),
            (IoErrorKind::Gone, EIO),
            (IoErrorKind::Timeout, EIO),
            (IoErrorKind::Closed, EIO),
            (IoErrorKind::Unsupported, EIO),
            (IoErrorKind::NoSpace, ENOSPC),
            (IoErrorKind::Invalid, EINVAL),
            (IoErrorKind::ReadOnly, EPERM),
            (IoErrorKind::ShuttingDown, ESHUTDOWN),
        ];
        for (kind, error) in table {
            server.disk.fail_with(Some(kind));
            assert_eq!(peer.read(0, 5, 3 << 20).await, Err(error), "{kind:?}");
            assert_eq!(peer.write(0, 0, &[1; 10]).await, error);
            assert_eq!(peer.ask(FLUSH, 0, 0, 0, &[]).await, error);
            let trimmed = if kind == IoErrorKind::Unsupported { 0 } else { error };
            assert_eq!(peer.ask(TRIM, 0, 0, 4096, &[]).await, trimmed);
            assert_eq!(peer.ask(ZEROES, 0, 0, 4096, &[]).await, error);
        }
        server.disk.fail_with(None);
        assert_eq!(peer.read(0, 0, 1).await.unwrap(), [initial(0)]);
    });
}

#[test]
fn a_refused_payload_is_drained_in_large_pieces() {
    with_server(async |server| {
        let mut peer = server.enter(false).await;
        let before = peer.wire.taken();
        assert_eq!(peer.write(0, END, &vec![1; 8 << 20]).await, ENOSPC);
        let receives = peer.wire.taken() - before;
        assert!(receives < 1000, "{receives} receives for 8 MiB");
    });
}
