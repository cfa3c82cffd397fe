//! Structured replies, extended headers, meta contexts: what a client gets that has asked for more.

use std::time::Duration;

use raidd::io::{Clock, ExtentKind, IoErrorKind};
use raidd::nbd::SessionEnd;

use crate::disk::{Call, Disk, initial};
use crate::peer::*;
use crate::world::World;

const SIZE: usize = 8 << 20;
const ALL: &[&[u8]] = &[b"base:allocation", b"raidd:health", b"raidd:dirty"];
const ALLOCATION: [(u64, u32); 3] = [(1 << 20, 0), (1 << 20, 3), (6 << 20, 0)];
const HEALTH: [(u64, u32); 3] = [(3 << 20, 0), (4096, 1), ((5 << 20) - 4096, 5)];

fn with_server(test: impl AsyncFn(&Server) + Copy + 'static) {
    for piece in [1, 1000, usize::MAX] {
        let world = World::new(11);
        let server = Server { piece, ..Server::of(&world, Disk::new(&world, SIZE)) };
        server.disk.set_extents(ExtentKind::Allocation, &ALLOCATION);
        server.disk.set_extents(ExtentKind::Health, &HEALTH);
        let same = server.clone();
        world.run(async move { test(&same).await });
        world.settle();
        server.assert_idle();
    }
}

async fn greeted(server: &Server, option: u32) -> Peer {
    let peer = server.connect();
    peer.greet(3).await;
    assert_eq!(peer.option(option, &[]).await, [(ACK, vec![])]);
    peer
}

/// In the transmission phase with these contexts, whose ids are 1, 2, 3.
async fn entered(server: &Server, option: u32, contexts: &[&[u8]]) -> Peer {
    let peer = greeted(server, option).await;
    let chosen = peer.option(SET_META_CONTEXT, &meta_data(b"vol0", contexts)).await;
    assert_eq!(chosen.len(), contexts.len() + 1);
    for (reply, name) in chosen.iter().zip(contexts) {
        let id = 1 + ALL.iter().position(|known| known == name).unwrap() as u8;
        assert_eq!(*reply, (REP_META_CONTEXT, [&[0, 0, 0, id], *name].concat()));
    }
    assert_eq!(peer.option(GO, &info_data(b"", &[])).await.last().unwrap().0, ACK);
    peer
}

async fn send_extended(peer: &Peer, command: u16, flags: u16, offset: u64, length: u64, payload: &[u8]) {
    peer.send(&[&extended_bytes(command, flags, 9, offset, length), payload].concat()).await;
}

fn wide(extents: &[(u64, u32)]) -> Vec<(u64, u64)> {
    extents.iter().map(|&(len, state)| (len, state.into())).collect()
}

#[test]
fn the_choice_of_a_framing() {
    with_server(async |server| {
        let peer = server.connect();
        peer.greet(3).await;
        for option in [STRUCTURED_REPLY, EXTENDED_HEADERS] {
            assert_eq!(peer.option(option, b"x").await[0].0, ERR_INVALID);
        }
        assert_eq!(peer.option(SET_META_CONTEXT, &meta_data(b"vol0", ALL)).await[0].0, ERR_INVALID);
        for option in [STRUCTURED_REPLY, STRUCTURED_REPLY, EXTENDED_HEADERS, EXTENDED_HEADERS] {
            assert_eq!(peer.option(option, b"").await, [(ACK, vec![])]);
        }
        assert_eq!(peer.option(STRUCTURED_REPLY, b"").await[0].0, ERR_EXT_HEADER_REQD);
        peer.send(&option_bytes(EXPORT_NAME, b"vol0")).await;
        peer.expect_close().await;
        assert!(matches!(peer.end(), Some(SessionEnd::Refused(_))));
    });
}

#[test]
fn contexts_are_listed_and_chosen() {
    with_server(async |server| {
        let peer = greeted(server, STRUCTURED_REPLY).await;
        let names = async |option: u32, name: &[u8], queries: &[&[u8]]| {
            let mut replies = peer.option(option, &meta_data(name, queries)).await;
            assert_eq!(replies.pop(), Some((ACK, vec![])));
            let name = |(kind, data): (u32, Vec<u8>)| {
                assert_eq!(kind, REP_META_CONTEXT);
                String::from_utf8(data[4..].to_vec()).unwrap()
            };
            replies.into_iter().map(name).collect::<Vec<_>>()
        };
        let all = ["base:allocation", "raidd:health", "raidd:dirty"];
        assert_eq!(names(LIST_META_CONTEXT, b"", &[]).await, all);
        assert_eq!(names(LIST_META_CONTEXT, b"vol0", &[b"raidd:", b"base:"]).await, all);
        assert_eq!(names(LIST_META_CONTEXT, b"vol0", &[b"raidd:dirty", b"x:y", b""]).await, all[2..]);
        assert!(names(SET_META_CONTEXT, b"vol0", &[]).await.is_empty());
        assert!(names(SET_META_CONTEXT, b"vol0", &[b"base:", b"qemu:dirty-bitmap:x"]).await.is_empty());
        let twice: &[&[u8]] = &[b"base:allocation", b"base:allocation"];
        assert_eq!(names(SET_META_CONTEXT, b"vol0", twice).await, all[..1]);
        for option in [LIST_META_CONTEXT, SET_META_CONTEXT] {
            assert_eq!(peer.option(option, &meta_data(b"other", ALL)).await[0].0, ERR_UNKNOWN);
            assert_eq!(peer.option(option, b"\0\0\0\x04vol0\0\0\0\x01").await[0].0, ERR_INVALID);
            assert_eq!(peer.option(option, &vec![0; 20_000]).await[0].0, ERR_TOO_BIG);
        }
        // The choice that failed last has undone the one before.
        assert_eq!(peer.option(GO, &info_data(b"vol0", &[])).await.last().unwrap().0, ACK);
        peer.send(&request_bytes(STATUS, 0, 1, 0, 4096)).await;
        assert_eq!(peer.chunk().await.error().0, EINVAL);
    });
}

