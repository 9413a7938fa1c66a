//! What carries invalidations from one process to the others.
//!
//! A backplane moves bytes: what a message says is the engine's affair. It numbers the messages of
//! a channel, keeps the last of them in a journal, and tells listeners. That is all that the engine
//! needs to notice every message that a listener did not get, whatever the reason: numbers that are
//! missing are a gap, and a gap is replayed from the journal or, where that does not reach back far
//! enough, makes everything in memory suspect.
//!
//! Every operation may be dropped at any await point, and none has to bound its own time but
//! [`Backplane::listen`], which must end when its connection does.

use std::fmt;

use bytes::Bytes;

pub use crate::bus::local::LocalBus;
use crate::clock::BoxFuture;
use crate::store::{Position, StoreError, StoreResult};

/// The longest message that every backplane takes, in bytes: 64 KiB. A longer one is refused.
pub const MAX_MESSAGE_BYTES: usize = 64 << 10;

/// A bus between processes. The test kit has a suite that every implementation should pass.
pub trait Backplane: Send + Sync + fmt::Debug + 'static {
    /// A short name for statistics, such as `redis`.
    fn name(&self) -> &str;

    /// Gives `message` the next number of `channel`, writes it into the journal and tells all
    /// listeners, its sender's included. Returns its position.
    ///
    /// Numbers have no holes, and a listener is told in their order. A channel that is not known,
    /// or whose journal was lost, begins a new incarnation. Where the bus can tell listeners and
    /// cannot number or journal, as a Redis server that is out of memory, it tells them without a
    /// number, ends the incarnation, and returns the position as [`Position::default`]: an
    /// invalidation must get through.
    ///
    /// A message longer than [`MAX_MESSAGE_BYTES`] is refused and takes no number. After any other
    /// error the message may have been told, and may have been numbered.
    fn publish<'a>(
        &'a self,
        channel: &'a str,
        message: Bytes,
    ) -> BoxFuture<'a, StoreResult<Position>>;

    /// Tells all listeners where `channel` stands, and `message` with it, which is neither numbered
    /// nor kept. Returns the position. A channel that is not known begins now.
    ///
    /// Where each process asks by itself, as on a store that watches keys, the listeners of this handle
    /// are told and no others, and perhaps behind later messages, with the position of the last one.
    fn beat<'a>(&'a self, channel: &'a str, message: Bytes)
    -> BoxFuture<'a, StoreResult<Position>>;

    /// Listens to `channel` until that is no longer possible, and says why it ended.
    ///
    /// [`Notice::Listening`] comes first, once it is certain that every message published from then
    /// on will be seen, and in front of it only [`Notice::Watching`]; then messages and beats in the order in which they were sent. `notify`
    /// returns at once. Dropping the future ends the listening. A listener that falls too far behind
    /// may lose messages, as the numbers of the next ones then show.
    fn listen<'a>(
        &'a self,
        channel: &'a str,
        notify: &'a mut (dyn FnMut(Notice) + Send),
    ) -> BoxFuture<'a, StoreError>;

    /// The messages behind `after`, oldest first, up to `at_most` of them.
    ///
    /// A position that is ahead of the channel is lost, too: what it counted was rolled back. A
    /// channel that is not known begins now.
    fn replay<'a>(
        &'a self,
        channel: &'a str,
        after: Position,
        at_most: usize,
    ) -> BoxFuture<'a, StoreResult<Replay>>;

    /// Closes what should not be left to `Drop`. Called once, by `Larder::shutdown`.
    fn close(&self) -> BoxFuture<'_, StoreResult<()>> {
        Box::pin(async { Ok(()) })
    }
}

/// What a listener is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The listening has begun. `server` tells one server's life from another: it changes with a
    /// restart and with a failover.
    Listening {
        /// Who answers.
        server: u64,
    },
    /// A message, and its position; `None` if it could not be numbered.
    Message {
        /// Its number.
        position: Option<Position>,
        /// What was published.
        message: Bytes,
    },
    /// Where the channel stands.
    Beat {
        /// The position of the last message.
        position: Position,
        /// What was given to [`Backplane::beat`].
        message: Bytes,
    },
    /// Something arrived that the backplane cannot read. It may have been a message.
    Unreadable,
    /// The store whose bus this is watches what this process reads from it, from now on: whoever
    /// changes it, by whatever program, it is told as [`Notice::Changed`]. What was read earlier may
    /// have been changed unnoticed.
    Watching,
    /// These keys of the store, entries or records, were changed by somebody, or are not watched any
    /// more.
    Changed {
        /// As they stand in the store.
        keys: Vec<Bytes>,
    },
    /// Everything in the store was removed.
    Emptied,
}

/// What the journal of a channel holds behind a position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Replay {
    /// The messages that follow on the position, without a hole; empty if there are none.
    Complete(Vec<(Position, Bytes)>),
    /// The journal does not reach back so far, or is of another incarnation.
    Lost {
        /// Where the channel stands now.
        position: Position,
    },
}
