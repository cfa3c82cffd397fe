//! Sockets and listeners.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::join;
use nix::sys::socket::{setsockopt, sockopt};
use raidd::io::{Clock, IoErrorKind, MAX_BUF_BYTES, Pool, Slice, Spawn, Stream};
use raidd::reactor::{Listener, Socket, runtime, start};

use crate::{PATIENCE, finish, on_reactor, pattern, slice_of, wait};

/// Sends 9 MiB in many slices through `a` while `b` returns all it gets, and compares.
async fn echo(a: OwnedFd, b: OwnedFd) {
    let (a, b) = (Socket::from_fd(a), Socket::from_fd(b));
    let pool = Pool::new(32 * MAX_BUF_BYTES).unwrap();
    runtime().spawn({
        let pool = pool.clone();
        async move {
            loop {
                let (count, mut buf) = b.recv(pool.alloc(100_000).await).await.unwrap();
                if count == 0 {
                    return;
                }
                drop(buf.split_off(count));
                b.send(vec![buf.freeze()]).await.unwrap();
            }
        }
    });
    let mut data: Vec<Slice> = (0..8).map(|seed| slice_of(&pool, &pattern(MAX_BUF_BYTES, seed))).collect();
    let small = slice_of(&pool, &pattern(MAX_BUF_BYTES, 99));
    data.extend((0..1 << 12).map(|i| small.slice(i * 256..(i + 1) * 256)));
    let expected: Vec<u8> = data.iter().flat_map(|slice| slice.to_vec()).collect();
    let receive = async {
        let mut received = Vec::new();
        while received.len() < expected.len() {
            let (count, buf) = a.recv(pool.alloc(70_000).await).await.unwrap();
            assert!(count > 0);
            received.extend_from_slice(&buf[..count]);
        }
        received
    };
    let (sent, received) = join(a.send(data), receive).await;
    sent.unwrap();
    assert!(received == expected);
    a.shutdown();
    let (count, _) = a.recv(pool.alloc(16).await).await.unwrap();
    assert_eq!(count, 0);
    let broken = a.send(vec![Slice::zeroes(16)]).await.unwrap_err();
    assert_eq!(broken.kind, IoErrorKind::Closed);
}

#[test]
fn echo_over_a_socket_pair() {
    let (a, b) = UnixStream::pair().unwrap();
    setsockopt(&a, sockopt::SndBuf, &4096).unwrap();
    // As it comes from tokio.
    a.set_nonblocking(true).unwrap();
    on_reactor(|| echo(a.into(), b.into()));
}

#[test]
fn echo_over_tcp() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let a = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (b, _) = listener.accept().unwrap();
    setsockopt(&a, sockopt::SndBuf, &4096).unwrap();
    on_reactor(|| echo(a.into(), b.into()));
}

#[test]
fn accepted_connections_move_to_another_reactor() {
    let (a, a_thread) = start(0, "accepts").unwrap();
    let (b, b_thread) = start(1, "serves").unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let served = a.call({
        let b = b.clone();
        move || async move {
            let listener = Listener::from_fd(listener.into());
            let mut total = 0;
            for _ in 0..3 {
                let connection = listener.accept().await.unwrap();
                total += b
                    .call(move || async move {
                        let socket = Socket::from_fd(connection);
                        let pool = Pool::new(MAX_BUF_BYTES).unwrap();
                        let (count, _) = socket.recv(pool.alloc(100).await).await.unwrap();
                        socket.send(vec![Slice::zeroes(count)]).await.unwrap();
                        count
                    })
                    .await
                    .unwrap();
            }
            // Nobody comes any more; the wait is given up.
            assert!(listener.accept().now_or_never().is_none());
            total
        }
    });
    for len in 1..=3 {
        let mut client = TcpStream::connect(address).unwrap();
        client.write_all(&pattern(len, 0)).unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).unwrap();
        assert_eq!(answer, vec![0; len]);
    }
    assert_eq!(wait(served).unwrap(), 6);
    finish(&a, a_thread);
    finish(&b, b_thread);
}

#[test]
fn a_dropped_receive_is_cancelled_and_gives_its_memory_back() {
    on_reactor(async || {
        let (a, _peer) = UnixStream::pair().unwrap();
        let socket = Socket::from_fd(a.into());
        let pool = Pool::new(MAX_BUF_BYTES).unwrap();
        for _ in 0..100 {
            let buf = pool.alloc(MAX_BUF_BYTES).await;
            let mut recv = Box::pin(socket.recv(buf));
            assert!((&mut recv).now_or_never().is_none());
            runtime().sleep(Duration::ZERO).await;
        }
    });
}

#[test]
fn an_accepted_connection_that_nobody_takes_is_closed() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    on_reactor(async move || {
        let listener = Listener::from_fd(listener.into());
        let accept = Box::pin(listener.accept());
        let mut accept = Some(accept);
        assert!(accept.as_mut().unwrap().now_or_never().is_none());
        runtime().sleep(Duration::from_millis(10)).await;
        let mut client = TcpStream::connect(address).unwrap();
        // The completion comes while nobody polls; then the future goes.
        runtime().sleep(Duration::from_millis(50)).await;
        accept = None;
        assert!(accept.is_none());
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(client.read(&mut [0]).unwrap(), 0, "the connection was closed");
    });
}

#[test]
fn a_peer_that_only_sends_no_more_has_not_hung_up() {
    let (near, mut far) = UnixStream::pair().unwrap();
    let heard = on_reactor(move || async move {
        let socket = Socket::from_fd(near.into());
        let pool = Pool::new(1 << 20).unwrap();
        let mut heard = vec![socket.hung_up()];
        far.write_all(b"asked").unwrap();
        far.shutdown(std::net::Shutdown::Write).unwrap();
        let (count, _) = socket.recv(pool.try_alloc(4096).unwrap()).await.unwrap();
        heard.push(count != 5 || socket.hung_up());
        far.shutdown(std::net::Shutdown::Both).unwrap();
        // Whatever the ring tells after the hang-up, it tells of that as well.
        let (count, _) = socket.recv(pool.try_alloc(4096).unwrap()).await.unwrap();
        heard.extend([count == 0, socket.hung_up(), socket.hung_up()]);
        heard
    });
    assert_eq!(heard, [false, false, true, true, true]);
}
