//! Stand-ins for tests of the control thread: shards that answer as they are told, and a plain HTTP client.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::{ControlHandle, ControlSettings, Publisher, Shared, Summary, live, metrics, spawn};
use crate::clock;
use crate::config::Config;
use crate::position::Position;
use crate::shard::mesh::{self, ControlLink, Mesh};
use crate::shard::message::{self, Overloaded, Receipt, ToControl, ToShard, TopicStatus};
use crate::shard::stats::ShardStats;

/// The epoch of every topic of a stand-in shard.
const EPOCH: u64 = 0x00c0_ffee_0000_0001;

/// The same as it is written.
pub(super) const EPOCH_TEXT: &str = "00c0ffee00000001";

pub(super) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

pub(super) fn settings() -> ControlSettings {
    let mut settings = ControlSettings::new(&Config::default(), 100);
    settings.for_process = false;
    settings
}

/// Shard `n` is on CPU `10 + n`.
fn stats(shards: usize) -> Vec<Arc<ShardStats>> {
    (0..shards).map(|shard| Arc::new(ShardStats::new(10 + shard, shards))).collect()
}

pub(super) fn rings(shards: usize) -> (Vec<Mesh>, ControlLink) {
    mesh::connect(&stats(shards)).unwrap()
}

/// State of handlers without a dispatcher.
pub(super) fn shared(shards: usize) -> Shared {
    Shared {
        settings: arc_swap::ArcSwap::from_pointee(settings()),
        stats: stats(shards),
        commands: tokio::sync::mpsc::channel(1).0,
        draining: AtomicBool::new(false),
        drained: (0..shards).map(|_| AtomicBool::new(false)).collect(),
        ring_full: (0..shards).map(|_| AtomicU64::new(0)).collect(),
        ring_full_publishes: AtomicU64::new(0),
        connections_cut: AtomicU64::new(0),
        fanout: metrics::FanoutCache::default(),
        reloads: Default::default(),
        started_nanos: 0,
        started_unix_millis: 1_700_000_000_000,
        page_policy: live::content_security_policy(&[]),
    }
}

/// What a stand-in shard does with publishes and deletions.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Conduct {
    /// Hands them to so many subscribers.
    Deliver(u64),
    /// Says that it is full.
    Refuse,
    /// Says nothing, to anyone.
    Silent,
}

/// What a stand-in shard was told.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// The topic and the bytes of the frame.
    Publish(String, Vec<u8>),
    /// The topic.
    Delete(String),
    /// The window.
    Drain(u64),
}

/// A control thread whose shards are stand-ins.
pub(super) struct Rig {
    pub(super) client: Client,
    pub(super) handle: ControlHandle,
    pub(super) publisher: Publisher,
    /// What shards were told, and by number which.
    pub(super) told: mpsc::Receiver<(usize, Told)>,
    /// While false, a drain goes unanswered.
    pub(super) may_end: Arc<AtomicBool>,
    control: JoinHandle<Summary>,
    shards: Vec<JoinHandle<()>>,
    abandon: Arc<AtomicBool>,
}

impl Rig {
    pub(super) fn new(conduct: &[Conduct], settings: ControlSettings) -> Self {
        let (meshes, link) = rings(conduct.len());
        let stats = link.stats().to_vec();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (teller, told) = mpsc::channel();
        let (may_end, abandon) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicBool::new(false)));
        let shards = meshes.into_iter().zip(conduct).zip(stats).map(|((mesh, conduct), stats)| {
            let (may_end, abandon, teller) = (may_end.clone(), abandon.clone(), teller.clone());
            let shard = StandIn { mesh, stats, conduct: *conduct, teller, may_end, abandon };
            std::thread::spawn(move || shard.run())
        });
        let shards = shards.collect();
        let publisher = Publisher::new();
        let (handle, control) = spawn(settings, link, Some(listener), None, publisher.clone()).unwrap();
        Self { client: Client(address), handle, publisher, told, may_end, control, shards, abandon }
    }

    /// Waits for the control thread, which must have been told to stop.
    pub(super) fn join(self) -> Summary {
        let summary = self.control.join().unwrap();
        self.abandon.store(true, Relaxed);
        self.shards.into_iter().for_each(|shard| shard.join().unwrap());
        summary
    }

    pub(super) fn end(self) {
        self.handle.shutdown();
        self.join();
    }
}

