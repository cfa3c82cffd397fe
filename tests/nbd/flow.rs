//! Many requests at once: order, limits, cuts, stalls, and the end.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use raidd::io::{Clock, MAX_BUF_BYTES, Pool, Spawn};
use raidd::nbd::SessionEnd;

use crate::disk::{Call, Disk, initial};
use crate::peer::*;
use crate::world::World;

const SIZE: usize = 16 << 20;

pub fn with_server(change: impl Fn(&mut Server), test: impl AsyncFn(&Server) + 'static) {
    let world = World::new(11);
    let mut server = Server::of(&world, Disk::new(&world, SIZE));
    change(&mut server);
    let same = server.clone();
    world.run(async move { test(&same).await });
    // What a vanished client left behind is over in the end, too.
    let patient = world.clone();
    world.run(async move { patient.sleep(Duration::from_secs(300)).await });
    world.settle();
    server.assert_idle();
}

#[test]
fn answers_come_as_they_finish() {
    with_server(
        |_| (),
        async |server| {
            server.disk.delay(|call| match call {
                Call::Read(offset, _) => Duration::from_millis(100 - offset / 4096),
                _ => Duration::ZERO,
            });
            let mut peer = server.enter(false).await;
            for index in 0..50 {
                peer.request(READ, 0, index * 4096, 512, &[]).await;
            }
            for index in (0..50).rev() {
                assert_eq!(peer.reply().await, Some((index + 1, 0)));
                let data = peer.wire.read(512).await;
                assert_eq!(data[0], initial(index as usize * 4096));
            }
        },
    );
}

#[test]
fn requests_may_be_torn_anywhere() {
    let mut stream = Vec::new();
    stream.extend(request_bytes(WRITE, 0, 1, 700, 40));
    stream.extend([9; 40]);
    stream.extend(request_bytes(READ, 0, 2, 0, 3));
    stream.extend(request_bytes(WRITE, 0, 3, u64::MAX, 30)); // refused
    stream.extend([8; 30]);
    stream.extend(request_bytes(FLUSH, 0, 4, 0, 0));
    for piece in 1..stream.len() {
        let bytes = stream.clone();
        with_server(
            |server| server.piece = piece,
            async move |server| {
                let peer = server.enter(false).await;
                peer.send(&bytes).await;
                for _ in 0..4 {
                    let (cookie, error) = peer.reply().await.unwrap();
                    assert_eq!(error, if cookie == 3 { ENOSPC } else { 0 });
                    if cookie == 2 {
                        assert_eq!(peer.wire.read(3).await, [initial(0), initial(1), initial(2)]);
                    }
                }
                assert_eq!(server.disk.content()[699..741][1..41], [9; 40]);
            },
        );
    }
}

#[test]
fn a_write_cut_short_changes_nothing() {
    let len = 5000;
    for cut in [0, 1, 27, 28, 29, 1000, 28 + 4096, 28 + len - 1] {
        for piece in [usize::MAX, 999] {
            with_server(
                |server| server.piece = piece,
                async move |server| {
                    let peer = server.enter(false).await;
                    let mut bytes = request_bytes(WRITE, 0, 1, 100, len as u32);
                    bytes.resize(28 + len, 0x99);
                    peer.send(&bytes[..cut]).await;
                    peer.wire.close_write();
                    peer.expect_close().await;
                    assert_eq!(server.disk.calls(), []);
                },
            );
        }
    }
}

#[test]
fn a_half_closed_client_gets_its_replies() {
    with_server(
        |_| (),
        async |server| {
            server.disk.delay(|_| Duration::from_secs(3));
            let mut peer = server.enter(false).await;
            peer.request(READ, 0, 0, 10, &[]).await;
            peer.request(WRITE, 0, 0, 4, b"data").await;
            peer.wire.close_write();
            let mut left = 2;
            while let Some((cookie, error)) = peer.reply().await {
                assert_eq!(error, 0);
                peer.wire.read(if cookie == 1 { 10 } else { 0 }).await;
                left -= 1;
            }
            assert_eq!((left, peer.end()), (0, Some(SessionEnd::Closed)));
        },
    );
}

