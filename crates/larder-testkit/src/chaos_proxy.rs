use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep, sleep_until};

use crate::{Error, ports};

/// Which way bytes go through a [`ChaosProxy`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the server.
    ToUpstream,
    /// From the server to the client.
    ToClient,
}

impl Direction {
    /// Both ways.
    pub const BOTH: [Self; 2] = [Self::ToUpstream, Self::ToClient];
}

/// What a [`ChaosProxy`] does to the bytes that go one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkFault {
    /// Nothing: bytes arrive as they were sent.
    None,
    /// Bytes arrive this much later. Bandwidth stays, up to 1 MiB on the way.
    Delay(Duration),
    /// Bytes are held back, and those of a connection arrive together once the fault is another one.
    Hold,
    /// Bytes vanish while the connection stays open, as behind a firewall that drops packets.
    Blackhole,
    /// So many more bytes of each connection arrive, then the connection is closed.
    Truncate(u64),
    /// So many bytes arrive per second.
    Throttle(NonZeroU32),
}

/// A TCP proxy on a free loopback port, with faults that are switched while it runs.
///
/// It runs on the runtime it was started on, and ends, with all connections, when it is dropped.
/// Buffers are bounded, so a slow side slows the other down as it would without a proxy.
///
/// ```
/// use larder_testkit::{ChaosProxy, Direction, LinkFault, RedisServer};
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// let server = RedisServer::start()?;
/// let proxy = ChaosProxy::start(server.address()).await?;
/// let url = format!("redis://{}", proxy.address());
/// // Requests get through, and their answers never arrive:
/// proxy.inject([Direction::ToClient], LinkFault::Blackhole);
/// # assert!(url.starts_with("redis://127.0.0.1:"));
/// # Ok::<(), larder_testkit::Error>(())
/// # }).unwrap();
/// ```
#[derive(Debug)]
pub struct ChaosProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    task: AbortHandle,
}

#[derive(Debug)]
struct Shared {
    upstream: SocketAddr,
    settings: watch::Sender<Settings>,
    door: watch::Sender<Door>,
    accepted: AtomicUsize,
    open: AtomicUsize,
    /// Bytes that were received, by direction.
    received: [AtomicU64; 2],
}

/// What every connection watches.
#[derive(Clone, Copy, Debug)]
struct Settings {
    links: [Link; 2],
    /// Counts the orders to reset; a connection that sees it rise is reset.
    resets: u64,
}

#[derive(Clone, Copy, Debug)]
struct Link {
    fault: LinkFault,
    /// Rises with every order, so that a new [`LinkFault::Truncate`] counts anew.
    order: u64,
}

/// Whether new connections find somebody listening: what the test wants, and what is so.
#[derive(Clone, Copy, Debug)]
struct Door {
    wanted: Welcome,
    is: Welcome,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Welcome {
    Accept,
    Refuse,
}

/// Connections at once; more wait in the listener's backlog.
const MAX_CONNECTIONS: usize = 1024;
/// What is on its way in one direction of a connection: so many chunks of so many bytes.
const QUEUE: usize = 64;
const CHUNK: usize = 16 << 10;
/// How often binding is tried: another process may take a port between the look and the bind.
const BIND_ATTEMPTS: usize = 8;
/// A throttled link sends so many pieces per second.
const PIECES_PER_SECOND: u32 = 20;

impl ChaosProxy {
    /// Starts a proxy in front of `upstream` that does no harm yet.
    pub async fn start(upstream: SocketAddr) -> Result<Self, Error> {
        let listener = bind_somewhere()?;
        let address = listener
            .local_addr()
            .map_err(|e| Error::io("the proxy has no address", e))?;
        let link = Link {
            fault: LinkFault::None,
            order: 0,
        };
        let shared = Arc::new(Shared {
            upstream,
            settings: watch::Sender::new(Settings {
                links: [link; 2],
                resets: 0,
            }),
            door: watch::Sender::new(Door {
                wanted: Welcome::Accept,
                is: Welcome::Accept,
            }),
            accepted: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            received: Default::default(),
        });
        let task = tokio::spawn(serve(shared.clone(), address, listener)).abort_handle();
        Ok(Self {
            address,
            shared,
            task,
        })
    }

