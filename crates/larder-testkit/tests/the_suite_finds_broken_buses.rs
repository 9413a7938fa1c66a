//! A suite that every bus passes proves nothing. Each bus here breaks one promise, and the property
//! that names it must say so.

use std::future::{Future, Ready, ready};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use larder::backplane::{Backplane, LocalBus, MAX_MESSAGE_BYTES, Notice, Replay};
use larder::clock::BoxFuture;
use larder::store::{Position, StoreError, StoreResult};
use larder_testkit::bus_suite::{self, BusSubject, check};

/// What is wrong with a bus.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Flaw {
    None,
    SkipsNumbers,
    NumbersPerHandle,
    OneIncarnationForAll,
    IncarnationZero,
    BeginsAtTwo,
    MixesChannels,
    EndsMessagesAtNul,
    CutsLongMessages,
    TakesLess,
    TakesMore,
    NumbersWhatItRefuses,
    ListensLate,
    SwapsMessages,
    TellsTwice,
    TellsOneListener,
    SparesTheSender,
    NamesServersAtRandom,
    LeaksListeners,
    SwallowsGarbage,
    TellsGarbageAsMessage,
    EndsOnGarbage,
    BeatsElsewhere,
    BeatsAreNumbered,
    BeatsAreKept,
    BeatsOvertake,
    BeatsAreSilent,
    ReplaysTheLastOneAgain,
    ReplaysNewestFirst,
    EndIsLost,
    ReplaysEverything,
    ReplaysTheNewest,
    HidesWhatIsLost,
    LosesEverything,
    IgnoresIncarnations,
    AheadIsEmpty,
    UnknownIsEmpty,
    LostIsNowhere,
    ReplaysWithHoles,
    HasNoName,
    BreaksWhenDropped,
    CloseClosesAll,
}

#[derive(Debug)]
struct Broken {
    bus: LocalBus,
    flaw: Flaw,
    /// Whether this is the handle that most is published through, and not its peer.
    first: bool,
    shared: Arc<Shared>,
}

/// What both handles know.
#[derive(Debug, Default)]
struct Shared {
    /// Set while an operation of a bus that breaks when dropped is under way.
    busy: AtomicBool,
    closed: AtomicBool,
    listeners: AtomicU64,
}

/// Marks what was forged, on a bus that nobody else could reach.
const FORGED: &[u8] = b"forged:";

impl Broken {
    fn is(&self, flaw: Flaw) -> bool {
        self.flaw == flaw
    }

    fn channel(&self, channel: &str) -> String {
        match self.flaw {
            Flaw::MixesChannels => channel.split([':', '\0', '~']).next().unwrap_or("").into(),
            Flaw::NumbersPerHandle if self.first => format!("{channel} of the first"),
            _ => channel.into(),
        }
    }

    fn check(&self, message: &Bytes) -> StoreResult<()> {
        let limit = match self.flaw {
            Flaw::TakesLess => MAX_MESSAGE_BYTES - 1,
            _ => MAX_MESSAGE_BYTES,
        };
        if message.len() > limit {
            return Err(StoreError::refused("too long"));
        }
        if self.shared.closed.load(Ordering::SeqCst) {
            return Err(StoreError::unavailable("closed"));
        }
        Ok(())
    }

    /// What is stored of a message.
    fn message(&self, message: Bytes) -> Bytes {
        let keep = match self.flaw {
            Flaw::EndsMessagesAtNul => message.iter().position(|&byte| byte == 0),
            Flaw::CutsLongMessages | Flaw::TakesMore => Some(MAX_MESSAGE_BYTES / 2),
            _ => None,
        };
        message.slice(..keep.unwrap_or(usize::MAX).min(message.len()))
    }

    /// What is shown of a position.
    fn position(&self, position: Position) -> Position {
        match self.flaw {
            Flaw::OneIncarnationForAll => Position {
                incarnation: 7,
                ..position
            },
            Flaw::IncarnationZero => Position {
                incarnation: 0,
                ..position
            },
            Flaw::BeginsAtTwo => Position {
                count: position.count + u64::from(position.count > 0),
                ..position
            },
            _ => position,
        }
    }

    async fn publish_broken(&self, channel: &str, message: Bytes) -> StoreResult<Position> {
        let channel = self.channel(channel);
        if self.is(Flaw::NumbersWhatItRefuses) && self.check(&message).is_err() {
            self.bus.publish(&channel, Bytes::new()).await?;
        }
        if !self.is(Flaw::TakesMore) {
            self.check(&message)?;
        }
        if self.is(Flaw::SkipsNumbers) {
            self.bus.publish(&channel, "skipped".into()).await?;
        }
        if self.is(Flaw::BreaksWhenDropped) {
            if self.shared.busy.swap(true, Ordering::SeqCst) {
                return Err(StoreError::unavailable("still busy with what was dropped"));
            }
            tokio::task::yield_now().await;
            self.shared.busy.store(false, Ordering::SeqCst);
        }
        let publishing = self.bus.publish(&channel, self.message(message));
        Ok(self.position(publishing.await?))
    }

