//! The suite that every [`Backplane`] should pass: one property per promise of the contract.
//!
//! [`bus_suite!`](crate::bus_suite!) makes one test of each, so that a failure names the promise it
//! broke. Each is given a [`BusSubject`]: a bus, and a second handle to the same one.

use std::any::Any;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use larder::backplane::{Backplane, Replay};
use larder::store::{Position, StoreResult};

use crate::Ear;

mod listening;
mod publishing;
mod replaying;
mod whole;

pub use listening::*;
pub use publishing::*;
pub use replaying::*;
pub use whole::*;

/// Makes a test of every property of the suite.
///
/// The argument is an `async fn() -> BusSubject`, called once per test. The buses of two calls may
/// run at the same time: they share nothing, or differ in [`BusSubject::with_prefix`].
///
/// ```
/// # use std::sync::Arc;
/// # use larder::backplane::LocalBus;
/// # use larder_testkit::BusSubject;
/// mod the_local_bus {
///     # use super::*;
///     async fn open() -> BusSubject {
///         let bus = LocalBus::new();
///         BusSubject::new(Arc::new(bus.clone())).with_peer(Arc::new(bus))
///     }
///     larder_testkit::bus_suite!(open);
/// }
/// # fn main() {}
/// ```
#[macro_export]
macro_rules! bus_suite {
    ($open:expr) => {
        $crate::bus_suite! { @each $open;
            // Publishing
            numbers_have_no_holes
            a_channel_begins_with_an_incarnation_of_its_own
            channels_do_not_mix
            messages_come_back_byte_for_byte
            a_message_may_be_as_long_as_promised
            a_longer_message_is_refused_and_takes_no_number
            concurrent_publishers_share_one_sequence
            // Listening
            every_message_after_listening_is_heard
            messages_are_heard_in_order
            all_listeners_hear_the_same
            the_sender_hears_itself
            listeners_of_one_server_agree_on_it
            a_dropped_listening_ends
            what_cannot_be_read_is_told
            // Beats
            a_beat_tells_where_the_channel_stands
            a_beat_takes_no_number
            beats_keep_their_place_among_messages
            // Replaying
            a_replay_holds_what_follows
            a_replay_from_the_end_is_empty
            a_replay_holds_no_more_than_asked_for
            a_replay_in_steps_reaches_the_end
            what_the_journal_no_longer_holds_is_lost
            a_position_of_another_incarnation_is_lost
            a_position_ahead_of_the_channel_is_lost
            an_unknown_channel_is_lost_and_begins
            a_replay_under_way_sees_no_hole
            // The rest
            the_bus_describes_itself
            a_dropped_operation_leaves_the_bus_usable
            a_handle_that_is_closed_leaves_the_others_usable
            random_sequences_agree_with_the_model
        }
    };
    (@each $open:expr; $($property:ident)+) => {
        $(
            #[test]
            fn $property() {
                $crate::bus_suite::check($open, $crate::bus_suite::$property);
            }
        )+
    };
}

/// A bus as the suite is to meet it.
pub struct BusSubject {
    bus: Arc<dyn Backplane>,
    peer: Option<Arc<dyn Backplane>>,
    prefix: String,
    journal_messages: usize,
    late_beats: bool,
    forge: Option<Box<Forge>>,
    /// Whatever must live as long as the bus. Declared last, so that it is dropped last.
    keep: Vec<Box<dyn Any + Send + Sync>>,
}

type Forge = dyn Fn(&str, &[u8]) + Send + Sync;

impl BusSubject {
    /// A bus that keeps 10,000 short messages or fewer.
    pub fn new(bus: Arc<dyn Backplane>) -> Self {
        Self {
            bus,
            peer: None,
            prefix: String::new(),
            journal_messages: 10_000,
            late_beats: false,
            forge: None,
            keep: Vec::new(),
        }
    }

    /// Another handle to the same bus, as another process would have.
    pub fn with_peer(self, peer: Arc<dyn Backplane>) -> Self {
        Self {
            peer: Some(peer),
            ..self
        }
    }

    /// All channels of the suite begin with `prefix`: for buses that are not alone.
    pub fn with_prefix(self, prefix: impl Into<String>) -> Self {
        Self {
            prefix: prefix.into(),
            ..self
        }
    }

    /// How many short messages the journal keeps, give or take a tenth. The suite publishes more.
    pub fn with_journal(self, messages: usize) -> Self {
        Self {
            journal_messages: messages,
            ..self
        }
    }