    /// Where the proxy listens; `format!("redis://{}", proxy.address())` is a URL for clients.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on `fault` befalls the bytes that go these ways, on all connections.
    pub fn inject(&self, directions: impl IntoIterator<Item = Direction>, fault: LinkFault) {
        self.shared.settings.send_modify(|settings| {
            for direction in directions {
                let link = &mut settings.links[direction as usize];
                link.fault = fault;
                link.order += 1;
            }
        });
    }

    /// Takes the faults of both directions away. Bytes that vanished stay away.
    pub fn heal(&self) {
        self.inject(Direction::BOTH, LinkFault::None);
    }

    /// Ends every open connection with a TCP reset, towards both sides.
    pub fn reset_connections(&self) {
        self.shared
            .settings
            .send_modify(|settings| settings.resets += 1);
    }

    /// Stops listening, so that new connections are refused; open ones stay. Returns once it is so.
    pub async fn refuse(&self) {
        self.want(Welcome::Refuse).await;
    }

    /// Listens again on the same port. Returns once it is so.
    pub async fn accept(&self) {
        self.want(Welcome::Accept).await;
    }

    /// How many connections were accepted so far.
    pub fn connections(&self) -> usize {
        self.shared.accepted.load(Ordering::SeqCst)
    }

    /// How many connections are open now.
    pub fn open_connections(&self) -> usize {
        self.shared.open.load(Ordering::SeqCst)
    }

    /// How many bytes were received that go this way, whatever became of them.
    pub fn received(&self, direction: Direction) -> u64 {
        self.shared.received[direction as usize].load(Ordering::SeqCst)
    }

    async fn want(&self, welcome: Welcome) {
        let mut door = self.shared.door.subscribe();
        self.shared.door.send_modify(|door| door.wanted = welcome);
        // The sender lives in `self`, so the wait cannot end for want of one.
        let _ = door.wait_for(|door| door.is == welcome).await;
    }
}

impl Drop for ChaosProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Accepts and refuses as the door says, until the proxy is dropped.
async fn serve(shared: Arc<Shared>, address: SocketAddr, listener: TcpListener) {
    let mut door = shared.door.subscribe();
    let mut listener = Some(listener);
    let mut connections = JoinSet::new();
    loop {
        let wanted = door.borrow_and_update().wanted;
        match wanted {
            Welcome::Refuse => listener = None,
            Welcome::Accept if listener.is_none() => listener = bind(address).ok(),
            Welcome::Accept => {}
        }
        let is = if listener.is_some() {
            Welcome::Accept
        } else {
            Welcome::Refuse
        };
        if is == wanted {
            shared
                .door
                .send_if_modified(|door| std::mem::replace(&mut door.is, is) != is);
        }
        tokio::select! {
            _ = door.changed() => {}
            Some(_) = connections.join_next() => {}
            client = accept(&listener), if connections.len() < MAX_CONNECTIONS => {
                connections.spawn(connection(Open::count(&shared), client));
            }
            // Somebody else holds the port: it is tried again until it is free.
            () = sleep(Duration::from_millis(10)), if is != wanted => {}
        }
    }
}

/// The next connection; never, where nobody listens.
async fn accept(listener: &Option<TcpListener>) -> TcpStream {
    let Some(listener) = listener else {
        return std::future::pending().await;
    };
    loop {
        match listener.accept().await {
            Ok((client, _)) => return client,
            // The client has gone again, or the process is short of files for a moment.
            Err(_) => sleep(Duration::from_millis(10)).await,
        }
    }
}

fn bind_somewhere() -> Result<TcpListener, Error> {
    let mut last = None;
    for _ in 0..BIND_ATTEMPTS {
        match bind((Ipv4Addr::LOCALHOST, ports::free()?).into()) {
            Ok(listener) => return Ok(listener),
            Err(error) => last = Some(error),
        }
    }
    Err(match last {
        Some(error) => Error::io("the proxy finds no port", error),
        None => Error::new("the proxy finds no port"),
    })
}

fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    // The connections of a listener that was closed do not keep its port.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(MAX_CONNECTIONS as u32)
}

