//! Writes that follow each other become full stripes, in order, and nobody waits for what does not come.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::join_all;
use raidd::engine::ArrayStatus;
use raidd::io::{Buf, Clock, Device, Fua, Pool, Slice, Zeroing};

use raidd_sim::setup::{Making, SimArray, make_array, platters, shape};
use raidd_sim::world::World;

const CHUNK: u64 = 4096;

fn filled(pool: &Pool, len: u64, with: u8) -> Slice {
    let mut buf: Buf = pool.try_alloc(len as usize).expect("memory for a payload");
    buf.fill(with);
    buf.freeze()
}

/// An array of this level with three data chunks of 4 KiB a stripe, consistent and idle.
fn on_array<F: Future<Output = ()> + 'static>(
    level: i32,
    story: impl FnOnce(World, SimArray) -> F + 'static,
) {
    let world = World::new(71);
    let inside = world.clone();
    world.run(async move {
        let shape = shape(level, 2, CHUNK / 1024, if level == 6 { 5 } else { 4 }, 1);
        let disks: Vec<_> = platters(&shape, 71).into_iter().map(Some).collect();
        let making = Making { block: 512, zero: true, assume_clean: false, bitmap_kib: None, uuid: 7 };
        let array = make_array(&inside, &shape, &disks, &making).await.unwrap();
        while array.status().resync_is_due {
            inside.sleep(Duration::from_millis(5)).await;
        }
        story(inside, array).await;
    });
}

fn since(before: &ArrayStatus, after: &ArrayStatus) -> (u64, u64, u64) {
    (
        after.client_bytes.1 - before.client_bytes.1,
        after.member_bytes.0 - before.member_bytes.0,
        after.member_bytes.1 - before.member_bytes.1,
    )
}

/// Eight clients that take turns in one stream of writes of two chunks, each sending the next when it is answered.
async fn write_stream(array: &SimArray, pool: &Pool, part: u64, from: u64) {
    let next = Rc::new(Cell::new(from));
    let client = || async {
        loop {
            let at = next.get();
            if at + part > array.size_bytes() {
                return;
            }
            next.set(at + part);
            array.write(at, vec![filled(pool, part, (at / part) as u8)], Fua::No).await.unwrap();
        }
    };
    join_all((0..8).map(|_| client())).await;
}

#[test]
fn a_stream_of_small_writes_becomes_full_stripes() {
    for (level, ideal) in [(5, 4.0 / 3.0), (6, 5.0 / 3.0)] {
        on_array(level, move |_, array| async move {
            let pool = Pool::new(8 << 20).unwrap();
            let before = array.status();
            write_stream(&array, &pool, 2 * CHUNK, 0).await;
            let (client, read, written) = since(&before, &array.status());
            assert!(client > 500 << 10);
            // The first write is nobody's continuation, and the last may lack one.
            assert!(read <= 8 * CHUNK, "{read} bytes were read for {client}");
            let times = written as f64 / client as f64;
            assert!(times < ideal * 1.05, "{times} bytes written for each of the client's");
            for at in (0..array.size_bytes() / (2 * CHUNK)).map(|number| number * 2 * CHUNK) {
                let got = array.read(at, pool.alloc(2 * CHUNK as usize).await).await.unwrap();
                assert!(got.iter().all(|&byte| byte == (at / (2 * CHUNK)) as u8), "at {at}");
            }
        });
    }
}

#[test]
fn one_write_at_a_time_is_not_kept_waiting_for_long() {
    on_array(5, |world, array| async move {
        let pool = Pool::new(8 << 20).unwrap();
        let (mut slow, mut count) = (0, 0);
        for at in (0..array.size_bytes() / CHUNK).map(|number| number * CHUNK) {
            let began = world.now();
            array.write(at, vec![filled(&pool, CHUNK, 1)], Fua::No).await.unwrap();
            count += 1;
            slow += u32::from(world.now() - began >= Duration::from_micros(300));
        }
        // Twice as many pass each time: 1, 3, 7, 15, ...; disks are slow now and then, too.
        assert!(slow <= 16, "{slow} of {count} waited");
    });
}

#[test]
fn writes_of_the_same_bytes_keep_their_order() {
    on_array(5, |_, array| async move {
        let pool = Pool::new(8 << 20).unwrap();
        let write = |at: u64, with: u8| array.write(at, vec![filled(&pool, CHUNK, with)], Fua::No);
        write(2 * CHUNK, 1).await.unwrap();
        // Goes on where that one ended, so it is kept open; then the same bytes again.
        let results = join_all([write(3 * CHUNK, 2), write(3 * CHUNK, 3)]).await;
        assert!(results.iter().all(Result::is_ok));
        let got = array.read(3 * CHUNK, pool.alloc(CHUNK as usize).await).await.unwrap();
        assert!(got.iter().all(|&byte| byte == 3));
    });
}

#[test]
fn who_overlaps_one_group_does_not_join_another() {
    on_array(5, |_, array| async move {
        let pool = Pool::new(8 << 20).unwrap();
        let write = |at: u64, len: u64, with: u8| array.write(at, vec![filled(&pool, len, with)], Fua::No);
        // Two streams that have come into one stripe: their next writes are kept open, at its beginning and at its end.
        write(2 * CHUNK, CHUNK, 1).await.unwrap();
        write(4 * CHUNK, CHUNK, 1).await.unwrap();
        let results = join_all([
            write(3 * CHUNK, CHUNK, 2),
            write(5 * CHUNK, CHUNK, 3),
            write(4 * CHUNK, 2 * CHUNK, 4), // goes on where the first one ends, and over the second
        ]);
        assert!(results.await.iter().all(Result::is_ok));
        let got = array.read(5 * CHUNK, pool.alloc(CHUNK as usize).await).await.unwrap();
        assert!(got.iter().all(|&byte| byte == 4), "what came first has been written last: {}", got[0]);
    });
}

#[test]
fn zeroes_come_after_what_was_kept_open_before() {
    on_array(5, |_, array| async move {
        let pool = Pool::new(8 << 20).unwrap();
        let write = |at: u64, with: u8| array.write(at, vec![filled(&pool, CHUNK, with)], Fua::No);
        write(2 * CHUNK, 1).await.unwrap();
        let mut kept = Box::pin(write(3 * CHUNK, 2));
        assert!(kept.as_mut().now_or_never().is_none());
        let zeroes = array.write_zeroes(3 * CHUNK, 3 * CHUNK, Zeroing::Allocate, Fua::No);
        let (kept, zeroes) = futures_util::future::join(kept, zeroes).await;
        kept.and(zeroes).unwrap();
        let got = array.read(3 * CHUNK, pool.alloc(CHUNK as usize).await).await.unwrap();
        assert!(got.iter().all(|&byte| byte == 0));
    });
}

#[test]
fn who_joined_a_write_that_is_given_up_hears_of_it() {
    on_array(5, |_, array| async move {
        let pool = Pool::new(8 << 20).unwrap();
        let write = |at: u64, with: u8| array.write(at, vec![filled(&pool, CHUNK, with)], Fua::No);
        write(2 * CHUNK, 1).await.unwrap();
        let mut first = Box::pin(write(3 * CHUNK, 2));
        assert!(first.as_mut().now_or_never().is_none());
        let mut joined = Box::pin(write(4 * CHUNK, 3));
        assert!(joined.as_mut().now_or_never().is_none());
        drop(first);
        joined.await.expect_err("nobody wrote it");
        write(3 * CHUNK, 4).await.unwrap();
    });
}
