//! Tasks, timers, wakers, calls between threads, and the end of a reactor.

use std::cell::{Cell, RefCell};
use std::os::unix::net::UnixStream;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_channel::oneshot;
use futures_util::FutureExt;
use raidd::io::{Clock, MAX_BUF_BYTES, Pool, Slice, Spawn, Stream};
use raidd::reactor::{Socket, Stopped, runtime, start};

use crate::{finish, on_reactor, wait};

#[test]
fn sleeps_end_in_order_and_a_dropped_one_does_not_wake() {
    on_reactor(async || {
        let rt = runtime();
        let order = Rc::new(RefCell::new(Vec::new()));
        let begin = rt.now();
        for millis in [30, 10, 20, 0, 10] {
            let (rt2, order) = (rt.clone(), order.clone());
            rt.spawn(async move {
                rt2.sleep(Duration::from_millis(millis)).await;
                assert!(rt2.now() - begin >= Duration::from_millis(millis));
                order.borrow_mut().push(millis);
            });
        }
        {
            let mut cancelled = pin!(rt.sleep(Duration::from_millis(5)));
            assert!(cancelled.as_mut().now_or_never().is_none());
        }
        let never = Rc::new(Cell::new(false));
        let flag = never.clone();
        let mut sleep = Box::pin(rt.sleep(Duration::from_secs(3600)).map(move |()| flag.set(true)));
        assert!((&mut sleep).now_or_never().is_none());
        rt.sleep(Duration::from_millis(60)).await;
        drop(sleep);
        assert_eq!(*order.borrow(), [0, 10, 10, 20, 30]);
        assert!(!never.get());
        assert!(rt.wall() > Duration::from_secs(1_600_000_000));
    });
}

#[test]
fn a_task_that_never_rests_does_not_starve_the_ring() {
    on_reactor(async || {
        let rt = runtime();
        let stop = Rc::new(Cell::new(false));
        let flag = stop.clone();
        rt.spawn(async move {
            while !flag.get() {
                let mut yielded = false;
                std::future::poll_fn(|context| {
                    context.waker().wake_by_ref();
                    if std::mem::replace(&mut yielded, true) {
                        std::task::Poll::Ready(())
                    } else {
                        std::task::Poll::Pending
                    }
                })
                .await;
            }
        });
        let (a, b) = UnixStream::pair().unwrap();
        let (a, b) = (Socket::from_fd(a.into()), Socket::from_fd(b.into()));
        let pool = Pool::new(MAX_BUF_BYTES).unwrap();
        for _ in 0..100 {
            a.send(vec![Slice::zeroes(512)]).await.unwrap();
            b.recv(pool.alloc(512).await).await.unwrap();
        }
        rt.sleep(Duration::from_millis(5)).await;
        stop.set(true);
    });
}

