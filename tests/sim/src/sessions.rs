//! The real NBD server in front of the array, and a client with several connections to it that are cut, left and made
//! anew.
//!
//! A *lane* is a place for a connection, kept by a task: it connects, serves until the connection is over, and connects
//! again.
//!
//! Invariants:
//! - A request that was not answered is over only when the session that may have taken it is: then nothing of it can land
//!   any more.
//! - A connection that nobody has cut, left or stopped does not end, and all that was asked on it is answered; so it is
//!   with one that was left in order.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use raidd::io::{Buf, Clock, Device, DeviceInfo, IoError, IoErrorKind, Slice, Spawn};
use raidd::nbd::{Attached, Export, ExportInfo, Exports, Limits, Pools, SessionEnd, Stop, serve};

use crate::clients::Done;
use crate::connection::{self, Connection, Got, Outcome, Request};
use crate::door::Door;
use crate::setup::{SimArray, session_pools};
use crate::stream::{Bell, Wire};
use crate::world::World;

const NAME: &str = "vol0";

/// So long the daemon waits for its clients to leave before it stops the array all the same.
const CLIENTS_LEAVE: Duration = Duration::from_secs(5);

/// No request takes so long, whatever hangs.
const PATIENCE: Duration = Duration::from_secs(600);

/// A server with one export, and its clients' connections.
pub struct Sessions {
    world: World,
    array: SimArray,
    done: Rc<Done>,
    pools: Pools,
    limits: Limits,
    /// Bytes that a connection holds each way.
    capacity: usize,
    /// Ends all connections.
    all: Stop,
    /// Ends those to the export, which then is no longer there.
    export: Stop,
    lanes: Vec<RefCell<Option<Rc<Connection>>>>,
    /// A lane has opened, or none will any more.
    changed: Bell,
    /// Sessions that are not over.
    serving: Cell<usize>,
    /// Connections are cut and left.
    is_rough: Cell<bool>,
    /// One request in so many brings trouble to its connection.
    trouble: u64,
}

/// What the server knows of exports.
#[derive(Clone)]
struct OneExport {
    array: SimArray,
    stop: Stop,
}

impl Exports for OneExport {
    type Device = Door;

    fn list(&self) -> Vec<ExportInfo> {
        vec![ExportInfo { name: NAME.into(), description: "simulated".into() }]
    }

    async fn open(&self, name: &str) -> Option<Export<Door>> {
        let info = self.list().pop().filter(|info| name.is_empty() || info.name == name)?;
        let device = Door::Direct(self.array.clone());
        Some(Export { name: info.name, description: info.description, device })
    }

    fn attach(&self, _name: &str) -> Option<Attached> {
        let attached = Attached { guard: Box::new(()), stop: self.stop.clone() };
        (!self.stop.is_stopped()).then_some(attached)
    }
}

impl Sessions {
    /// Lets clients in by 1 to 4 connections.
    pub fn open(world: &World, array: &SimArray, done: &Rc<Done>) -> Rc<Sessions> {
        let dice = world.dice();
        let defaults = Limits::default();
        let limits = Limits {
            requests_in_flight: *dice.pick(&[defaults.requests_in_flight, 1, 2, 5]),
            bytes_in_flight: *dice.pick(&[defaults.bytes_in_flight, 16 << 10, 200 << 10]),
            ..defaults
        };
        let sessions = Rc::new(Sessions {
            world: world.clone(),
            array: array.clone(),
            done: done.clone(),
            pools: session_pools(),
            limits,
            capacity: *dice.pick(&[1 << 20, 1 << 20, 200 << 10, 64 << 10, 5000]),
            all: Stop::new(),
            export: Stop::new(),
            lanes: (0..dice.between(1, 4)).map(|_| RefCell::default()).collect(),
            changed: Bell::default(),
            serving: Cell::new(0),
            is_rough: Cell::new(false),
            trouble: *dice.pick(&[0, 20, 60, 200]),
        });
        for lane in 0..sessions.lanes.len() {
            world.spawn(sessions.clone().keep(lane));
        }
        sessions
    }