#[test]
fn disc_answers_what_is_in_flight_and_closes() {
    with_server(
        |_| (),
        async |server| {
            server.disk.delay(|_| Duration::from_secs(1));
            let mut peer = server.enter(false).await;
            for index in 0..32 {
                peer.request(WRITE, 0, index * 512, 512, &[index as u8; 512]).await;
            }
            peer.request(DISC, 0, 0, 0, &[]).await;
            for _ in 0..32 {
                assert_eq!(peer.reply().await.unwrap().1, 0);
            }
            peer.expect_close().await;
            assert_eq!(peer.end(), Some(SessionEnd::Disconnected));
            assert_eq!(server.disk.content()[31 * 512], 31);
        },
    );
}

#[test]
fn a_wrong_magic_ends_it_after_the_replies() {
    with_server(
        |_| (),
        async |server| {
            let mut peer = server.enter(false).await;
            peer.request(FLUSH, 0, 0, 0, &[]).await;
            peer.send(&[0x67; 28]).await;
            assert_eq!(peer.reply().await, Some((1, 0)));
            peer.expect_close().await;
            assert!(matches!(peer.end(), Some(SessionEnd::Refused(_))));
        },
    );
}

#[test]
fn limits_hold_back_the_socket() {
    with_server(
        |server| {
            server.limits.requests_in_flight = 10;
            server.limits.bytes_in_flight = 3 << 20;
        },
        async |server| {
            let disk = server.disk.clone();
            let most = Rc::new(Cell::new(0));
            let seen = most.clone();
            server.disk.delay(move |_| {
                seen.set(seen.get().max(disk.busy()));
                Duration::from_millis(1)
            });
            let mut peer = server.enter(false).await;
            for _ in 0..100 {
                peer.request(READ, 0, 0, 512, &[]).await;
            }
            for _ in 0..100 {
                assert_eq!(peer.reply().await.unwrap().1, 0);
                peer.wire.read(512).await;
            }
            assert_eq!(most.replace(0), 10);
            for _ in 0..10 {
                peer.request(READ, 0, 0, 1 << 20, &[]).await;
            }
            for _ in 0..10 {
                assert_eq!(peer.reply().await.unwrap().1, 0);
                peer.wire.read(1 << 20).await;
            }
            assert_eq!(most.get(), 3);
            // More than all the room there is: alone, but served.
            assert_eq!(peer.read(0, 0, 8 << 20).await.unwrap().len(), 8 << 20);
        },
    );
}

#[test]
fn a_client_that_never_reads_is_cut_off_and_harms_nobody() {
    with_server(
        |server| server.capacity = 64 << 10,
        async |server| {
            let mut deaf = server.enter(false).await;
            let mut queued = 0;
            while queued < 20 {
                deaf.request(READ, 0, 0, 1 << 20, &[]).await;
                queued += 1;
            }
            let mut other = server.enter(false).await;
            assert_eq!(other.read(0, 0, 1).await.unwrap(), [initial(0)]);
            assert!(server.world.now() < Duration::from_secs(1));
            let free = server.pools.payloads.free_bytes();
            assert_eq!(free, 12 << 20, "a quarter of the pool is one connection's");
            server.world.sleep(Duration::from_secs(61)).await;
            assert_eq!(deaf.end(), Some(SessionEnd::Stalled));
            assert_eq!(server.pools.payloads.free_bytes(), server.pools.payloads.total_bytes());
            assert_eq!(other.read(0, 0, 1).await.unwrap(), [initial(0)]);
        },
    );
}

#[test]
fn a_slow_reader_is_not_cut_off() {
    with_server(
        |server| server.capacity = 64 << 10,
        async |server| {
            let mut slow = server.enter(false).await;
            slow.request(READ, 0, 0, 8 << 20, &[]).await;
            assert_eq!(slow.reply().await, Some((1, 0)));
            for _ in 0..128 {
                server.world.sleep(Duration::from_secs(2)).await;
                assert_eq!(slow.wire.read(64 << 10).await.len(), 64 << 10);
            }
            assert_eq!(slow.write(0, 0, b"still here").await, 0);
        },
    );
}

#[test]
fn an_announced_payload_has_to_come() {
    with_server(
        |_| (),
        async |server| {
            let mut peer = server.enter(false).await;
            peer.request(WRITE, 0, 0, 8 << 20, &[1; 1000]).await;
            server.world.sleep(Duration::from_secs(61)).await;
            assert!(server.pools.payloads.free_bytes() < server.pools.payloads.total_bytes());
            server.world.sleep(Duration::from_secs(2)).await;
            assert_eq!(peer.end(), Some(SessionEnd::Stalled));
            assert_eq!(server.disk.calls(), []);
            peer.expect_close().await;
            // An idle client, on the other hand, may stay.
            let mut idle = server.enter(false).await;
            server.world.sleep(Duration::from_secs(100_000)).await;
            assert_eq!(idle.read(0, 0, 1).await.unwrap(), [initial(0)]);
        },
    );
}

