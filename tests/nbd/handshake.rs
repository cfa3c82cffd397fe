//! The handshake: what is offered, what is refused, and that the options after a refused one still work.

use std::time::Duration;

use raidd::io::Clock;
use raidd::nbd::SessionEnd;

use crate::disk::initial;
use crate::peer::*;
use crate::world::World;

const SIZE: usize = 4 << 20;
/// HAS_FLAGS, FLUSH, FUA, TRIM, WRITE_ZEROES, CAN_MULTI_CONN, CACHE, FAST_ZERO.
const FLAGS: u16 = 0b1101_0110_1101;

fn facts() -> Vec<u8> {
    [&(SIZE as u64).to_be_bytes()[..], &FLAGS.to_be_bytes()].concat()
}

/// Runs a test against a new server, over a stream that gives `piece` bytes at a time, and looks for leaks.
fn with_server(piece: usize, test: impl AsyncFn(&Server) + 'static) {
    let world = World::new(7);
    let server = Server { piece, ..Server::new(&world, SIZE) };
    let same = server.clone();
    world.run(async move { test(&same).await });
    world.settle();
    server.assert_idle();
}

async fn still_haggling(peer: &Peer) {
    assert_eq!(peer.option(INFO, &info_data(b"vol0", &[])).await.last().unwrap().0, ACK);
}

#[test]
fn go_tells_what_was_asked_for() {
    for piece in [1, 7, usize::MAX] {
        with_server(piece, async |server| {
            let mut peer = server.connect();
            peer.greet(3).await;
            let wanted = info_data(b"", &[3, 0x7777, 1, 2, 2, 0]);
            let replies = peer.option(INFO, &wanted).await;
            let expected = [
                (REP_INFO, [&[0, 0][..], &facts()].concat()),
                (REP_INFO, b"\0\x01vol0".to_vec()),
                (REP_INFO, b"\0\x02the array vol0".to_vec()),
                // 1 byte, 64 KiB, and half of a pool of 16 MiB
                (REP_INFO, vec![0, 3, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0x80, 0, 0]),
                (ACK, vec![]),
            ];
            assert_eq!(replies, expected);
            assert_eq!(server.attached.get(), 0);
            assert_eq!(peer.option(GO, &wanted).await, expected);
            assert_eq!(server.attached.get(), 1);
            assert_eq!(peer.read(0, 3, 2).await.unwrap(), [initial(3), initial(4)]);
        });
    }
}

#[test]
fn export_name_with_and_without_padding() {
    for (flags, padding) in [(0, 124), (1, 124), (2, 0), (3, 0)] {
        with_server(usize::MAX, async move |server| {
            let mut peer = server.connect();
            peer.greet(flags).await;
            peer.send(&option_bytes(EXPORT_NAME, b"vol0")).await;
            assert_eq!(peer.wire.read(10).await, facts());
            assert_eq!(peer.wire.read(padding).await, vec![0; padding]);
            assert_eq!(peer.read(0, 0, 1).await.unwrap(), [initial(0)]);
        });
    }
}

#[test]
fn what_only_a_close_can_answer() {
    with_server(usize::MAX, async |server| {
        for flags in [4, 1 << 31, u32::MAX] {
            let peer = server.connect();
            peer.greet(flags).await;
            peer.expect_close().await;
            assert!(matches!(peer.end(), Some(SessionEnd::Refused(_))));
        }
        let mut wrong_magic = option_bytes(LIST, b"");
        wrong_magic[0] = b'X';
        let mut far_too_long = option_bytes(99, b"");
        far_too_long[12..16].fill(0xff);
        for bytes in [
            option_bytes(EXPORT_NAME, b"no such export"),
            option_bytes(EXPORT_NAME, b"leaving"),
            option_bytes(EXPORT_NAME, b"vol0\0"),
            option_bytes(EXPORT_NAME, b"\xff\xfe"),
            option_bytes(EXPORT_NAME, &[b'a'; 4097]),
            wrong_magic,
            far_too_long,
        ] {
            let peer = server.connect();
            peer.greet(3).await;
            peer.send(&bytes).await;
            peer.expect_close().await;
        }
        let plain = server.connect();
        plain.greet(0).await;
        plain.send(&option_bytes(LIST, b"")).await;
        plain.expect_close().await;
    });
}

