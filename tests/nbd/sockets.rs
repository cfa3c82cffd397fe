//! The blocking client against the server, over a real socket: the one place where two threads and real bytes meet.
//! The server's side polls its socket; a ring has no place here.

use std::future::poll_fn;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::task::Poll;
use std::time::Duration;

use raidd::io::{Buf, Clock, IoError, IoErrorKind, Slice, Stream};
use raidd::nbd::{Client, ClientError, Errno, SessionEnd, serve};

use crate::disk::initial;
use crate::peer::Server;
use crate::world::World;

const SIZE: usize = 20 << 20;

struct Socket(UnixStream);

/// Tries until the socket is ready.
async fn retry<T>(mut attempt: impl FnMut() -> std::io::Result<T>) -> Result<T, IoError> {
    poll_fn(|context| match attempt() {
        Err(error) if error.kind() == ErrorKind::WouldBlock => {
            context.waker().wake_by_ref();
            std::thread::yield_now();
            Poll::Pending
        }
        Err(_) => Poll::Ready(Err(IoError::new(IoErrorKind::Closed, "the socket"))),
        Ok(value) => Poll::Ready(Ok(value)),
    })
    .await
}

impl Stream for Socket {
    async fn recv(&self, mut buf: Buf) -> Result<(usize, Buf), IoError> {
        let count = retry(|| (&self.0).read(&mut buf)).await?;
        Ok((count, buf))
    }

    async fn send(&self, data: Vec<Slice>) -> Result<(), IoError> {
        for slice in data {
            let mut done = 0;
            while done < slice.len() {
                done += retry(|| (&self.0).write(&slice[done..])).await?;
            }
        }
        Ok(())
    }

    fn shutdown(&self) {
        if let Err(error) = self.0.shutdown(Shutdown::Both) {
            assert_eq!(error.kind(), ErrorKind::NotConnected);
        }
    }
}

/// What a user of the client does; the export is of `SIZE` bytes with the usual content.
fn use_client(socket: UnixStream) -> Result<(), ClientError> {
    let mut client = Client::new(socket, "vol0")?;
    assert_eq!((client.size_bytes(), client.flags()), (SIZE as u64, 0b1101_0110_1101));
    let mut data = vec![0; SIZE];
    client.read(0, &mut data)?; // more than one request may carry
    assert!(data.iter().enumerate().all(|(offset, &byte)| byte == initial(offset)));
    data.iter_mut().for_each(|byte| *byte = !*byte);
    client.write(3, &data[3..])?;
    client.write_zeroes(100, 1000)?;
    client.trim(0, 2)?;
    client.flush()?;
    let mut back = vec![0; SIZE - 3];
    client.read(3, &mut back)?;
    data[100..1100].fill(0);
    assert!(back == data[3..]);
    let beyond = client.write(SIZE as u64 - 1, b"xy");
    assert!(matches!(beyond, Err(ClientError::Server(Errno::NoSpace))));
    client.read(0, &mut back[..1])?; // still in step
    client.disconnect()
}

fn over_a_socket<T: Send + 'static>(
    client: impl FnOnce(UnixStream) -> T + Send + 'static,
) -> (T, SessionEnd) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    let client = std::thread::spawn(move || client(ours));
    let world = World::new(1);
    let server = Server::new(&world, SIZE);
    let (same, clock) = (server.clone(), world.clone());
    let end = world.run(async move {
        let (pools, limits, stop) = (same.pools.clone(), same.limits, same.stop.clone());
        let end = serve(Socket(theirs), same, clock.clone(), pools, limits, stop).await;
        clock.sleep(Duration::from_millis(1)).await;
        end
    });
    server.assert_idle();
    (client.join().unwrap(), end)
}

#[test]
fn the_client_and_the_server_understand_each_other() {
    let (used, end) = over_a_socket(use_client);
    used.unwrap();
    assert_eq!(end, SessionEnd::Disconnected);
}

#[test]
fn the_client_says_why_it_was_refused() {
    let (refused, end) = over_a_socket(|socket| Client::new(socket, "nobody").err());
    let text = refused.expect("no such export").to_string();
    assert_eq!(text, "the NBD server refuses the export: there is no such export");
    assert_eq!(end, SessionEnd::Closed);
}