    /// What is behind the server.
    pub fn info(&self) -> DeviceInfo {
        self.array.info()
    }

    /// How many connections there are at most.
    pub fn lanes(&self) -> usize {
        self.lanes.len()
    }

    fn is_stopped(&self) -> bool {
        self.all.is_stopped() || self.export.is_stopped()
    }

    /// Keeps a connection in this lane until the server stops.
    async fn keep(self: Rc<Sessions>, lane: usize) {
        let dice = self.world.dice();
        while !self.is_stopped() && !self.world.has_failed() {
            let (near, far) = Wire::pair(&self.world, self.capacity);
            if self.is_rough.get() && dice.one_in(16) {
                near.cut_after_receiving(dice.below(60) as usize);
            }
            let end = self.serve(far);
            let size_bytes = self.array.size_bytes();
            let name = if dice.one_in(2) { "" } else { NAME };
            let connection = Connection::open(&self.world, near, name, size_bytes).await;
            let Some(connection) = connection.map(Rc::new) else {
                end.wait().await;
                continue;
            };
            if !self.is_rough.get() {
                connection.wire().mend();
            }
            self.done.connections.set(self.done.connections.get() + 1);
            self.world.say(|| format!("sessions: lane {lane} is open"));
            self.world.spawn(connection.clone().send());
            self.world.spawn(connection.clone().receive());
            *self.lanes[lane].borrow_mut() = Some(connection.clone());
            self.changed.ring();
            connection.ended().await;
            self.lanes[lane].borrow_mut().take();
            self.changed.ring();
            let was_cut = connection.wire().is_cut();
            // Now it is the server that may not know yet.
            let end = end.wait().await;
            let unanswered = connection.bury(end);
            self.done.cuts.set(self.done.cuts.get() + u64::from(was_cut));
            if unanswered > 0 && !was_cut && !self.is_stopped() {
                self.world.fail(format!("{unanswered} requests were not answered, but: {end}"));
            }
            self.world.sleep(Duration::from_micros(dice.below(300))).await;
        }
        self.changed.ring();
    }

    /// Starts a session.
    fn serve(self: &Rc<Sessions>, far: Wire) -> Rc<Over> {
        let (over, sessions) = (Rc::new(Over::default()), self.clone());
        let slot = over.clone();
        self.serving.set(self.serving.get() + 1);
        self.world.spawn(async move {
            let exports = OneExport { array: sessions.array.clone(), stop: sessions.export.clone() };
            let (world, pools) = (sessions.world.clone(), sessions.pools.clone());
            let end = serve(far, exports, world, pools, sessions.limits, sessions.all.clone()).await;
            let is_usual = match end {
                SessionEnd::Disconnected | SessionEnd::Closed => true,
                SessionEnd::Stopped => sessions.is_stopped(),
                _ => false,
            };
            if !is_usual {
                sessions.world.fail(format!("a session ended strangely: {end}"));
            }
            sessions.serving.set(sessions.serving.get() - 1);
            slot.end.set(Some(end));
            slot.here.ring();
        });
        over
    }

    /// Does a request on that lane, if it is open, or on any.
    pub async fn ask(
        self: &Rc<Sessions>,
        lane: Option<usize>,
        request: Request,
        payload: Vec<Slice>,
        buf: Option<Buf>,
    ) -> Outcome {
        let Some(connection) = self.changed.until(|| self.choose(lane)).await else {
            return Err(IoError::new(IoErrorKind::ShuttingDown, "the server has stopped"));
        };
        let answer = connection.submit(request, payload, buf);
        if self.is_rough.get() && self.world.dice().one_in(self.trouble) {
            self.bring_trouble(&connection, request.length as usize);
        }
        answer.wait().await
    }