/// Counts a connection for as long as it is open.
struct Open {
    shared: Arc<Shared>,
    /// How many orders to reset there had been when it was accepted.
    resets: u64,
}

impl Open {
    fn count(shared: &Arc<Shared>) -> Self {
        shared.accepted.fetch_add(1, Ordering::SeqCst);
        shared.open.fetch_add(1, Ordering::SeqCst);
        Self {
            shared: shared.clone(),
            resets: shared.settings.borrow().resets,
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.shared.open.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn connection(open: Open, mut client: TcpStream) {
    let shared = &open.shared;
    let mut settings = shared.settings.subscribe();
    let Ok(mut upstream) = TcpStream::connect(shared.upstream).await else {
        reset(&client);
        return;
    };
    // What the proxy holds back it holds back on purpose.
    let _ = (client.set_nodelay(true), upstream.set_nodelay(true));
    let through = {
        let (from_client, to_client) = client.split();
        let (from_upstream, to_upstream) = upstream.split();
        let pump = |direction| Pump::new(direction, shared);
        let there = pump(Direction::ToUpstream).run(shared, from_client, to_upstream);
        let back = pump(Direction::ToClient).run(shared, from_upstream, to_client);
        tokio::select! {
            _ = async { tokio::try_join!(there, back) } => Through::Closed,
            _ = settings.wait_for(|settings| settings.resets != open.resets) => Through::Reset,
        }
    };
    if through == Through::Reset {
        reset(&client);
        reset(&upstream);
    }
}

/// How a connection ended.
#[derive(PartialEq)]
enum Through {
    Closed,
    Reset,
}

/// Has the socket send a reset when it is dropped, rather than an orderly end.
fn reset(socket: &TcpStream) {
    let _ = socket.set_zero_linger();
}

/// One direction of one connection.
struct Pump {
    direction: Direction,
    settings: watch::Receiver<Settings>,
    /// Under [`LinkFault::Truncate`]: for which order, and how many bytes may still pass.
    allowance: (u64, u64),
}

struct Chunk {
    bytes: Bytes,
    arrived: Instant,
}

/// The direction is over, and the whole connection with it.
struct Cut;

impl Pump {
    fn new(direction: Direction, shared: &Shared) -> Self {
        Self {
            direction,
            settings: shared.settings.subscribe(),
            allowance: (u64::MAX, 0),
        }
    }

    /// Moves bytes until the sender has said its last; the receiver then hears that too.
    async fn run(
        mut self,
        shared: &Shared,
        from: impl AsyncRead + Unpin,
        mut to: impl AsyncWrite + Unpin,
    ) -> Result<(), Cut> {
        let received = &shared.received[self.direction as usize];
        let (queue, mut arrivals) = mpsc::channel::<Chunk>(QUEUE);
        let send = async {
            while let Some(mut chunk) = arrivals.recv().await {
                if self.was_held().await? {
                    chunk.bytes = joined(chunk.bytes, &mut arrivals);
                }
                self.deliver(chunk, &mut to).await?;
            }
            self.outlast_blackhole().await?;
            to.shutdown().await.map_err(|_| Cut)
        };
        tokio::try_join!(receive(from, queue, received), send).map(|_| ())
    }

    /// Waits while bytes are held back; whether they were.
    async fn was_held(&mut self) -> Result<bool, Cut> {
        let at = self.direction as usize;
        let is_held = |settings: &Settings| settings.links[at].fault == LinkFault::Hold;
        let held = is_held(&self.settings.borrow());
        let passing = self.settings.wait_for(|settings| !is_held(settings)).await;
        passing.map(|_| held).map_err(|_| Cut)
    }

    /// Where bytes vanish, the news that a connection ended vanishes too.
    async fn outlast_blackhole(&mut self) -> Result<(), Cut> {
        let at = self.direction as usize;
        let passing = |settings: &Settings| settings.links[at].fault != LinkFault::Blackhole;
        self.settings
            .wait_for(passing)
            .await
            .map(drop)
            .map_err(|_| Cut)
    }

    /// Sends one chunk, or does to it what the fault of the moment says.
    async fn deliver(
        &mut self,
        mut chunk: Chunk,
        to: &mut (impl AsyncWrite + Unpin),
    ) -> Result<(), Cut> {
        while !chunk.bytes.is_empty() {
            let link = self.settings.borrow_and_update().links[self.direction as usize];
            match link.fault {
                LinkFault::None => return write(to, &chunk.bytes).await,
                LinkFault::Blackhole => return Ok(()),
                LinkFault::Hold => drop(self.was_held().await?),
                LinkFault::Delay(delay) => {
                    if self.undisturbed(sleep_until(chunk.arrived + delay)).await? {
                        return write(to, &chunk.bytes).await;
                    }
                }
                LinkFault::Throttle(rate) => {
                    let piece = (rate.get() / PIECES_PER_SECOND).max(1) as usize;
                    let piece = chunk.bytes.split_to(piece.min(chunk.bytes.len()));
                    write(to, &piece).await?;
                    let pause =
                        Duration::from_secs(1).mul_f64(piece.len() as f64 / f64::from(rate.get()));
                    self.undisturbed(sleep(pause)).await?;
                }
                LinkFault::Truncate(allowed) => {
                    if self.allowance.0 != link.order {
                        self.allowance = (link.order, allowed);
                    }
                    return self.deliver_up_to_the_cut(&chunk.bytes, to).await;
                }
            }
        }
        Ok(())
    }

    async fn deliver_up_to_the_cut(
        &mut self,
        bytes: &Bytes,
        to: &mut (impl AsyncWrite + Unpin),
    ) -> Result<(), Cut> {
        let left = usize::try_from(self.allowance.1).unwrap_or(usize::MAX);
        let passing = bytes.len().min(left);
        write(to, &bytes[..passing]).await?;
        self.allowance.1 -= passing as u64;
        if passing < bytes.len() || self.allowance.1 == 0 {
            // An orderly end, so that what did pass is read before the connection is gone.
            let _ = to.shutdown().await;
            return Err(Cut);
        }
        Ok(())
    }

    /// Waits; whether the wait ended by itself, and not by new orders.
    async fn undisturbed(&mut self, wait: impl Future<Output = ()>) -> Result<bool, Cut> {
        tokio::select! {
            biased;
            changed = self.settings.changed() => changed.map(|()| false).map_err(|_| Cut),
            () = wait => Ok(true),
        }
    }
}

/// What was held back, in one piece.
fn joined(first: Bytes, arrivals: &mut mpsc::Receiver<Chunk>) -> Bytes {
    let mut bytes = BytesMut::from(first);
    while let Ok(chunk) = arrivals.try_recv() {
        bytes.extend_from_slice(&chunk.bytes);
    }
    bytes.freeze()
}

async fn receive(
    mut from: impl AsyncRead + Unpin,
    queue: mpsc::Sender<Chunk>,
    received: &AtomicU64,
) -> Result<(), Cut> {
    loop {
        let mut buffer = BytesMut::with_capacity(CHUNK);
        // A reset by the sender arrives as an orderly end; `reset_connections` is for the other.
        if !matches!(from.read_buf(&mut buffer).await, Ok(1..)) {
            return Ok(());
        }
        let chunk = Chunk {
            bytes: buffer.freeze(),
            arrived: Instant::now(),
        };
        let length = chunk.bytes.len() as u64;
        queue.send(chunk).await.map_err(|_| Cut)?;
        received.fetch_add(length, Ordering::SeqCst);
    }
}

async fn write(to: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> Result<(), Cut> {
    to.write_all(bytes).await.map_err(|_| Cut)
}