    async fn beat_broken(&self, channel: &str, message: Bytes) -> StoreResult<Position> {
        let channel = self.channel(channel);
        if !self.is(Flaw::TakesMore) {
            self.check(&message)?;
        }
        match self.flaw {
            Flaw::BeatsAreNumbered => {
                self.bus.publish(&channel, message.clone()).await?;
            }
            Flaw::BeatsAreKept if !message.is_empty() => {
                return self.bus.publish(&channel, message).await;
            }
            Flaw::BeatsAreSilent => {
                return self.bus.beat("nobody listens here", message).await;
            }
            _ => {}
        }
        let position = self.bus.beat(&channel, self.message(message)).await?;
        Ok(self.position(position))
    }

    async fn listen_broken(
        &self,
        channel: &str,
        notify: &mut (dyn FnMut(Notice) + Send),
    ) -> StoreError {
        let number = self.shared.listeners.fetch_add(1, Ordering::SeqCst);
        if self.is(Flaw::LeaksListeners) && number > 100 {
            return StoreError::refused("too many listeners");
        }
        let channel = self.channel(channel);
        if self.is(Flaw::ListensLate) {
            notify(Notice::Listening { server: 1 });
            for _ in 0..20 {
                tokio::task::yield_now().await;
            }
        }
        let ended = AtomicBool::new(false);
        let mut filter = Filter {
            broken: self,
            number,
            kept: None,
            ended: &ended,
        };
        let mut tell = |notice| filter.tell(notice, notify);
        let mut listening = pin!(self.bus.listen(&channel, &mut tell));
        std::future::poll_fn(|context| {
            let polled = listening.as_mut().poll(context);
            if ended.load(Ordering::SeqCst) {
                return Poll::Ready(StoreError::unavailable("garbage"));
            }
            polled
        })
        .await
    }

    async fn replay_broken(
        &self,
        channel: &str,
        mut after: Position,
        at_most: usize,
    ) -> StoreResult<Replay> {
        let channel = self.channel(channel);
        let stands = match self.bus.replay(&channel, Position::default(), 1).await? {
            Replay::Lost { position } => position,
            Replay::Complete(_) => return Err(StoreError::unavailable("no such incarnation")),
        };
        match self.flaw {
            Flaw::LosesEverything if stands != after => {
                return Ok(Replay::Lost { position: stands });
            }
            Flaw::UnknownIsEmpty if after == Position::default() => {
                return Ok(Replay::Complete(Vec::new()));
            }
            Flaw::IgnoresIncarnations => after.incarnation = stands.incarnation,
            Flaw::AheadIsEmpty
                if after.incarnation == stands.incarnation && after.count > stands.count =>
            {
                return Ok(Replay::Complete(Vec::new()));
            }
            Flaw::ReplaysTheLastOneAgain => after.count = after.count.saturating_sub(1),
            Flaw::EndIsLost if after == stands => return Ok(Replay::Lost { position: stands }),
            _ => {}
        }
        let wanted = match self.flaw {
            Flaw::ReplaysEverything | Flaw::ReplaysTheNewest => usize::MAX,
            _ => at_most,
        };
        let mut replay = self.bus.replay(&channel, after, wanted).await?;
        if let Replay::Complete(messages) = &mut replay {
            match self.flaw {
                Flaw::ReplaysNewestFirst => messages.reverse(),
                Flaw::ReplaysTheNewest => {
                    messages.drain(..messages.len().saturating_sub(at_most));
                }
                Flaw::ReplaysWithHoles if messages.len() > 2 => {
                    messages.remove(1);
                }
                _ => {}
            }
            for (position, _) in messages {
                *position = self.position(*position);
            }
        }
        Ok(match (self.flaw, replay) {
            (Flaw::HidesWhatIsLost, Replay::Lost { .. }) => Replay::Complete(Vec::new()),
            (Flaw::LostIsNowhere, Replay::Lost { .. }) => Replay::Lost {
                position: Position::default(),
            },
            (_, replay) => replay,
        })
    }
}

/// What one listener is told, after the flaw.
struct Filter<'a> {
    broken: &'a Broken,
    number: u64,
    /// A message that waits for the next notice.
    kept: Option<Notice>,
    ended: &'a AtomicBool,
}

