//! A connection that is served elsewhere when its requests become of another kind: its client must not notice.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use raidd::io::Clock;
use raidd::nbd::SessionEnd;

use crate::disk::{Call, initial};
use crate::flow::with_server;
use crate::peer::*;

const LARGE: u32 = 512 << 10;

/// Where the writes of these tests go; reads of what they did not write see what was there at first.
const WRITTEN: u64 = 8 << 20;

/// Requests `count` times, so many at a time, and checks every answer. Large reads, or small reads and writes in turns.
async fn talk(peer: &mut Peer, large: bool, count: u64, depth: usize) {
    let mut under_way = BTreeMap::new();
    let mut sent = 0;
    while sent < count || !under_way.is_empty() {
        if sent < count && under_way.len() < depth {
            let place = WRITTEN + sent % 64 * 4096;
            let cookie = match (large, sent % 2) {
                (true, _) => peer.request(READ, 0, sent % 8 * 4096, LARGE, &[]).await,
                (false, 0) => peer.request(READ, 0, sent % 1000 * 512, 512, &[]).await,
                (false, _) => peer.request(WRITE, 0, place, 4096, &[sent as u8; 4096]).await,
            };
            under_way.insert(cookie, sent);
            sent += 1;
            continue;
        }
        let Some((cookie, error)) = peer.reply().await else { panic!("closed with {under_way:?}") };
        let index = under_way.remove(&cookie).expect("each is answered once");
        assert_eq!(error, 0);
        let (at, len) = match (large, index % 2) {
            (true, _) => (index % 8 * 4096, LARGE as usize),
            (false, 0) => (index % 1000 * 512, 512),
            (false, _) => continue,
        };
        let data = peer.wire.read(len).await;
        assert!(data.iter().enumerate().all(|(i, &byte)| byte == initial(at as usize + i)));
    }
}

#[test]
fn a_client_does_not_notice_that_it_is_moved() {
    for piece in [usize::MAX, 4096 + 29] {
        with_server(
            move |server| server.piece = piece,
            async |server| {
                let moves = Rc::new(Cell::new(0));
                let mut peer = server.enter_by(server.connect_moving(moves.clone()), false).await;
                talk(&mut peer, false, 3000, 16).await;
                assert_eq!(moves.get(), 0);
                talk(&mut peer, true, 31, 4).await;
                talk(&mut peer, false, 10, 4).await;
                assert_eq!(moves.get(), 0, "there were not many large ones in a row");
                talk(&mut peer, true, 100, 4).await;
                assert_eq!((moves.get(), server.attached.get()), (1, 1));
                talk(&mut peer, false, 3000, 16).await;
                assert_eq!((moves.get(), server.attached.get()), (2, 1));
                for index in 2944..3000_u64 {
                    if index % 2 == 1 {
                        let place = WRITTEN + index % 64 * 4096;
                        assert_eq!(server.disk.content()[place as usize], index as u8);
                    }
                }
                talk(&mut peer, true, 100, 1).await;
                assert_eq!(moves.get(), 3);
                peer.request(DISC, 0, 0, 0, &[]).await;
                peer.expect_close().await;
                assert_eq!(peer.end(), Some(SessionEnd::Disconnected));
            },
        );
    }
}

/// A client that is about to be moved: its last request is still under way, and it has sent another.
async fn about_to_move(server: &Server, moves: &Rc<Cell<usize>>) -> Peer {
    let mut peer = server.enter_by(server.connect_moving(moves.clone()), false).await;
    talk(&mut peer, true, 31, 4).await;
    server.disk.delay(|call| match call {
        Call::Read(..) => Duration::from_millis(80),
        _ => Duration::ZERO,
    });
    peer.request(READ, 0, 0, LARGE, &[]).await;
    server.world.sleep(Duration::from_millis(20)).await;
    peer.request(WRITE, 0, WRITTEN, 4096, &[9; 4096]).await;
    server.world.sleep(Duration::from_millis(20)).await;
    assert_eq!(moves.get(), 0);
    assert_ne!(server.disk.content()[WRITTEN as usize], 9, "it is not taken before the move");
    peer
}

#[test]
fn what_is_sent_during_a_move_is_done_after_it() {
    with_server(
        |_| (),
        async |server| {
            let moves = Rc::new(Cell::new(0));
            let peer = about_to_move(server, &moves).await;
            assert_eq!(peer.reply().await, Some((32, 0)));
            peer.wire.read(LARGE as usize).await;
            assert_eq!(peer.reply().await, Some((33, 0)));
            assert_eq!((moves.get(), server.disk.content()[WRITTEN as usize]), (1, 9));
        },
    );
}

#[test]
fn a_client_that_hangs_up_during_a_move_has_nothing_done_after_it() {
    with_server(
        |_| (),
        async |server| {
            let moves = Rc::new(Cell::new(0));
            drop(about_to_move(server, &moves).await);
            server.world.sleep(Duration::from_secs(10)).await;
            assert_ne!(server.disk.content()[WRITTEN as usize], 9);
            assert_eq!(server.attached.get(), 0);
        },
    );
}

#[test]
fn a_stop_during_a_move_ends_it_after_the_move() {
    for whole_server in [true, false] {
        with_server(
            |_| (),
            async move |server| {
                let moves = Rc::new(Cell::new(0));
                let peer = about_to_move(server, &moves).await;
                if whole_server {
                    server.stop.stop();
                } else {
                    server.export_stop.stop();
                }
                assert_eq!(peer.reply().await, Some((32, 0)));
                peer.wire.read(LARGE as usize).await;
                // As anywhere: the server answers what it has been asked for, an export that ends refuses it.
                let answer = if whole_server { 0 } else { ESHUTDOWN };
                assert_eq!(peer.reply().await, Some((33, answer)));
                peer.expect_close().await;
                assert_eq!(peer.end(), Some(SessionEnd::Stopped));
            },
        );
    }
}

#[test]
fn a_request_that_takes_long_keeps_nobody_waiting_for_a_move() {
    with_server(
        |_| (),
        async |server| {
            let moves = Rc::new(Cell::new(0));
            let mut peer = server.enter_by(server.connect_moving(moves.clone()), false).await;
            server.disk.delay(|call| match call {
                Call::Write(..) => Duration::from_secs(5),
                _ => Duration::ZERO,
            });
            let slow = peer.request(WRITE, 0, WRITTEN, 4096, &[9; 4096]).await;
            let began = server.world.now();
            talk(&mut peer, true, 200, 4).await;
            // It was tried now and then, and given up each time.
            assert!(server.world.now() - began < Duration::from_secs(1));
            assert_eq!(moves.get(), 0);
            assert_eq!(peer.reply().await, Some((slow, 0)));
            talk(&mut peer, true, 100, 4).await;
            assert_eq!(moves.get(), 1);
        },
    );
}