    /// A beat may be told behind messages that were published after it, with the position of the last
    /// message that was told.
    pub fn with_late_beats(self) -> Self {
        Self {
            late_beats: true,
            ..self
        }
    }

    /// How somebody who is no larder sends bytes to the listeners of a channel; returns once they
    /// are sent. Without it nothing but the bus itself can reach listeners.
    pub fn with_forger(self, forge: impl Fn(&str, &[u8]) + Send + Sync + 'static) -> Self {
        Self {
            forge: Some(Box::new(forge)),
            ..self
        }
    }

    /// Keeps something alive until the bus is dropped, such as a server.
    pub fn keep(mut self, guard: impl Any + Send + Sync) -> Self {
        self.keep.push(Box::new(guard));
        self
    }
}

impl fmt::Debug for BusSubject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BusSubject")
            .field("bus", &self.bus)
            .field("peer", &self.peer)
            .finish_non_exhaustive()
    }
}

/// Opens a subject and checks one property on it; panics if the property does not hold.
///
/// Tests are made by [`bus_suite!`](crate::bus_suite!); this is for those that want a property by
/// itself.
pub fn check<O>(open: impl FnOnce() -> O, property: impl AsyncFnOnce(&BusSubject))
where
    O: Future<Output = BusSubject>,
{
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => panic!("no runtime for the test: {error}"),
    };
    runtime.block_on(async {
        let subject = open().await;
        let within = tokio::time::timeout(PROPERTY_PATIENCE, property(&subject)).await;
        assert!(
            within.is_ok(),
            "not done after {PROPERTY_PATIENCE:?}: the bus hangs"
        );
    });
}

/// A property that takes longer has met an operation that never ends.
const PROPERTY_PATIENCE: Duration = Duration::from_secs(120);
/// More messages than any replay of the suite returns.
const ALL: usize = 1 << 20;

// What the properties do with a bus, in words. An error is a failure of the property: the suite
// never asks for what a healthy bus may refuse.
impl BusSubject {
    fn channel(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    fn peer(&self) -> &Arc<dyn Backplane> {
        self.peer.as_ref().unwrap_or(&self.bus)
    }

    /// Both handles, one after the other for ever.
    fn handles(&self) -> impl Iterator<Item = &Arc<dyn Backplane>> {
        [&self.bus, self.peer()].into_iter().cycle()
    }

    async fn publish(&self, channel: &str, message: impl Into<Bytes>) -> Position {
        publish(&self.bus, channel, message).await
    }

    async fn publish_numbers(&self, channel: &str, numbers: std::ops::Range<u64>) -> Position {
        let mut last = Position::default();
        for number in numbers {
            last = self.publish(channel, number.to_string()).await;
        }
        last
    }

    async fn beat(&self, channel: &str, message: impl Into<Bytes>) -> Position {
        ok("beat", self.bus.beat(channel, message.into()).await)
    }

    async fn replay(&self, channel: &str, after: Position, at_most: usize) -> Replay {
        let replay = self.peer().replay(channel, after, at_most).await;
        ok("replay", replay)
    }

    /// A replay that must be complete.
    async fn replayed(
        &self,
        channel: &str,
        after: Position,
        at_most: usize,
    ) -> Vec<(Position, Bytes)> {
        match self.replay(channel, after, at_most).await {
            Replay::Complete(messages) => messages,
            lost => panic!("{after:?} is {lost:?}"),
        }
    }

    async fn lost(&self, channel: &str, after: Position) -> Position {
        match self.replay(channel, after, ALL).await {
            Replay::Lost { position } => position,
            Replay::Complete(messages) => {
                panic!("{after:?} is complete with {} messages", messages.len())
            }
        }
    }

    /// Listens through the peer.
    async fn ear(&self, channel: &str) -> Ear {
        Ear::open(self.peer().clone(), channel).await
    }
}

async fn publish(bus: &Arc<dyn Backplane>, channel: &str, message: impl Into<Bytes>) -> Position {
    ok("publish", bus.publish(channel, message.into()).await)
}

#[track_caller]
fn ok<T>(what: &str, result: StoreResult<T>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => panic!("{what} failed: {error:?}"),
    }
}

/// The position so many messages further on.
fn further(position: Position, messages: u64) -> Position {
    Position {
        count: position.count + messages,
        ..position
    }
}

#[track_caller]
fn joined<T>(result: Result<T, tokio::task::JoinError>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