#[test]
fn refused_options_leave_the_stream_in_step() {
    with_server(1000, async |server| {
        let vol0 = info_data(b"vol0", &[3]);
        let name_past_end = [&54_u32.to_be_bytes()[..], b"vol0\0\0"].concat();
        let name_far_past_end = [&u32::MAX.to_be_bytes()[..], b"vol0\0\0"].concat();
        let count_too_big = [&4_u32.to_be_bytes()[..], b"vol0\0\x09\0\x03"].concat();
        let malformed: [&[u8]; 8] = [
            b"",
            b"\0\0\0",
            b"\0\0\0\0\0",
            &name_past_end,
            &name_far_past_end,
            &count_too_big,
            &[&vol0[..], b"zz"].concat(),
            &[&vol0[..], b"z"].concat(),
        ];
        for option in [INFO, GO] {
            let peer = server.connect();
            peer.greet(3).await;
            for data in malformed {
                assert_eq!(peer.option(option, data).await.last().unwrap().0, ERR_INVALID);
            }
            for name in [&b"a\0b"[..], b"\xff\xfe\xfd", &[b'a'; 4097]] {
                assert_eq!(peer.option(option, &info_data(name, &[])).await[0].0, ERR_INVALID);
            }
            for name in [&b"nobody"[..], b"../../etc/passwd", b"\x1b[2J\r\n%s%n", &[b'a'; 4096]] {
                let replies = peer.option(option, &info_data(name, &[3])).await;
                assert_eq!(replies.iter().map(|reply| reply.0).collect::<Vec<_>>(), [ERR_UNKNOWN]);
            }
            assert_eq!(peer.option(option, &[0; 60 << 10]).await[0].0, ERR_TOO_BIG);
            still_haggling(&peer).await;
        }
        let peer = server.connect();
        peer.greet(3).await;
        assert_eq!(peer.option(GO, &info_data(b"leaving", &[])).await.last().unwrap().0, ERR_SHUTDOWN);
        for option in [0, 4, 12, 13, 99, 0x7fff_ffff, u32::MAX] {
            for data in [&b""[..], b"1234567", &[b'y'; 3000], &[0; 100 << 10]] {
                let replies = peer.option(option, data).await;
                assert_eq!((replies.len(), replies[0].0), (1, ERR_UNSUP));
            }
        }
        assert_eq!(peer.option(LIST, b"data").await[0].0, ERR_INVALID);
        assert_eq!(peer.option(STARTTLS, b"").await[0].0, ERR_UNSUP);
        assert_eq!(peer.option(STARTTLS, b"hello").await[0].0, ERR_INVALID);
        still_haggling(&peer).await;
    });
}

#[test]
fn list_and_abort() {
    with_server(usize::MAX, async |server| {
        let peer = server.connect();
        peer.greet(3).await;
        let replies = peer.option(LIST, b"").await;
        assert_eq!(replies[0], (REP_SERVER, b"\0\0\0\x04vol0the array vol0".to_vec()));
        assert_eq!((replies.len(), replies[2].0), (3, ACK));
        assert_eq!(peer.option(ABORT, b"why not").await, [(ACK, vec![])]);
        peer.expect_close().await;
        assert_eq!(peer.end(), Some(SessionEnd::Disconnected));
    });
}

#[test]
fn options_may_come_all_at_once() {
    with_server(usize::MAX, async |server| {
        let mut peer = server.connect();
        let mut bytes = 3_u32.to_be_bytes().to_vec();
        for _ in 0..5 {
            bytes.extend(option_bytes(99, b"x"));
        }
        bytes.extend(option_bytes(GO, &info_data(b"vol0", &[])));
        bytes.extend(request_bytes(READ, 0, 1, 0, 4));
        peer.send(&bytes).await;
        assert_eq!(peer.wire.read(18).await.len(), 18);
        for _ in 0..5 {
            assert_eq!(peer.option_replies(99).await.unwrap()[0].0, ERR_UNSUP);
        }
        assert_eq!(peer.option_replies(GO).await.unwrap().last().unwrap().0, ACK);
        assert_eq!(peer.reply().await, Some((1, 0)));
        assert_eq!(peer.wire.read(4).await.len(), 4);
        assert_eq!(peer.write(0, 0, b"x").await, 0);
    });
}

#[test]
fn a_handshake_has_an_end() {
    with_server(usize::MAX, async |server| {
        let silent = server.connect();
        silent.greet(3).await;
        silent.expect_close().await;
        assert_eq!(silent.end(), Some(SessionEnd::HandshakeTimeout));
        assert_eq!(server.world.now(), Duration::from_secs(10));

        let slow = server.connect();
        slow.greet(3).await;
        for byte in option_bytes(GO, &info_data(b"vol0", &[])) {
            server.world.sleep(Duration::from_secs(1)).await;
            if slow.wire.write(&[byte]).await.is_err() {
                break;
            }
        }
        slow.expect_close().await;
        assert_eq!(slow.end(), Some(SessionEnd::HandshakeTimeout));

        let endless = server.connect();
        endless.greet(3).await;
        for _ in 0..64 {
            still_haggling(&endless).await;
        }
        endless.expect_close().await;
    });
}

#[test]
fn a_client_may_vanish_anywhere() {
    let mut all = 3_u32.to_be_bytes().to_vec();
    all.extend(option_bytes(LIST, b""));
    all.extend(option_bytes(GO, &info_data(b"vol0", &[3])));
    all.extend(request_bytes(READ, 0, 1, 0, 4096));
    for cut in 0..=all.len() {
        let bytes = all[..cut].to_vec();
        with_server(usize::MAX, async move |server| {
            let peer = server.connect();
            peer.send(&bytes).await;
        });
    }
}

#[test]
fn a_stopping_server_says_so() {
    with_server(usize::MAX, async |server| {
        let idle = server.connect();
        let asking = server.connect();
        asking.greet(3).await;
        server.stop.stop();
        assert_eq!(asking.option(LIST, b"").await[0].0, ERR_SHUTDOWN);
        assert_eq!(asking.option(GO, &info_data(b"vol0", &[])).await[0].0, ERR_SHUTDOWN);
        let started = server.world.now();
        idle.greet(3).await;
        idle.expect_close().await;
        asking.expect_close().await;
        assert_eq!((idle.end(), asking.end()), (Some(SessionEnd::Stopped), Some(SessionEnd::Stopped)));
        assert!(server.world.now() - started <= Duration::from_millis(500));
    });
}
