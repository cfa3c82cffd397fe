//! Random clients: some speak nonsense, and the server lives; some speak properly, and a byte array says what is right.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use raidd::io::{Clock, Spawn};

use crate::disk::{Disk, initial};
use crate::peer::*;
use crate::world::World;

const SIZE: usize = 3 << 20;

/// Sends the bytes after `prepare`, reads whatever comes, and then the server must serve the next client as ever.
fn survives(seed: u64, piece: usize, in_transmission: bool, bytes: Vec<u8>) {
    let world = World::new(seed);
    let server = Server { piece, ..Server::of(&world, Disk::new(&world, SIZE)) };
    let same = server.clone();
    world.run(async move {
        let peer = match in_transmission {
            true => same.enter(true).await,
            false => same.connect(),
        };
        let peer = Rc::new(peer);
        let reader = peer.clone();
        same.world.spawn(async move { while !reader.wire.read_some().await.is_empty() {} });
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let (part, later) = rest.split_at(rest.len().min(1 + same.world.random(5000) as usize));
            rest = later;
            if peer.wire.write(part).await.is_err() {
                break;
            }
        }
        peer.wire.close_write();
        same.world.sleep(Duration::from_secs(100)).await;
        assert!(peer.end().is_some(), "the connection is still there");
        let mut next = same.enter(false).await;
        assert_eq!(next.read(0, 0, 1).await.map(|data| data.len()), Ok(1));
    });
    world.settle();
    server.assert_idle();
}

fn any_option() -> impl Strategy<Value = Vec<u8>> {
    let option = prop_oneof![0u32..14, any::<u32>()];
    let info =
        (vec(any::<u8>(), 0..6), vec(0u16..5, 0..5)).prop_map(|(name, infos)| info_data(&name, &infos));
    let data = prop_oneof![
        vec(any::<u8>(), 0..80),
        info,
        Just(info_data(b"vol0", &[3])),
        Just(info_data(b"", &[])),
        Just(vec![0; 20_000]),
    ];
    let lie = prop_oneof![9 => Just(0u32), 1 => any::<u32>()];
    (option, data, lie).prop_map(|(option, data, lie)| {
        let mut bytes = option_bytes(option, &data);
        let length = (data.len() as u32).wrapping_add(lie);
        bytes[12..16].copy_from_slice(&length.to_be_bytes());
        bytes
    })
}

fn any_request() -> impl Strategy<Value = Vec<u8>> {
    let offset = prop_oneof![0..2 * SIZE as u64, any::<u64>()];
    let length = prop_oneof![4 => 0u32..5000, 1 => any::<u32>(), 1 => 0u32..(9 << 20)];
    (0u16..10, prop_oneof![3 => 0u16..2, 1 => any::<u16>()], offset, length, 0u32..10).prop_map(
        |(command, flags, offset, length, lie)| {
            let mut bytes = request_bytes(command, flags, 5, offset, length);
            if command == WRITE && length < 5000 {
                bytes.resize(28 + length as usize - usize::from(lie == 0 && length > 0), 0xaa);
            }
            bytes
        },
    )
}

/// A request that is legal, and its place in a stream of such.
#[derive(Clone, Debug)]
struct Step {
    command: u16,
    flags: u16,
    offset: usize,
    len: usize,
    /// Waits until all before it are answered.
    barrier: bool,
}

fn any_step() -> impl Strategy<Value = Step> {
    let command = prop_oneof![3 => Just(READ), 4 => Just(WRITE), 1 => Just(ZEROES), 1 => Just(FLUSH)];
    let len = prop_oneof![8 => 0usize..6000, 2 => 0usize..200_000, 1 => 0usize..SIZE];
    (command, 0u16..2, 0..SIZE, len, any::<bool>()).prop_map(|(command, flags, offset, len, barrier)| Step {
        command,
        flags,
        offset,
        len: len.min(SIZE - offset),
        barrier,
    })
}

fn overlap(a: &Step, b: &Step) -> bool {
    a.command != FLUSH
        && b.command != FLUSH
        && !(a.command == READ && b.command == READ)
        && a.offset < b.offset + b.len
        && b.offset < a.offset + a.len
}

