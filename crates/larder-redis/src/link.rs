use std::future::{Future, pending, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::task::Poll;

use larder::clock::BoxFuture;
use redis::aio::MultiplexedConnection;
use redis::{Cmd, ErrorKind, Pipeline, RedisError, RedisResult, ServerError, Value};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::error::is_unknown_command;
use crate::options::{Plan, Tracking};
use crate::pushes::Pushes;

/// Commands that are sent together and answered in their order, one reply each.
pub(crate) struct Batch {
    commands: Pipeline,
    payload_bytes: usize,
    runs_scripts: bool,
}

/// What is written counts as one more command in flight for every so many bytes.
const BYTES_PER_PLACE: usize = 16 << 10;

impl Batch {
    pub(crate) fn of(commands: impl ExactSizeIterator<Item = Cmd>) -> Self {
        let mut batch = Self {
            commands: Pipeline::with_capacity(commands.len()),
            payload_bytes: 0,
            runs_scripts: false,
        };
        for command in commands {
            batch.commands.add_command(command);
        }
        batch
    }

    pub(crate) fn one(command: Cmd) -> Self {
        Self::of(std::iter::once(command))
    }

    /// Says that the commands carry so many bytes of values.
    pub(crate) fn carrying(self, payload_bytes: usize) -> Self {
        Self {
            payload_bytes,
            ..self
        }
    }

    /// Says that the commands run scripts: a server without Lua is not asked.
    pub(crate) fn running_scripts(self) -> Self {
        Self {
            runs_scripts: true,
            ..self
        }
    }

    fn places(&self) -> usize {
        self.commands.len() + self.payload_bytes / BYTES_PER_PLACE
    }
}

/// How a server knows a connection.
///
/// A connection that was given up may still have a write under way, in the network or in the
/// buffers of a server that stands still. If it arrived after an invalidation that was sent on the
/// next connection, it would bring an old value back. So the next connection has the server drop
/// the old one, and all that still comes on it, before it carries any command.
///
/// The address is named beside the id because ids start anew when a server does, and nobody
/// else's connection may be hit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    id: u64,
    address: SocketAddr,
}

impl Identity {
    /// Reads the answer to CLIENT INFO: `id=7 addr=127.0.0.1:40000 ...`. Connections over a Unix
    /// socket have no address of their own, hence no identity.
    fn parse(info: &str) -> Option<Self> {
        let field = |name: &str| info.split(' ').find_map(|field| field.strip_prefix(name));
        Some(Self {
            id: field("id=")?.parse().ok()?,
            address: field("addr=")?.parse().ok()?,
        })
    }
}

/// What a server says about itself and us at the begin of a connection.
#[derive(Default)]
struct Greeting {
    identity: Option<Identity>,
    without_scripts: Option<ServerError>,
    /// Where what the server pushes is to be had, if it watches keys for this connection.
    pushes: Option<Arc<Pushes>>,
}

impl Greeting {
    /// Reads the answers to CLIENT INFO and EVALSHA.
    fn parse(replies: &[Value]) -> Self {
        let [.., info, script] = replies else {
            return Self::default();
        };
        let identity = match info {
            Value::BulkString(info) => Identity::parse(&String::from_utf8_lossy(info)),
            Value::VerbatimString { text, .. } => Identity::parse(text),
            _ => None,
        };
        let without_scripts = match script {
            Value::ServerError(error) if is_unknown_command(error) => Some(error.clone()),
            _ => None,
        };
        Self {
            identity,
            without_scripts,
            pushes: None,
        }
    }
}

/// Makes a connection, has the server forget `ghost`, and asks it who we are and whether it runs
/// scripts. Servers before 6.2 cannot say who we are, and users may be forbidden to ask; they go
/// without.
///
/// A server that does not know EVALSHA repeats the arguments in its error, and if they are no text,
/// as tokens are not, the client cannot read the answer and gives the connection up. So it is asked
/// once with arguments that are text, for a script that nobody has.
async fn connect(
    plan: &Plan,
    ghost: Option<Identity>,
    given_up: &GivenUp,
) -> RedisResult<(MultiplexedConnection, Greeting)> {
    let (mut connection, pushes) = dial(plan, given_up).await?;
    let mut commands = Pipeline::new();
    if let Some(Identity { id, address }) = ghost {
        let kill = commands.cmd("CLIENT").arg("KILL");
        kill.arg("ID").arg(id);
        kill.arg("ADDR").arg(address.to_string());
    }
    let asked_to_watch = commands.len();
    if pushes.is_some() {
        let track = commands.cmd("CLIENT").arg("TRACKING").arg("ON");
        match plan.tracking {
            Tracking::OptIn => drop(track.arg("OPTIN")),
            // Not NOLOOP: with it a connection is not told either of what the server evicts or
            // forgets while it carries out a command of that connection.
            Tracking::Off | Tracking::All => {}
        }
    }
    commands.cmd("CLIENT").arg("INFO");
    commands.cmd("EVALSHA").arg("0".repeat(40)).arg(0);
    let count = commands.len();
    let replies = connection.send_packed_commands(&commands, 0, count).await?;
    let watches = !matches!(replies.get(asked_to_watch), Some(Value::ServerError(_)));
    let greeting = Greeting {
        pushes: pushes.filter(|_| watches),
        ..Greeting::parse(&replies)
    };
    Ok((connection, greeting))
}