#[test]
fn structured_reads_and_errors() {
    with_server(async |server| {
        let mut peer = entered(server, STRUCTURED_REPLY, &[]).await;
        for flags in [0, DF, DF | FUA] {
            let cookie = peer.request(READ, flags, 1000, 300_000, &[]).await;
            let chunk = peer.chunk().await;
            assert_eq!(
                (chunk.done, chunk.kind, chunk.cookie, chunk.offset),
                (true, CHUNK_DATA, cookie, None)
            );
            assert_eq!(chunk.payload[..8], 1000_u64.to_be_bytes());
            let expected: Vec<u8> = (1000..301_000).map(initial).collect();
            assert!(chunk.payload[8..] == expected);
        }
        for (command, flags, offset, len) in [(READ, 0, 5, 0), (CACHE, 0, 0, 4096), (0x3, 0, 0, 0)] {
            let cookie = peer.request(command, flags, offset, len, &[]).await;
            let none = Chunk { done: true, kind: CHUNK_NONE, cookie, offset: None, payload: vec![] };
            assert_eq!(peer.chunk().await, none);
        }
        for (command, flags, offset, error) in [
            (READ, 0, SIZE as u64, EINVAL),
            (READ, REQ_ONE, 0, EINVAL),
            (CACHE, 0, SIZE as u64, EINVAL),
            (STATUS, 0, 0, EINVAL),
            (ZEROES, DF, 0, EINVAL),
            (ZEROES, 0, SIZE as u64, ENOSPC),
        ] {
            peer.request(command, flags, offset, 4096, &[]).await;
            let (found, text) = peer.chunk().await.error();
            assert_eq!(found, error, "{command} {flags}");
            assert!(!text.is_empty());
        }
        server.disk.fail_with(Some(IoErrorKind::Media));
        peer.request(READ, 0, 0, 4096, &[]).await;
        assert_eq!(peer.chunk().await.error(), (EIO, "as the test wished".to_owned()));
    });
}

#[test]
fn block_status_tells_what_the_device_says() {
    with_server(async |server| {
        let mut peer = entered(server, STRUCTURED_REPLY, ALL).await;
        server.disk.calls();
        let cookie = peer.request(STATUS, 0, 0, SIZE as u32, &[]).await;
        let chunks = [peer.chunk().await, peer.chunk().await, peer.chunk().await];
        assert!(chunks.iter().all(|chunk| chunk.cookie == cookie && chunk.kind == CHUNK_STATUS));
        assert_eq!(chunks.each_ref().map(|chunk| chunk.done), [false, false, true]);
        assert_eq!(chunks[0].status(), (1, wide(&ALLOCATION)));
        assert_eq!(chunks[1].status(), (2, wide(&HEALTH)));
        assert_eq!(chunks[2].status(), (3, vec![(SIZE as u64, 0)]));
        let asked = server.disk.calls();
        assert!(
            asked.iter().all(|call| matches!(call, Call::Extents(_, 0, len, 500) if *len == SIZE as u64))
        );

        peer.request(STATUS, REQ_ONE, (1 << 20) - 512, 4096, &[]).await;
        let first = [peer.chunk().await, peer.chunk().await, peer.chunk().await];
        assert_eq!(first[0].status().1, [(512, 0)]);
        assert_eq!(first[1].status().1, [(4096, 0)]);
        for (offset, len) in [(0, 0), (SIZE as u64, 1), (SIZE as u64 - 1, 2)] {
            peer.request(STATUS, 0, offset, len, &[]).await;
            assert_eq!(peer.chunk().await.error().0, EINVAL);
        }
    });
}