/// Cookies, what was asked, and the data that is expected.
type InFlight = Rc<RefCell<Vec<(u64, Step, Vec<u8>)>>>;

/// Steps in flight together never conflict, so that the byte array knows every answer.
fn agrees_with_an_array(seed: u64, piece: usize, capacity: usize, by_writing: bool, steps: Vec<Step>) {
    let world = World::new(seed);
    let server = Server { piece, capacity, ..Server::of(&world, Disk::new(&world, SIZE)) };
    if by_writing {
        server.disk.zero_by_writing();
    }
    let random = world.clone();
    server.disk.delay(move |_| Duration::from_micros(random.random(300)));
    let same = server.clone();
    world.run(async move {
        let peer = Rc::new(same.enter(true).await);
        let mut oracle: Vec<u8> = (0..SIZE).map(initial).collect();
        let in_flight: InFlight = Rc::default();
        let (reader, awaited) = (peer.clone(), in_flight.clone());
        same.world.spawn(async move {
            while let Some((cookie, error)) = reader.reply().await {
                assert_eq!(error, 0);
                let index = awaited.borrow().iter().position(|entry| entry.0 == cookie);
                let (_, step, expected) = awaited.borrow_mut().remove(index.expect("asked for"));
                let data = reader.wire.read(expected.len()).await;
                assert!(data == expected, "{step:?}");
            }
        });
        for (cookie, step) in steps.into_iter().enumerate() {
            while !in_flight.borrow().is_empty()
                && (step.barrier || in_flight.borrow().iter().any(|entry| overlap(&entry.1, &step)))
            {
                same.world.sleep(Duration::from_micros(50)).await;
            }
            let range = step.offset..step.offset + step.len;
            let (mut payload, mut expected) = (Vec::new(), Vec::new());
            match step.command {
                READ => expected = oracle[range].to_vec(),
                ZEROES => oracle[range].fill(0),
                WRITE => {
                    payload = (0..step.len).map(|index| (index * 3 + cookie * 11) as u8).collect();
                    oracle[range].copy_from_slice(&payload);
                }
                _ => (),
            }
            let (offset, len) = if step.command == FLUSH { (0, 0) } else { (step.offset, step.len) };
            let mut bytes = request_bytes(step.command, step.flags, cookie as u64, offset as u64, len as u32);
            bytes.extend(payload);
            in_flight.borrow_mut().push((cookie as u64, step, expected));
            peer.send(&bytes).await;
        }
        while !in_flight.borrow().is_empty() {
            same.world.sleep(Duration::from_millis(1)).await;
        }
        assert!(same.disk.content() == oracle);
        peer.send(&request_bytes(DISC, 0, 0, 0, 0)).await;
        while peer.end().is_none() {
            same.world.sleep(Duration::from_millis(1)).await;
        }
    });
    world.settle();
    server.assert_idle();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn nonsense_in_the_handshake(
        seed: u64,
        piece in 1usize..2000,
        flags in prop_oneof![4 => 0u32..4, 1 => any::<u32>()],
        options in vec(any_option(), 0..12),
        noise in vec(any::<u8>(), 0..300),
    ) {
        let bytes = [&flags.to_be_bytes()[..], &options.concat(), &noise].concat();
        survives(seed, piece, false, bytes);
    }

    #[test]
    fn nonsense_in_transmission(
        seed: u64,
        piece in 1usize..9000,
        requests in vec(any_request(), 0..40),
        noise in vec(any::<u8>(), 0..300),
    ) {
        survives(seed, piece, true, [requests.concat(), noise].concat());
    }

    #[test]
    fn proper_requests_do_what_they_say(
        seed: u64,
        piece in prop_oneof![Just(usize::MAX), 20usize..9000],
        capacity in prop_oneof![Just(1 << 20), 1000usize..100_000],
        by_writing: bool,
        steps in vec(any_step(), 1..60),
    ) {
        agrees_with_an_array(seed, piece, capacity, by_writing, steps);
    }
}