    /// Asks about a range, one list of extents for each question. None where the connection that is to hand has not
    /// chosen to ask such questions.
    pub async fn ask_status(
        self: &Rc<Sessions>,
        lane: Option<usize>,
        offset: u64,
        length: u64,
    ) -> Result<Option<Vec<Vec<(u64, u64)>>>, IoError> {
        let Some(connection) = self.changed.until(|| self.choose(lane)).await else {
            return Err(IoError::new(IoErrorKind::ShuttingDown, "the server has stopped"));
        };
        if !connection.can_ask_status() {
            return Ok(None);
        }
        let request = Request { command: connection::BLOCK_STATUS, flags: 0, offset, length };
        match connection.submit(request, Vec::new(), None).wait().await? {
            Got::Status(status) => Ok(Some(status)),
            other => panic!("a status that is none: {other:?}"),
        }
    }

    /// A connection to send a request on; `Some(None)` if there will be none.
    fn choose(&self, lane: Option<usize>) -> Option<Option<Rc<Connection>>> {
        let count = self.lanes.len();
        let first = lane.unwrap_or_else(|| self.world.random(count as u64) as usize);
        let lanes = (first..first + count).map(|lane| self.lanes[lane % count].borrow().clone());
        let open = lanes.flatten().find(|connection| connection.is_open());
        if open.is_none() && !self.is_stopped() { None } else { Some(open) }
    }

    fn bring_trouble(self: &Rc<Sessions>, connection: &Rc<Connection>, length: usize) {
        let dice = self.world.dice();
        let bytes = dice.below(2 * length.min(400 << 10) as u64 + 60) as usize;
        match dice.below(8) {
            0 => connection.leave(true),
            1 => connection.leave(false),
            2 | 3 => connection.wire().cut_after_sending(bytes),
            4 | 5 => connection.wire().cut_after_receiving(bytes),
            _ => self.cut_soon(connection.clone()),
        }
    }

    /// Cuts what is in that lane after a while, if anything is.
    pub fn cut_lane(self: &Rc<Sessions>, lane: usize) {
        let connection = self.lanes[lane].borrow().clone();
        if let Some(connection) = connection {
            self.cut_soon(connection);
        }
    }

    fn cut_soon(self: &Rc<Sessions>, connection: Rc<Connection>) {
        let sessions = self.clone();
        self.world.spawn(async move {
            let soon = Duration::from_micros(sessions.world.random(500));
            sessions.world.sleep(soon).await;
            if sessions.is_rough.get() {
                connection.wire().cut();
            }
        });
    }

    /// Whether connections are cut and left from now on.
    pub fn be_rough(&self, is_rough: bool) {
        self.is_rough.set(is_rough);
        if is_rough {
            return;
        }
        for connection in self.lanes.iter().filter_map(|lane| lane.borrow().clone()) {
            connection.wire().mend();
        }
    }

    /// Ends all connections as the daemon does: what is under way is answered, what comes late is refused.
    pub async fn stop(&self) {
        let stop = if self.world.random(2) == 0 { &self.all } else { &self.export };
        stop.stop();
        self.changed.ring();
        self.until_over(CLIENTS_LEAVE).await;
    }

    /// Waits until no session is left; an array that has stopped keeps none.
    pub async fn gone(&self) {
        self.until_over(PATIENCE).await;
        if self.serving.get() > 0 {
            self.world.fail("the array has stopped, but a session does not end");
        }
    }

    async fn until_over(&self, patience: Duration) {
        let deadline = self.world.now() + patience;
        while self.serving.get() > 0 && self.world.now() < deadline {
            self.world.sleep(Duration::from_millis(5)).await;
        }
    }
}

/// Where a session's end will be.
#[derive(Default)]
struct Over {
    end: Cell<Option<SessionEnd>>,
    here: Bell,
}

impl Over {
    async fn wait(&self) -> SessionEnd {
        self.here.until(|| self.end.get()).await
    }
}