#[test]
fn a_small_pool_serves_many() {
    with_server(
        |server| server.pools.payloads = Pool::new(4 * MAX_BUF_BYTES).unwrap(),
        async |server| {
            server.disk.delay(|_| Duration::from_millis(1));
            let left = Rc::new(Cell::new(6));
            for _ in 0..left.get() {
                let (server, left) = (server.clone(), left.clone());
                server.world.clone().spawn(async move {
                    let mut peer = server.enter(false).await;
                    for index in 0..3 {
                        peer.request(READ, 0, index * 7, 2 << 20, &[]).await;
                    }
                    for _ in 0..3 {
                        assert_eq!(peer.reply().await.unwrap().1, 0);
                        assert_eq!(peer.wire.read(2 << 20).await.len(), 2 << 20);
                    }
                    assert_eq!(peer.write(0, 1, &vec![7; (2 << 20) - 1]).await, 0);
                    // Half of the pool is as long as a request may be.
                    assert_eq!(peer.read(0, 0, (2 << 20) + 1).await, Err(EINVAL));
                    assert_eq!(peer.write(0, 0, &vec![7; (2 << 20) + 1]).await, EINVAL);
                    left.set(left.get() - 1);
                });
            }
            while left.get() > 0 {
                server.world.sleep(Duration::from_millis(1)).await;
            }
        },
    );
}

#[test]
fn a_stop_finishes_what_was_taken_and_refuses_the_rest_only_where_the_export_ends() {
    for whole_server in [true, false] {
        with_server(
            |_| (),
            async move |server| {
                server.disk.delay(|call| match call {
                    Call::Write(0..0x1000, ..) => Duration::from_secs(5),
                    _ => Duration::ZERO,
                });
                let mut peer = server.enter(false).await;
                let idle = server.enter(false).await;
                for index in 0..4 {
                    peer.request(WRITE, 0, index * 512, 512, &[1; 512]).await;
                }
                server.world.sleep(Duration::from_secs(1)).await;
                if whole_server {
                    server.stop.stop();
                } else {
                    server.export_stop.stop();
                }
                peer.request(WRITE, 0, 1 << 20, 512, &[2; 512]).await;
                peer.request(FLUSH, 0, 0, 0, &[]).await;
                let error = if whole_server { 0 } else { ESHUTDOWN };
                let mut answered = [peer.reply().await, peer.reply().await];
                answered.sort_unstable();
                assert_eq!(answered, [Some((5, error)), Some((6, error))]);
                idle.expect_close().await;
                assert!(server.world.now() < Duration::from_secs(2));
                server.world.sleep(Duration::from_secs(3)).await;
                assert_eq!((server.attached.get(), server.disk.busy(), peer.end()), (1, 4, None));
                for _ in 0..4 {
                    assert_eq!(peer.reply().await.unwrap().1, 0);
                }
                peer.expect_close().await;
                assert_eq!((peer.end(), idle.end()), (Some(SessionEnd::Stopped), Some(SessionEnd::Stopped)));
                let last = if whole_server { 2 } else { initial(1 << 20) };
                assert_eq!(server.disk.content()[1 << 20], last);
            },
        );
    }
}

#[test]
fn nobody_holds_up_a_stop() {
    with_server(
        |server| server.capacity = 64 << 10,
        async |server| {
            let mut deaf = server.enter(false).await;
            deaf.request(READ, 0, 0, 8 << 20, &[]).await;
            let mut half = server.enter(false).await;
            half.request(WRITE, 0, 0, 8 << 20, &[1; 1000]).await;
            let busy = server.enter(false).await;
            server.world.sleep(Duration::from_secs(1)).await;
            server.stop.stop();
            let mut sent = 0;
            while busy.wire.write(&request_bytes(FLUSH, 0, sent, 0, 0)).await.is_ok() {
                sent += 1;
                match busy.reply().await {
                    Some((_, error)) => assert_eq!(error, 0),
                    None => break,
                }
                server.world.sleep(Duration::from_millis(50)).await;
            }
            assert!(server.world.now() < Duration::from_millis(3500), "{:?}", server.world.now());
            server.world.sleep(Duration::from_secs(1)).await;
            let ends = [deaf.end(), half.end(), busy.end()].map(Option::unwrap);
            assert_eq!(ends, [SessionEnd::Stopped; 3]);
        },
    );
}