#[test]
fn calls_between_reactors_and_from_threads_lose_no_wake_up() {
    const CALLS: u64 = 50_000;
    const POSTS: u64 = 25_000;
    let (a, a_thread) = start(0, "a").unwrap();
    let (b, b_thread) = start(1, "b").unwrap();
    assert_eq!((a.index(), b.index(), a.is_current()), (0, 1, false));

    // Each call is two crossings: there and back.
    let ping = a.call({
        let (a, b) = (a.clone(), b.clone());
        move || async move {
            assert!(a.is_current() && !b.is_current());
            let mut sum = 0;
            for i in 0..CALLS {
                let here = b.clone();
                let there = async move { if here.is_current() { i } else { 0 } };
                sum += b.call(move || there).await.unwrap();
            }
            sum
        }
    });
    // Meanwhile plain threads, each waiting now and then so that the reactor falls asleep in between.
    let counter = Arc::new(AtomicU64::new(0));
    let threads: Vec<_> = (0..4)
        .map(|thread| {
            let (target, counter) = (if thread % 2 == 0 { a.clone() } else { b.clone() }, counter.clone());
            std::thread::spawn(move || {
                for i in 0..POSTS {
                    let counter = counter.clone();
                    if i % 1000 == 0 {
                        let answer =
                            target.call(move || async move { counter.fetch_add(1, Ordering::Relaxed) });
                        wait(answer).unwrap();
                        std::thread::sleep(Duration::from_micros(100));
                    } else {
                        target
                            .post(move || assert!(counter.fetch_add(1, Ordering::Relaxed) < 4 * POSTS))
                            .unwrap();
                    }
                }
                wait(target.call(|| async {})).unwrap();
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(counter.load(Ordering::Relaxed), 4 * POSTS);
    assert_eq!(wait(ping).unwrap(), CALLS * (CALLS - 1) / 2);
    // On its own reactor a call is a task like any other.
    let own = a.clone();
    assert_eq!(wait(a.call(move || async move { own.call(|| async { 7 }).await })).unwrap(), Ok(7));
    finish(&a, a_thread);
    finish(&b, b_thread);
    assert_eq!(a.post(|| {}), Err(Stopped));
    assert!(wait(a.call(|| async {})).is_err());
}

#[test]
fn wakers_used_on_another_thread_lose_no_wake_up() {
    const MESSAGES: u64 = 50_000;
    let (handle, thread) = start(0, "woken").unwrap();
    let (sender, receiver) = std::sync::mpsc::channel::<oneshot::Sender<u64>>();
    let waker_thread = std::thread::spawn(move || {
        let mut count = 0;
        while let Ok(answer) = receiver.recv() {
            answer.send(count).unwrap();
            count += 1;
        }
        count
    });
    let last = handle.call(move || async move {
        let mut last = 0;
        for _ in 0..MESSAGES {
            let (answer, result) = oneshot::channel();
            sender.send(answer).unwrap();
            last = result.await.unwrap();
        }
        last
    });
    assert_eq!(wait(last).unwrap(), MESSAGES - 1);
    assert_eq!(waker_thread.join().unwrap(), MESSAGES);
    finish(&handle, thread);
}

struct DropFlag(Arc<AtomicU64>);

impl Drop for DropFlag {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn stopping_ends_what_is_pending() {
    let (handle, thread) = start(0, "stops").unwrap();
    let (a, _peer) = UnixStream::pair().unwrap();
    let pool = Pool::new(MAX_BUF_BYTES).unwrap();
    let memory = pool.clone();
    let pending = handle.call(move || async move {
        let socket = Socket::from_fd(a.into());
        drop(socket.recv(memory.alloc(MAX_BUF_BYTES).await).await);
    });
    let gone = Arc::new(AtomicU64::new(0));
    let flags: Vec<_> = (0..100).map(|_| DropFlag(gone.clone())).collect();
    let asleep = handle.call(move || async move {
        for flag in flags {
            runtime().spawn(async move {
                let _flag = flag;
                runtime().sleep(Duration::from_secs(3600)).await;
            });
        }
    });
    wait(asleep).unwrap();
    let begin = Instant::now();
    handle.stop();
    thread.join().unwrap();
    assert!(begin.elapsed() < Duration::from_secs(4), "nothing had to be given up");
    assert!(wait(pending).is_err());
    assert_eq!(pool.free_bytes(), pool.total_bytes());
    assert_eq!(gone.load(Ordering::SeqCst), 100);
}

#[test]
fn stopping_while_others_wake_its_tasks() {
    for _ in 0..50 {
        let (handle, thread) = start(0, "stops").unwrap();
        let wakers: Vec<_> = (0..2)
            .map(|_| {
                let (sender, receiver) = std::sync::mpsc::channel::<oneshot::Sender<()>>();
                let begun = handle.call(move || async move {
                    runtime().spawn(async move {
                        loop {
                            let (answer, result) = oneshot::channel();
                            if sender.send(answer).is_err() || result.await.is_err() {
                                return;
                            }
                        }
                    });
                });
                wait(begun).unwrap();
                std::thread::spawn(move || {
                    receiver.into_iter().for_each(|answer| answer.send(()).unwrap_or(()));
                })
            })
            .collect();
        std::thread::sleep(Duration::from_millis(2));
        finish(&handle, thread);
        wakers.into_iter().for_each(|waker| waker.join().unwrap());
    }
}

#[test]
fn a_panic_ends_the_reactor_and_reaches_who_joins() {
    let (handle, thread) = start(0, "panics").unwrap();
    let (a, _peer) = UnixStream::pair().unwrap();
    let pool = Pool::new(MAX_BUF_BYTES).unwrap();
    let memory = pool.clone();
    let pending = handle.call(move || async move {
        let socket = Socket::from_fd(a.into());
        drop(socket.recv(memory.alloc(4096).await).await);
    });
    let broken = handle.call(|| async { panic!("on purpose") });
    let panic = thread.join().unwrap_err();
    assert_eq!(panic.downcast_ref::<&str>(), Some(&"on purpose"));
    assert!(wait(pending).is_err() && wait(broken).is_err());
    assert_eq!(pool.free_bytes(), pool.total_bytes());
}

#[test]
#[should_panic(expected = "only on a reactor's thread")]
fn the_runtime_is_for_reactors() {
    runtime();
}