/// A client of the control port.
#[derive(Clone, Copy)]
pub(super) struct Client(pub(super) SocketAddr);

impl Client {
    /// Sends one request on its own connection and gives the whole answer.
    pub(super) fn request(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(self.0).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    pub(super) fn get(&self, path: &str) -> String {
        self.request(&format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"))
    }

    /// Asks until the answer says `wanted`: a shard may stand still for a moment.
    pub(super) fn get_until(&self, path: &str, wanted: &str) -> String {
        let began = Instant::now();
        loop {
            let answer = self.get(path);
            if answer.contains(wanted) {
                return answer;
            }
            assert!(began.elapsed() < Duration::from_secs(60), "{path} never says {wanted:?}: {answer}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// `headers` are whole lines.
    pub(super) fn delete(&self, path: &str, headers: &str) -> String {
        self.request(&format!("DELETE {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n"))
    }

    /// `headers` are whole lines.
    pub(super) fn post(&self, path: &str, headers: &str, body: &str) -> String {
        self.request(&format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
             Content-Length: {}\r\n{headers}\r\n{body}",
            body.len()
        ))
    }
}

struct StandIn {
    mesh: Mesh,
    stats: Arc<ShardStats>,
    conduct: Conduct,
    teller: mpsc::Sender<(usize, Told)>,
    may_end: Arc<AtomicBool>,
    abandon: Arc<AtomicBool>,
}

impl StandIn {
    fn run(mut self) {
        let (mut offset, mut drain) = (0, false);
        while !self.abandon.load(Relaxed) {
            if self.conduct != Conduct::Silent {
                self.stats.last_tick_nanos.set(clock::monotonic_nanos());
            }
            while let Some(message) = self.mesh.receive(&mut Default::default()) {
                drain |= matches!(message, ToShard::Drain { .. });
                self.handle(message, &mut offset);
            }
            if drain && self.may_end.load(Relaxed) && self.conduct != Conduct::Silent {
                let shard = self.mesh.shard() as u16;
                self.mesh.send_to_control(ToControl::Drained { shard, cut: 1 });
                self.mesh.ring_doorbells(|_| ());
                return;
            }
            self.mesh.ring_doorbells(|_| ());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn handle(&mut self, message: ToShard, offset: &mut u64) {
        match message {
            ToShard::Publish { topic, frame, publisher: message::Publisher::Control { request, .. } } => {
                self.tell(Told::Publish(
                    topic.to_string(),
                    frame.bytes(crate::compression::Encoding::PLAIN).to_vec(),
                ));
                let outcome = match self.conduct {
                    Conduct::Deliver(subscribers) => {
                        *offset += 1;
                        Ok(Receipt { subscribers, position: Position { epoch: EPOCH, offset: *offset } })
                    }
                    Conduct::Refuse => Err(Overloaded::Rings),
                    Conduct::Silent => return,
                };
                self.mesh.send_to_control(ToControl::Published { request, outcome });
            }
            ToShard::Inspect { request, .. } => {
                let subscribers = match self.conduct {
                    Conduct::Deliver(subscribers) => subscribers,
                    Conduct::Refuse => 0,
                    Conduct::Silent => return,
                };
                let position = Position { epoch: EPOCH, offset: *offset };
                let status = TopicStatus { subscribers, messages: 0, position };
                self.mesh.send_to_control(ToControl::Inspected { request, status });
            }
            ToShard::Delete { topic, request } => {
                self.tell(Told::Delete(topic.to_string()));
                let outcome = match self.conduct {
                    Conduct::Deliver(_) => Ok(()),
                    Conduct::Refuse => Err(Overloaded::Rings),
                    Conduct::Silent => return,
                };
                self.mesh.send_to_control(ToControl::Deleted { request, outcome });
            }
            ToShard::Snapshot { request } if self.conduct != Conduct::Silent => {
                let mut fanout_micros = Box::new(Histogram::new(2).unwrap());
                fanout_micros.record(70).unwrap();
                self.mesh.send_to_control(ToControl::Snapshot { request, fanout_micros });
            }
            ToShard::Drain { window_millis, .. } => self.tell(Told::Drain(window_millis)),
            _ => {}
        }
    }

    fn tell(&self, told: Told) {
        // A test that does not look has dropped nothing it needs.
        let _ = self.teller.send((self.mesh.shard(), told));
    }
}