#[test]
fn a_client_that_vanishes_is_waited_for_by_its_own_requests_only() {
    with_server(
        |_| (),
        async |server| {
            server.disk.delay(|_| Duration::from_secs(9));
            let mut peer = server.enter(false).await;
            for index in 0..20 {
                peer.request(WRITE, 0, index * 4096, 4096, &[3; 4096]).await;
                peer.request(READ, 0, index * 4096, 4096, &[]).await;
            }
            server.world.sleep(Duration::from_secs(1)).await;
            drop(peer);
            server.world.sleep(Duration::from_secs(1)).await;
            assert_eq!((server.attached.get(), server.disk.busy()), (1, 40));
            server.world.sleep(Duration::from_secs(8)).await;
            assert_eq!((server.attached.get(), server.disk.busy()), (0, 0));
        },
    );
}

/// A WRITE that is under way, and as many more behind it as a limit keeps from beginning.
async fn one_begun_of_four(server: &Server) -> Peer {
    server.disk.delay(|_| Duration::from_secs(9));
    let mut peer = server.enter(false).await;
    for index in 0..4 {
        peer.request(WRITE, 0, index * 4096, 4096, &[3; 4096]).await;
    }
    server.world.sleep(Duration::from_secs(1)).await;
    assert_eq!((server.disk.busy(), server.disk.calls().len()), (1, 1));
    peer
}

#[test]
fn what_a_client_that_has_hung_up_asked_for_does_not_begin_any_more() {
    with_server(
        |server| server.limits.requests_in_flight = 1,
        async |server| {
            drop(one_begun_of_four(server).await);
            server.world.sleep(Duration::from_secs(60)).await;
            assert_eq!(server.disk.calls(), []);
        },
    );
    // Nor where nothing has to be waited for: all of it lies in the socket when the server gets to it.
    with_server(
        |_| (),
        async |server| {
            let mut peer = server.connect_kernel();
            for index in 0..4 {
                peer.request(WRITE, 0, index * 4096, 4096, &[3; 4096]).await;
            }
            drop(peer);
            server.world.sleep(Duration::from_secs(60)).await;
            assert_eq!(server.disk.calls(), []);
        },
    );
}

#[test]
fn who_only_sends_no_more_gets_all_its_answers() {
    with_server(
        |server| server.limits.requests_in_flight = 1,
        async |server| {
            let peer = one_begun_of_four(server).await;
            peer.wire.close_write();
            for cookie in 1..=4 {
                assert_eq!(peer.reply().await, Some((cookie, 0)));
            }
            peer.expect_close().await;
        },
    );
}

#[test]
fn the_kernel_needs_no_handshake_and_is_told_nothing_by_a_stop() {
    for whole_server in [true, false] {
        with_server(
            |_| (),
            async move |server| {
                let mut peer = server.connect_kernel();
                peer.request(WRITE, 0, 0, 4096, &[7; 4096]).await;
                assert_eq!(peer.reply().await, Some((1, 0)));
                peer.request(READ, 0, 0, 512, &[]).await;
                assert_eq!((peer.reply().await, peer.wire.read(512).await), (Some((2, 0)), vec![7; 512]));
                server.disk.delay(|_| Duration::from_secs(5));
                let begun = peer.request(WRITE, 0, 0, 4096, &[8; 4096]).await;
                server.world.sleep(Duration::from_secs(1)).await;
                if whole_server {
                    server.stop.stop();
                } else {
                    server.export_stop.stop();
                }
                peer.request(WRITE, 0, 4096, 4096, &[9; 4096]).await;
                // What has begun is finished and answered; the rest is not, as an answer would be taken for the last word.
                assert_eq!(peer.reply().await, Some((begun, 0)));
                peer.expect_close().await;
                assert_eq!((server.disk.content()[0], server.disk.content()[4096]), (8, initial(4096)));
                assert_eq!(peer.end(), Some(SessionEnd::Stopped));
            },
        );
    }
}