/// Connects, by RESP3 where keys are to be watched. Servers before Redis 6, and some proxies, do not
/// know it; they push nothing, and everything else works.
async fn dial(
    plan: &Plan,
    given_up: &GivenUp,
) -> RedisResult<(MultiplexedConnection, Option<Arc<Pushes>>)> {
    if plan.tracking != Tracking::Off {
        let pushes = Arc::new(Pushes::of(given_up));
        let ear = Arc::clone(&pushes);
        let config = plan.config.clone();
        let config = config.set_push_sender(move |push| ear.hear(push));
        let client = plan.pushing_client()?;
        let dialled = client.get_multiplexed_async_connection_with_config(&config);
        match dialled.await {
            Err(error) if lacks_resp3(&error) => {}
            dialled => return Ok((dialled?, Some(pushes))),
        }
    }
    let dialled = plan
        .client
        .get_multiplexed_async_connection_with_config(&plan.config);
    Ok((dialled.await?, None))
}

fn lacks_resp3(error: &RedisError) -> bool {
    error.kind() == ErrorKind::RESP3NotSupported
        || ServerError::try_from(error.clone())
            .is_ok_and(|error| is_unknown_command(&error) || error.code() == "NOPROTO")
}

/// One connection while it lasts.
///
/// A caller may go away at any time, and does when its budget is spent; its command is then still
/// on the way. The place it took in the count of commands in flight stays taken until the answer
/// came, so that a server which does not answer is not sent ever more.
pub(crate) struct Link {
    connection: MultiplexedConnection,
    greeting: Greeting,
    /// Where commands are waited for whose callers went away.
    runtime: Handle,
    max_in_flight: u32,
    places: Arc<Semaphore>,
    /// How many of the places belong to callers that went away.
    abandoned: AtomicUsize,
    /// Grows with every answer: what tells a slow command from a dead connection.
    answers: AtomicU64,
    given_up: GivenUp,
}

/// Whether a connection was given up: by those who use it, or by what it brings.
pub(crate) type GivenUp = Arc<watch::Sender<bool>>;

/// Why a batch has no replies.
pub(crate) enum Trouble {
    /// It was not sent: too many commands wait for a server that does not answer.
    Crowded,
    /// It was perhaps sent.
    Failed(RedisError),
}

type Exchange = BoxFuture<'static, RedisResult<Vec<Value>>>;

impl Link {
    /// Connects, and has the server forget `ghost` before anything else is sent.
    pub(crate) async fn open(plan: &Plan, ghost: Option<Identity>) -> RedisResult<Self> {
        let patience = plan.options.connect_timeout;
        let given_up = GivenUp::default();
        let connecting = connect(plan, ghost, &given_up);
        let (connection, greeting) = tokio::time::timeout(patience, connecting)
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        let max_in_flight = plan.options.max_in_flight;
        Ok(Self {
            connection,
            greeting,
            runtime: Handle::current(),
            max_in_flight,
            places: Arc::new(Semaphore::new(max_in_flight as usize)),
            abandoned: AtomicUsize::new(0),
            answers: AtomicU64::new(0),
            given_up,
        })
    }

    /// How the server knows this connection, if it says so.
    pub(crate) fn identity(&self) -> Option<&Identity> {
        self.greeting.identity.as_ref()
    }

    /// Whether it broke, or stopped answering for good: nothing should be sent on it any more.
    pub(crate) fn is_given_up(&self) -> bool {
        *self.given_up.borrow()
    }

    /// What the server pushes on this connection; `None` if it watches no keys for it.
    pub(crate) fn pushes(&self) -> Option<&Arc<Pushes>> {
        self.greeting.pushes.as_ref()
    }

    /// Whether it ever brought an answer.
    pub(crate) fn has_answered(&self) -> bool {
        self.answers.load(Relaxed) > 0
    }