impl Filter<'_> {
    fn tell(&mut self, notice: Notice, notify: &mut (dyn FnMut(Notice) + Send)) {
        let flaw = self.broken.flaw;
        match notice {
            Notice::Listening { .. } if flaw == Flaw::ListensLate => {}
            Notice::Listening { server } => notify(Notice::Listening {
                server: match flaw {
                    Flaw::NamesServersAtRandom => self.number,
                    _ => server,
                },
            }),
            Notice::Beat { message, .. } if message.starts_with(FORGED) => match flaw {
                Flaw::SwallowsGarbage => {}
                Flaw::EndsOnGarbage => self.ended.store(true, Ordering::SeqCst),
                Flaw::TellsGarbageAsMessage => notify(Notice::Message {
                    position: None,
                    message,
                }),
                _ => notify(Notice::Unreadable),
            },
            Notice::Message { position, message } => {
                self.tell_message(position, message, notify);
            }
            Notice::Beat { position, message } => {
                let shift = u64::from(flaw == Flaw::BeatsElsewhere && position.count > 0);
                notify(Notice::Beat {
                    position: self.broken.position(Position {
                        count: position.count - shift,
                        ..position
                    }),
                    message,
                });
                self.kept.take().into_iter().for_each(notify);
            }
            Notice::Unreadable => notify(Notice::Unreadable),
            told @ (Notice::Watching | Notice::Changed { .. } | Notice::Emptied) => notify(told),
        }
    }

    fn tell_message(
        &mut self,
        position: Option<Position>,
        message: Bytes,
        notify: &mut (dyn FnMut(Notice) + Send),
    ) {
        let broken = self.broken;
        let silent = match broken.flaw {
            Flaw::TellsOneListener => self.number > 0,
            Flaw::SparesTheSender => broken.first,
            _ => false,
        };
        if silent {
            return;
        }
        let notice = Notice::Message {
            position: position.map(|position| broken.position(position)),
            message,
        };
        match broken.flaw {
            Flaw::SwapsMessages | Flaw::BeatsOvertake => match self.kept.take() {
                None if self.number == 0 && broken.flaw == Flaw::BeatsOvertake => {
                    self.kept = Some(notice);
                }
                None if broken.flaw == Flaw::SwapsMessages => self.kept = Some(notice),
                None => notify(notice),
                Some(earlier) => {
                    notify(notice);
                    notify(earlier);
                }
            },
            Flaw::TellsTwice => {
                notify(notice.clone());
                notify(notice);
            }
            _ => notify(notice),
        }
    }
}

impl Backplane for Broken {
    fn name(&self) -> &str {
        if self.is(Flaw::HasNoName) {
            ""
        } else {
            "broken"
        }
    }

    fn publish<'a>(
        &'a self,
        channel: &'a str,
        message: Bytes,
    ) -> BoxFuture<'a, StoreResult<Position>> {
        Box::pin(self.publish_broken(channel, message))
    }

    fn beat<'a>(
        &'a self,
        channel: &'a str,
        message: Bytes,
    ) -> BoxFuture<'a, StoreResult<Position>> {
        Box::pin(self.beat_broken(channel, message))
    }

    fn listen<'a>(
        &'a self,
        channel: &'a str,
        notify: &'a mut (dyn FnMut(Notice) + Send),
    ) -> BoxFuture<'a, StoreError> {
        Box::pin(self.listen_broken(channel, notify))
    }

    fn replay<'a>(
        &'a self,
        channel: &'a str,
        after: Position,
        at_most: usize,
    ) -> BoxFuture<'a, StoreResult<Replay>> {
        Box::pin(self.replay_broken(channel, after, at_most))
    }

    fn close(&self) -> BoxFuture<'_, StoreResult<()>> {
        let closes = self.is(Flaw::CloseClosesAll);
        self.shared.closed.store(closes, Ordering::SeqCst);
        Box::pin(ready(Ok(())))
    }
}

fn open(flaw: Flaw) -> impl FnOnce() -> Ready<BusSubject> {
    move || {
        let (bus, shared) = (LocalBus::new(), Arc::new(Shared::default()));
        let [first, second] = [true, false].map(|first| {
            Arc::new(Broken {
                bus: bus.clone(),
                flaw,
                first,
                shared: shared.clone(),
            })
        });
        let forge = move |channel: &str, bytes: &[u8]| {
            let forged = [FORGED, &bytes[..bytes.len().min(100)]].concat();
            let mut beat = pin!(bus.beat(channel, forged.into()));
            let sent = beat.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            assert!(sent.is_ready(), "the local bus never waits");
        };
        let subject = BusSubject::new(first).with_peer(second);
        ready(subject.with_forger(forge))
    }
}