#[test]
fn extended_headers_carry_64_bit_lengths() {
    with_server(async |server| {
        let peer = entered(server, EXTENDED_HEADERS, &[b"base:allocation", b"raidd:health"]).await;
        send_extended(&peer, WRITE, PAYLOAD_LEN, 700, 5, b"hello").await;
        let none = Chunk { done: true, kind: CHUNK_NONE, cookie: 9, offset: Some(700), payload: vec![] };
        assert_eq!(peer.chunk().await, none);
        send_extended(&peer, READ, 0, 699, 7, b"").await;
        let chunk = peer.chunk().await;
        assert_eq!((chunk.done, chunk.kind, chunk.offset), (true, CHUNK_DATA, Some(699)));
        let expected = [&699_u64.to_be_bytes()[..], &[initial(699)], b"hello", &[initial(705)]].concat();
        assert_eq!(chunk.payload, expected);

        send_extended(&peer, STATUS, 0, 0, SIZE as u64, b"").await;
        let chunks = [peer.chunk().await, peer.chunk().await];
        assert!(chunks.iter().all(|chunk| chunk.kind == CHUNK_STATUS_EXT && chunk.offset == Some(0)));
        assert_eq!(chunks[0].status(), (1, wide(&ALLOCATION)));
        assert_eq!(chunks[1].status(), (2, wide(&HEALTH)));
        let ask = |ids: &[u32]| {
            let mut payload = (SIZE as u64).to_be_bytes().to_vec();
            payload.extend(ids.iter().flat_map(|id| id.to_be_bytes()));
            payload
        };
        send_extended(&peer, STATUS, PAYLOAD_LEN, 0, 12, &ask(&[2])).await;
        let chunk = peer.chunk().await;
        assert_eq!((chunk.done, chunk.status()), (true, (2, wide(&HEALTH))));
        for wrong in [ask(&[3]), ask(&[2, 2]), ask(&[]), vec![0; 9], vec![0; 1000]] {
            send_extended(&peer, STATUS, PAYLOAD_LEN, 0, wrong.len() as u64, &wrong).await;
            assert_eq!(peer.chunk().await.error().0, EINVAL);
        }

        // With PAYLOAD_LEN something follows a header, whatever the command. QEMU forgets it with WRITE.
        send_extended(&peer, WRITE, 0, 512, 5, b"qemu!").await;
        assert_eq!(peer.chunk().await.kind, CHUNK_NONE);
        assert_eq!(server.disk.content()[512..517], *b"qemu!");
        for command in [READ, FLUSH, CACHE, ZEROES, 100] {
            send_extended(&peer, command, PAYLOAD_LEN, 0, 512, &[0xaa; 512]).await;
            assert_eq!(peer.chunk().await.error().0, EINVAL, "{command}");
        }
        for length in [1 << 40, u64::MAX] {
            send_extended(&peer, READ, 0, 512, length, b"").await;
            assert_eq!(peer.chunk().await.error().0, EINVAL);
            send_extended(&peer, ZEROES, 0, 512, length, b"").await;
            assert_eq!(peer.chunk().await.error().0, ENOSPC);
        }
        // Half of a pool of 16 MiB is advertised.
        send_extended(&peer, WRITE, PAYLOAD_LEN, 0, (8 << 20) + 1, b"").await;
        peer.expect_close().await;
    });
}

#[test]
fn a_compact_request_among_extended_ones_ends_the_connection() {
    with_server(async |server| {
        let peer = entered(server, EXTENDED_HEADERS, &[]).await;
        peer.send(&[request_bytes(READ, 0, 1, 0, 512), vec![0; 4]].concat()).await;
        peer.expect_close().await;
        assert!(matches!(peer.end(), Some(SessionEnd::Refused(_))));
    });
}

#[test]
fn fast_zeroes_are_fast_or_not_done() {
    with_server(async |server| {
        let mut peer = server.enter(false).await;
        server.disk.calls();
        assert_eq!(peer.ask(ZEROES, FAST_ZERO, 0, 4096, &[]).await, 0);
        assert!(matches!(server.disk.calls()[..], [Call::Zeroes(0, 4096, ..)]));
        assert_eq!(peer.ask(ZEROES, FAST_ZERO | NO_HOLE | FUA, 100, 4096, &[]).await, ENOTSUP);
        server.disk.zero_by_writing();
        assert_eq!(peer.ask(ZEROES, FAST_ZERO, 0, 4096, &[]).await, ENOTSUP);
        assert_eq!(server.disk.calls(), []);
        assert_eq!(peer.ask(ZEROES, 0, 0, 4096, &[]).await, 0);
    });
}

#[test]
fn a_payload_that_was_not_announced_comes_soon_or_not_at_all() {
    with_server(async |server| {
        let peer = entered(server, EXTENDED_HEADERS, &[]).await;
        let before = server.world.now();
        send_extended(&peer, WRITE, 0, 0, 512, b"").await;
        peer.expect_close().await;
        assert_eq!(server.world.now() - before, server.limits.unannounced_payload_timeout);
        server.world.sleep(Duration::from_millis(1)).await;
        assert_eq!(peer.end(), Some(SessionEnd::Stalled));
    });
}