    /// Ends what still waits for answers behind callers that went away.
    pub(crate) fn give_up(&self) {
        self.given_up.send_replace(true);
        if let Some(pushes) = self.pushes() {
            pushes.end();
        }
    }

    /// Sends the commands and waits for their replies. A server's error is a reply.
    pub(crate) async fn exchange(
        self: &Arc<Self>,
        batch: Arc<Batch>,
    ) -> Result<Vec<Value>, Trouble> {
        if let Some(error) = self.greeting.without_scripts.as_ref()
            && batch.runs_scripts
        {
            return Ok(vec![
                Value::ServerError(error.clone());
                batch.commands.len()
            ]);
        }
        let taken = self.take_places(batch.places()).await?;
        let places = taken.num_permits();
        let flight = Flight {
            exchange: Box::pin(Arc::clone(self).send(batch, taken)),
            places,
            link: self,
            landed: false,
        };
        flight.land().await.map_err(Trouble::Failed)
    }

    async fn send(
        self: Arc<Self>,
        batch: Arc<Batch>,
        _until_answered: OwnedSemaphorePermit,
    ) -> RedisResult<Vec<Value>> {
        let answers = self.answers.load(Relaxed);
        let mut connection = self.connection.clone();
        let count = batch.commands.len();
        let replies = connection
            .send_packed_commands(&batch.commands, 0, count)
            .await;
        self.learn(&replies, answers);
        replies
    }

    fn learn(&self, replies: &RedisResult<Vec<Value>>, answers_before: u64) {
        match replies {
            Ok(_) => {
                self.answers.fetch_add(1, Relaxed);
            }
            // Others were answered meanwhile: this command alone is slow.
            Err(error) if error.is_timeout() && self.answers.load(Relaxed) != answers_before => {}
            Err(_) => self.give_up(),
        }
    }

    async fn take_places(&self, wanted: usize) -> Result<OwnedSemaphorePermit, Trouble> {
        let wanted =
            u32::try_from(wanted).map_or(self.max_in_flight, |n| n.min(self.max_in_flight));
        if let Ok(taken) = Arc::clone(&self.places).try_acquire_many_owned(wanted) {
            return Ok(taken);
        }
        // A burst of callers that all wait for an answer is worth waiting for. Places that are
        // taken by callers long gone are not: the server has stopped answering.
        if self.abandoned.load(Relaxed) >= self.max_in_flight as usize / 2 {
            return Err(Trouble::Crowded);
        }
        let taken = Arc::clone(&self.places).acquire_many_owned(wanted).await;
        taken.map_err(|_never_closed| Trouble::Crowded)
    }

    /// Waits for the answer in the place of a caller that went away.
    fn abandon(self: &Arc<Self>, mut exchange: Exchange, places: usize) {
        let link = Arc::clone(self);
        link.abandoned.fetch_add(places, Relaxed);
        self.runtime.spawn(async move {
            let mut given_up = link.given_up.subscribe();
            let mut given_up = pin!(given_up.wait_for(|given_up| *given_up));
            poll_fn(|context| {
                let answered = exchange.as_mut().poll(context).is_ready();
                match answered || given_up.as_mut().poll(context).is_ready() {
                    true => Poll::Ready(()),
                    false => Poll::Pending,
                }
            })
            .await;
            link.abandoned.fetch_sub(places, Relaxed);
        });
    }
}

/// A batch on its way. Dropped before it landed, it goes on in a task of its own.
struct Flight<'a> {
    exchange: Exchange,
    places: usize,
    link: &'a Arc<Link>,
    landed: bool,
}

impl Flight<'_> {
    async fn land(mut self) -> RedisResult<Vec<Value>> {
        let replies = (&mut self.exchange).await;
        self.landed = true;
        replies
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        if !self.landed {
            // Boxing a future without fields does not allocate.
            let exchange = std::mem::replace(&mut self.exchange, Box::pin(pending()));
            self.link.abandon(exchange, self.places);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_knows_itself_by_id_and_address() {
        let info = "id=7 addr=127.0.0.1:40000 laddr=127.0.0.1:6379 fd=8 name= user=default\n";
        let identity = Identity::parse(info).unwrap();
        assert_eq!(identity.id, 7);
        assert_eq!(identity.address.to_string(), "127.0.0.1:40000");
        let unix = "id=8 addr=/run/redis.sock:0 laddr=/run/redis.sock:0 fd=9";
        for other in ["", "id=7", "id=x addr=127.0.0.1:1", unix] {
            assert_eq!(Identity::parse(other), None, "{other}");
        }
    }
}
