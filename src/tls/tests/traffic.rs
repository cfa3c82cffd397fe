//! What passes after the handshake: large amounts both ways at once, ends, and ends that are none.

use futures_util::future::{join, join4};

use super::world::slice;
use super::*;
use crate::io::{IoErrorKind, MAX_BUF_BYTES, Stream};

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let step = |_| {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 24) as u8
    };
    (0..len).map(step).collect()
}

async fn send_all(stream: &TlsStream<Wire>, pool: &Pool, bytes: &[u8]) {
    for part in bytes.chunks(MAX_BUF_BYTES) {
        // A header and its data, as replies are sent.
        let (head, data) = part.split_at(16.min(part.len()));
        let data = [head, data].into_iter().filter(|data| !data.is_empty()).map(|data| slice(pool, data));
        stream.send(data.collect()).await.unwrap();
    }
}

async fn receive_all(stream: &TlsStream<Wire>, pool: &Pool, len: usize) -> Vec<u8> {
    let mut out = Vec::new();
    while out.len() < len {
        let buf = pool.alloc((len - out.len()).min(100_000)).await;
        let (count, buf) = stream.recv(buf).await.unwrap();
        assert!(count > 0);
        out.extend(&buf[..count]);
    }
    out
}

#[test]
fn large_amounts_both_ways_at_once() {
    let pki = Pki::new();
    let server = pki.server(true, false, false);
    for (piece, capacity, len) in
        [(usize::MAX, 1 << 20, 3 << 20), (1500, 4000, 1 << 20), (7, 11, 70_000), (1, 1, 20_000)]
    {
        let ends = Ends::connected(server.clone(), pki.client(|_| ()), piece, capacity);
        let (down, up) = (noise(1, len), noise(2, len + 5));
        let ((), (), at_server, at_client) = run(join4(
            send_all(&ends.server, &ends.pool, &down),
            send_all(&ends.client, &ends.pool, &up),
            receive_all(&ends.server, &ends.pool, up.len()),
            receive_all(&ends.client, &ends.pool, down.len()),
        ));
        assert!(at_server == up && at_client == down);
        let held = ends.pool.total_bytes() - ends.pool.free_bytes();
        assert!(held <= 2 * crate::tls::TLS_BYTES_PER_CONNECTION, "{held}");
    }
}

#[test]
fn a_goodbye_is_the_end() {
    let pki = Pki::new();
    let ends = Ends::connected(pki.server(true, false, false), pki.client(|_| ()), 10, 1 << 20);
    run(async {
        send_all(&ends.server, &ends.pool, b"the last words").await;
        ends.server.close().await;
        assert_eq!(receive_all(&ends.client, &ends.pool, 14).await, b"the last words");
        for _ in 0..2 {
            let (count, _) = ends.client.recv(ends.pool.alloc(10).await).await.unwrap();
            assert_eq!(count, 0);
        }
    });
}

#[test]
fn an_end_without_goodbye_is_none() {
    let pki = Pki::new();
    let ends = Ends::connected(pki.server(true, false, false), pki.client(|_| ()), 10, 1 << 20);
    run(async {
        send_all(&ends.client, &ends.pool, b"half a message").await;
        ends.client.shutdown();
        assert_eq!(receive_all(&ends.server, &ends.pool, 14).await, b"half a message");
        let cut = ends.server.recv(ends.pool.alloc(10).await).await.unwrap_err();
        assert_eq!(cut.kind, IoErrorKind::Closed);
        // There is nobody to take leave of, and that is no trouble.
        ends.server.close().await;
    });
}

#[test]
fn a_byte_that_was_changed_is_noticed() {
    let pki = Pki::new();
    let ends = Ends::connected(pki.server(true, false, false), pki.client(|_| ()), usize::MAX, 1 << 20);
    run(async {
        send_all(&ends.client, &ends.pool, b"pay Bob 100").await;
        ends.under_client.corrupt();
        let forged = ends.server.recv(ends.pool.alloc(100).await).await.unwrap_err();
        assert_eq!(forged.kind, IoErrorKind::Invalid);
        let told = ends.client.recv(ends.pool.alloc(100).await).await.unwrap_err();
        assert_eq!(told.kind, IoErrorKind::Invalid, "by an alert");
    });
}

#[test]
fn what_is_in_the_clear_after_the_handshake_is_noticed() {
    let pki = Pki::new();
    let ends = Ends::connected(pki.server(true, false, false), pki.client(|_| ()), usize::MAX, 1 << 20);
    ends.under_client.put(b"IHAVEOPT\0\0\0\x03\0\0\0\0");
    let buf = ends.pool.try_alloc(100).unwrap();
    assert_eq!(run(ends.server.recv(buf)).unwrap_err().kind, IoErrorKind::Invalid);
}

#[test]
fn a_send_that_was_given_up_is_the_last() {
    let pki = Pki::new();
    let ends = Ends::connected(pki.server(true, false, false), pki.client(|_| ()), usize::MAX, 10_000);
    let data = slice(&ends.pool, &noise(1, 100_000));
    {
        let mut sending = std::pin::pin!(ends.server.send(vec![data.clone()]));
        let context = &mut std::task::Context::from_waker(std::task::Waker::noop());
        assert!(sending.as_mut().poll(context).is_pending());
    }
    ends.under_client.take();
    assert_eq!(run(ends.server.send(vec![data])).unwrap_err().kind, IoErrorKind::Closed);
    run(ends.server.close());
    assert!(ends.under_client.take().is_empty(), "nothing comes after the gap");
}

#[test]
fn a_peer_that_reads_nothing_does_not_stop_what_it_sends() {
    let pki = Pki::new();
    let ends = Ends::connected(pki.server(true, false, false), pki.client(|_| ()), usize::MAX, 10_000);
    let sending = ends.server.send(vec![slice(&ends.pool, &noise(1, 100_000))]);
    let talking = async {
        for _ in 0..50 {
            send_all(&ends.client, &ends.pool, &[5; 3000]).await;
            receive_all(&ends.server, &ends.pool, 3000).await;
        }
        // Now it reads.
        assert_eq!(receive_all(&ends.client, &ends.pool, 100_000).await, noise(1, 100_000));
    };
    let (sent, ()) = run(join(sending, talking));
    sent.unwrap();
}