mod without_a_flaw_it_passes {
    use super::*;

    larder_testkit::bus_suite!(open(Flaw::None));
}

/// Each property, and the flaws that it must find.
macro_rules! finds {
    ($($property:ident: $($flaw:ident)+;)+) => {
        $(
            #[test]
            fn $property() {
                for flaw in [$(Flaw::$flaw),+] {
                    let checked = || check(open(flaw), bus_suite::$property);
                    let found = catch_unwind(AssertUnwindSafe(checked));
                    assert!(found.is_err(), "a bus that {flaw:?} passes");
                }
            }
        )+

        const TESTED: &[&str] = &[$(stringify!($property)),+];
    };
}

finds! {
    // Publishing
    numbers_have_no_holes: SkipsNumbers NumbersPerHandle;
    a_channel_begins_with_an_incarnation_of_its_own: OneIncarnationForAll IncarnationZero
        BeginsAtTwo;
    channels_do_not_mix: MixesChannels;
    messages_come_back_byte_for_byte: EndsMessagesAtNul;
    a_message_may_be_as_long_as_promised: CutsLongMessages TakesLess;
    a_longer_message_is_refused_and_takes_no_number: TakesMore NumbersWhatItRefuses;
    concurrent_publishers_share_one_sequence: NumbersPerHandle TellsTwice SwapsMessages;
    // Listening
    every_message_after_listening_is_heard: ListensLate;
    messages_are_heard_in_order: SwapsMessages TellsTwice;
    all_listeners_hear_the_same: TellsOneListener SparesTheSender;
    the_sender_hears_itself: SparesTheSender;
    listeners_of_one_server_agree_on_it: NamesServersAtRandom;
    a_dropped_listening_ends: LeaksListeners;
    what_cannot_be_read_is_told: SwallowsGarbage TellsGarbageAsMessage EndsOnGarbage;
    // Beats
    a_beat_tells_where_the_channel_stands: BeatsElsewhere BeatsAreNumbered BeatsAreKept;
    a_beat_takes_no_number: BeatsAreNumbered BeatsAreKept;
    beats_keep_their_place_among_messages: BeatsOvertake BeatsAreKept;
    // Replaying
    a_replay_holds_what_follows: ReplaysTheLastOneAgain ReplaysNewestFirst ReplaysWithHoles
        LosesEverything;
    a_replay_from_the_end_is_empty: EndIsLost ReplaysTheLastOneAgain;
    a_replay_holds_no_more_than_asked_for: ReplaysEverything ReplaysTheNewest;
    a_replay_in_steps_reaches_the_end: ReplaysTheNewest ReplaysWithHoles LosesEverything;
    what_the_journal_no_longer_holds_is_lost: HidesWhatIsLost LosesEverything ReplaysWithHoles;
    a_position_of_another_incarnation_is_lost: IgnoresIncarnations HidesWhatIsLost LostIsNowhere;
    a_position_ahead_of_the_channel_is_lost: AheadIsEmpty LostIsNowhere;
    an_unknown_channel_is_lost_and_begins: UnknownIsEmpty LostIsNowhere;
    a_replay_under_way_sees_no_hole: ReplaysWithHoles ReplaysTheNewest ReplaysTheLastOneAgain;
    // The rest
    the_bus_describes_itself: HasNoName;
    a_dropped_operation_leaves_the_bus_usable: BreaksWhenDropped SkipsNumbers;
    a_handle_that_is_closed_leaves_the_others_usable: CloseClosesAll;
    random_sequences_agree_with_the_model: SkipsNumbers ReplaysEverything AheadIsEmpty
        BeatsAreSilent EndsMessagesAtNul BeatsElsewhere;
}

#[test]
fn every_property_is_in_the_suite_and_has_a_bus_that_breaks_it() {
    let suite = include_str!("../src/bus_suite.rs");
    let sources = [
        include_str!("../src/bus_suite/publishing.rs"),
        include_str!("../src/bus_suite/listening.rs"),
        include_str!("../src/bus_suite/replaying.rs"),
        include_str!("../src/bus_suite/whole.rs"),
    ];
    let listed = |name: &str| suite.lines().any(|line| line.trim() == name);
    let name = |line: &'static str| Some(line.strip_prefix("pub async fn ")?.split_once('(')?.0);
    let defined: Vec<&str> = sources
        .iter()
        .flat_map(|source| source.lines())
        .filter_map(name)
        .collect();
    assert!(defined.len() >= 30, "{defined:?}");
    for property in defined {
        assert!(listed(property), "bus_suite! leaves {property} out");
        assert!(TESTED.contains(&property), "nothing here breaks {property}");
    }
}
