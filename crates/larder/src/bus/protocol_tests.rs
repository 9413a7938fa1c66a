use std::collections::{BTreeSet, HashMap};

use proptest::prelude::*;

use super::Action::*;
use super::*;

const BUS: u64 = 1;

fn at(count: u64) -> Position {
    Position {
        incarnation: 7,
        count,
    }
}

fn elsewhere(count: u64) -> Position {
    Position {
        incarnation: 8,
        count,
    }
}

/// A protocol and its clock.
struct Listener {
    protocol: Protocol,
    now: Millis,
}

impl Listener {
    fn new() -> Self {
        Self {
            protocol: Protocol::new(0),
            now: 10_000,
        }
    }

    /// One that is up to date at this number.
    fn trusting(count: u64) -> Self {
        let mut listener = Self::new();
        let asked = listener.hear(Event::Listening { server: BUS });
        listener.find(asked, at(count));
        assert!(listener.protocol.is_trusted());
        listener.now += RETRY; // so that another question may be asked
        listener
    }

    fn hear(&mut self, event: Event) -> Vec<Action> {
        self.protocol.step(self.now, event)
    }

    fn message(&mut self, count: u64) -> Vec<Action> {
        let position = Some(at(count));
        self.hear(Event::Message { position })
    }

    fn beat(&mut self, position: Position) -> Vec<Action> {
        self.hear(Event::Beat { position })
    }

    fn tick(&mut self, pass: Millis) -> Vec<Action> {
        self.now += pass;
        self.hear(Event::Tick)
    }

    /// Answers the question for the position that is the last of these actions.
    fn find(&mut self, asked: Vec<Action>, position: Position) -> Vec<Action> {
        let Some(AskWhere { ticket }) = asked.last().copied() else {
            panic!("{asked:?} is no question for the position");
        };
        self.hear(Event::Where { ticket, position })
    }

    /// Answers the question for a replay, with all that there is up to this number.
    fn replay(&mut self, asked: Vec<Action>, last: u64) -> Vec<Action> {
        let ticket = replay_of(&asked).0;
        self.hear(Event::Replayed {
            ticket,
            last: at(last),
            at_end: true,
            unreadable: 0,
        })
    }
}

#[track_caller]
fn replay_of(asked: &[Action]) -> (Ticket, u64) {
    match asked.last() {
        Some(Replay { ticket, after }) => (*ticket, after.count),
        _ => panic!("{asked:?} is no question for a replay"),
    }
}

fn ask_of(asked: &[Action]) -> Option<Ticket> {
    asked.iter().find_map(|action| match action {
        AskWhere { ticket } => Some(*ticket),
        _ => None,
    })
}

#[test]
fn whoever_joins_doubts_all_from_before_and_then_trusts() {
    let mut listener = Listener::new();
    let asked = listener.hear(Event::Listening { server: BUS });
    assert_eq!(asked, [AskWhere { ticket: 1 }]);
    assert_eq!(listener.protocol.position(), None);
    let learned = listener.find(asked, at(5));
    assert_eq!(learned, [Doubt(Why::Joined), Trust]);
    assert_eq!(listener.protocol.position(), Some(at(5)));
}

#[test]
fn what_arrives_while_somebody_joins_is_not_forgotten() {
    let mut listener = Listener::new();
    let asked = listener.hear(Event::Listening { server: BUS });
    assert_eq!(listener.message(6), [Apply]);
    assert_eq!(listener.message(7), [Apply]);
    assert_eq!(listener.find(asked, at(5)), [Doubt(Why::Joined), Trust]);
    assert_eq!(listener.protocol.position(), Some(at(7)));
}

#[test]
fn messages_in_their_order_are_applied_and_nothing_else() {
    let mut listener = Listener::trusting(5);
    for count in 6..100 {
        assert_eq!(listener.message(count), [Apply]);
        assert_eq!(listener.beat(at(count)), []);
        assert_eq!(listener.protocol.position(), Some(at(count)));
    }
}

#[test]
fn whoever_comes_back_and_missed_nothing_trusts_without_a_doubt() {
    let mut listener = Listener::trusting(5);
    assert_eq!(listener.hear(Event::Ended), [Distrust(Why::Ended)]);
    let asked = listener.hear(Event::Listening { server: BUS });
    assert_eq!(listener.find(asked, at(5)), [Trust]);
}

#[test]
fn whoever_comes_back_replays_what_was_missed_and_trusts_without_a_doubt() {
    let mut listener = Listener::trusting(5);
    listener.hear(Event::Ended);
    let asked = listener.hear(Event::Listening { server: BUS });
    let asked = listener.find(asked, at(8));
    assert_eq!(replay_of(&asked).1, 5);
    assert_eq!(listener.replay(asked, 8), [Trust]);
    assert_eq!(listener.protocol.position(), Some(at(8)));
}

#[test]
fn what_the_journal_no_longer_has_is_doubted() {
    let mut listener = Listener::trusting(5);
    listener.hear(Event::Ended);
    let asked = listener.hear(Event::Listening { server: BUS });
    let asked = listener.find(asked, at(9_000));
    let (ticket, _) = replay_of(&asked);
    let position = at(9_001);
    let learned = listener.hear(Event::Lost { ticket, position });
    assert_eq!(learned, [Doubt(Why::Lost), Trust]);
    assert_eq!(listener.protocol.position(), Some(position));
}

#[test]
fn a_missing_number_ends_the_trust_until_it_is_replayed() {
    let mut listener = Listener::trusting(5);
    let heard = listener.message(8);
    assert_eq!(heard[..3], [Apply, Gap { missing: 2 }, Distrust(Why::Gap)]);
    assert_eq!(replay_of(&heard).1, 5);
    assert_eq!(listener.protocol.position(), Some(at(5)));
    assert_eq!(listener.replay(heard, 8), [Trust]);
}

#[test]
fn a_beat_beyond_the_last_message_ends_the_trust_until_the_rest_is_replayed() {
    let mut listener = Listener::trusting(5);
    let heard = listener.beat(at(6));
    assert_eq!(heard[..2], [Gap { missing: 1 }, Distrust(Why::Gap)]);
    assert_eq!(listener.replay(heard, 6), [Trust]);
}

#[test]
fn a_message_during_a_replay_is_applied_and_remembered() {
    let mut listener = Listener::trusting(5);
    let asked = listener.message(7);
    assert_eq!(listener.message(8), [Apply]);
    assert_eq!(listener.message(10), [Apply, Gap { missing: 1 }]);
    let asked = listener.replay(asked, 8);
    assert_eq!(replay_of(&asked).1, 8);
    assert_eq!(listener.message(9), [Apply]);
    assert_eq!(listener.protocol.position(), Some(at(10)));
    assert_eq!(listener.replay(asked, 10), [Trust]);
}

#[test]
fn a_long_replay_takes_several_answers() {
    let mut listener = Listener::trusting(0);
    let mut asked = listener.beat(at(5_000));
    for last in [2_000, 4_000] {
        let (ticket, after) = replay_of(&asked);
        assert_eq!(after, last - 2_000);
        asked = listener.hear(Event::Replayed {
            ticket,
            last: at(last),
            at_end: false,
            unreadable: 0,
        });
    }
    assert_eq!(listener.replay(asked, 5_000), [Trust]);
}

#[test]
fn duplicates_are_applied_and_take_nothing_back() {
    let mut listener = Listener::trusting(5);
    listener.message(6);
    for count in [6, 1, 0, 5] {
        assert_eq!(listener.message(count), [Apply, Duplicate]);
    }
    let asked = listener.message(9);
    assert_eq!(listener.message(9), [Apply, Duplicate]);
    assert_eq!(listener.protocol.position(), Some(at(6)));
    assert_eq!(listener.replay(asked, 9), [Trust]);
}

#[test]
fn a_message_without_a_number_is_applied_and_everything_is_doubted() {
    let mut listener = Listener::trusting(5);
    let heard = listener.hear(Event::Message { position: None });
    assert_eq!(heard[..2], [Apply, Distrust(Why::Unnumbered)]);
    assert_eq!(listener.protocol.position(), None);
    let learned = listener.find(heard, elsewhere(0));
    assert_eq!(learned, [Doubt(Why::Unnumbered), Trust]);
}

#[test]
fn a_bus_that_cannot_number_is_not_trusted_and_asked_rarely() {
    let mut listener = Listener::trusting(5);
    let mut questions = 0;
    for _ in 0..100 {
        let mut asked = listener.hear(Event::Message { position: None });
        asked.extend(listener.beat(Position::default()));
        if let Some(ticket) = ask_of(&asked) {
            questions += 1;
            let position = Position::default();
            listener.hear(Event::Where { ticket, position });
        }
        assert!(!listener.protocol.is_trusted());
        listener.now += 100;
    }
    assert!(questions <= 3, "{questions} questions in 10 seconds");
    let asked = listener.beat(elsewhere(0));
    assert_eq!(
        listener.find(asked, elsewhere(0)),
        [Doubt(Why::Incarnation), Trust],
        "a numbered beat is worth a question at once"
    );
}

/// Found by the model: the messages that were missing come after all, and with them nothing but the
/// answer says that the numbers have ended.
#[test]
fn a_replay_that_finds_the_numbers_ended_is_doubted_though_nothing_is_missing_any_more() {
    let mut listener = Listener::trusting(5);
    let asked = listener.message(7);
    let (ticket, _) = replay_of(&asked);
    assert_eq!(listener.message(6), [Apply]);
    let position = Position::default();
    assert_eq!(listener.hear(Event::Lost { ticket, position }), []);
    let asked = listener.beat(elsewhere(0));
    let learned = listener.find(asked, elsewhere(0));
    assert_eq!(learned, [Doubt(Why::Incarnation), Trust]);
}

#[test]
fn numbers_that_begin_anew_are_doubted() {
    for by_beat in [true, false] {
        let mut listener = Listener::trusting(5);
        let position = elsewhere(1);
        let heard = match by_beat {
            true => listener.beat(position),
            false => listener.hear(Event::Message {
                position: Some(position),
            }),
        };
        assert!(heard.contains(&Distrust(Why::Incarnation)), "{heard:?}");
        let learned = listener.find(heard, position);
        assert_eq!(learned, [Doubt(Why::Incarnation), Trust]);
        assert_eq!(listener.protocol.position(), Some(position));
    }
}

#[test]
fn an_answer_from_before_the_numbers_began_anew_is_not_believed() {
    let mut listener = Listener::trusting(5);
    let asked = listener.hear(Event::Unreadable { position: None });
    assert_eq!(listener.beat(elsewhere(2)), []);
    assert_eq!(listener.find(asked, at(5)), [], "too early to ask again");
    let asked = listener.tick(RETRY);
    let learned = listener.find(asked, elsewhere(2));
    assert_eq!(learned, [Doubt(Why::Incarnation), Trust]);
}

#[test]
fn a_message_that_cannot_be_read_is_doubted_in_its_place_and_passed() {
    let mut listener = Listener::trusting(5);
    let position = Some(at(6));
    let heard = listener.hear(Event::Unreadable { position });
    assert_eq!(heard, [Doubt(Why::Unreadable)]);
    assert!(listener.protocol.is_trusted());
    assert_eq!(listener.message(7), [Apply]);
    assert_eq!(listener.protocol.position(), Some(at(7)));
}

#[test]
fn noise_that_was_no_message_leaves_no_doubt() {
    let mut listener = Listener::trusting(5);
    let heard = listener.hear(Event::Unreadable { position: None });
    assert_eq!(heard[..1], [Distrust(Why::Unreadable)]);
    assert_eq!(listener.find(heard, at(5)), [Trust]);
}

#[test]
fn noise_that_was_a_message_is_replayed() {
    let mut listener = Listener::trusting(5);
    let asked = listener.hear(Event::Unreadable { position: None });
    let asked = listener.find(asked, at(6));
    assert_eq!(replay_of(&asked).1, 5);
    assert_eq!(listener.replay(asked, 6), [Trust]);
}

#[test]
fn a_message_that_cannot_be_read_in_the_replay_either_is_doubted_and_passed() {
    let mut listener = Listener::trusting(5);
    let asked = listener.hear(Event::Unreadable { position: None });
    let asked = listener.find(asked, at(6));
    let (ticket, _) = replay_of(&asked);
    let learned = listener.hear(Event::Replayed {
        ticket,
        last: at(6),
        at_end: true,
        unreadable: 1,
    });
    assert_eq!(learned, [Doubt(Why::Unreadable), Trust]);
    assert_eq!(listener.message(7), [Apply]);
}

#[test]
fn an_answer_that_may_be_older_than_the_noise_is_not_believed() {
    let mut listener = Listener::trusting(5);
    let asked = listener.hear(Event::Unreadable { position: None });
    assert_eq!(listener.hear(Event::Unreadable { position: None }), []);
    assert_eq!(listener.find(asked, at(5)), []);
    let asked = listener.tick(RETRY);
    let asked = listener.find(asked, at(6));
    assert_eq!(listener.replay(asked, 6), [Trust]);
}

#[test]
fn a_flood_of_noise_costs_two_questions_a_second() {
    let mut listener = Listener::trusting(5);
    let mut questions = 0;
    for _ in 0..10_000 {
        listener.now += 1;
        let heard = listener.hear(Event::Unreadable { position: None });
        questions += usize::from(ask_of(&heard).is_some());
    }
    assert!((10..=20).contains(&questions), "{questions}");
}

#[test]
fn a_replay_that_keeps_failing_is_given_up_and_doubted() {
    let mut listener = Listener::trusting(5);
    let mut asked = listener.message(7);
    for _ in 0..MAX_FAILED_REPLAYS {
        let (ticket, _) = replay_of(&asked);
        assert_eq!(listener.hear(Event::Failed { ticket }), []);
        asked = listener.tick(RETRY);
    }
    assert_eq!(listener.find(asked, at(7)), [Doubt(Why::Lost), Trust]);
}

#[test]
fn a_question_that_fails_is_asked_again_after_a_while() {
    let mut listener = Listener::new();
    let asked = listener.hear(Event::Listening { server: BUS });
    let ticket = ask_of(&asked).unwrap();
    listener.now += RETRY;
    assert_eq!(listener.hear(Event::Failed { ticket }), []);
    assert_eq!(listener.tick(RETRY - 1), []);
    let asked = listener.tick(1);
    assert_eq!(ask_of(&asked), Some(ticket + 1));
}

#[test]
fn an_answer_that_never_comes_counts_as_failed_and_one_that_comes_later_as_nothing() {
    let mut listener = Listener::new();
    let asked = listener.hear(Event::Listening { server: BUS });
    for _ in 0..5 {
        listener.now += PATIENCE / 5;
        listener.hear(Event::Message {
            position: Some(at(9)),
        });
    }
    assert_eq!(listener.hear(Event::Tick), []);
    assert_eq!(listener.find(asked, at(5)), []);
    let asked = listener.tick(RETRY);
    assert_eq!(listener.find(asked, at(9)), [Doubt(Why::Joined), Trust]);
}

#[test]
fn the_answer_to_a_question_of_an_earlier_listening_is_not_believed() {
    let mut listener = Listener::trusting(5);
    listener.hear(Event::Ended);
    let before = listener.hear(Event::Listening { server: BUS });
    listener.hear(Event::Ended);
    listener.now += RETRY;
    let after = listener.hear(Event::Listening { server: BUS });
    assert_eq!(listener.find(before, at(5)), []);
    let asked = listener.find(after, at(6));
    assert_eq!(listener.replay(asked, 6), [Trust]);
}

#[test]
fn silence_ends_the_trust_until_the_bus_was_heard_and_asked() {
    let mut listener = Listener::trusting(5);
    listener.beat(at(5));
    let heard = listener.now;
    assert_eq!(listener.protocol.trusted_until(), heard + SILENCE);
    assert_eq!(listener.tick(SILENCE - 1), [Beat]);
    assert_eq!(listener.tick(1), [Distrust(Why::Silent)]);
    assert_eq!(listener.protocol.trusted_until(), 0);
    assert_eq!(listener.tick(60_000), [Beat], "nobody would hear more");
    let asked = listener.beat(at(5));
    assert_eq!(listener.find(asked, at(5)), [Trust]);
}

#[test]
fn a_process_that_was_stopped_notices_the_silence_in_whatever_comes_first() {
    let mut listener = Listener::trusting(5);
    listener.now += 60_000;
    let heard = listener.message(6);
    assert_eq!(heard[..2], [Distrust(Why::Silent), Apply]);
    assert_eq!(listener.find(heard, at(6)), [Trust]);
}

/// Found by a random history of the model: a server that was given an older state than the one we
/// had heard of counts on from there.
#[test]
fn numbers_heard_of_in_a_former_life_of_the_bus_are_not_taken_for_those_of_the_next() {
    let mut listener = Listener::new();
    listener.hear(Event::Listening { server: BUS });
    listener.message(1);
    listener.hear(Event::Ended);
    listener.now += RETRY;
    let asked = listener.hear(Event::Listening { server: BUS + 1 });
    listener.find(asked, at(0));
    assert_eq!(listener.protocol.position(), Some(at(0)));
    let heard = listener.message(2);
    assert!(heard.contains(&Gap { missing: 1 }), "{heard:?}");
}

#[test]
fn another_server_is_told_again_and_doubted_though_its_numbers_fit() {
    let mut listener = Listener::trusting(5);
    listener.hear(Event::Ended);
    let heard = listener.hear(Event::Listening { server: BUS + 1 });
    assert_eq!(heard[..1], [Resend]);
    assert_eq!(listener.protocol.position(), None);
    assert_eq!(listener.find(heard, at(7)), [Doubt(Why::Server), Trust]);
    assert_eq!(listener.protocol.position(), Some(at(7)));
}

#[test]
fn numbers_that_went_back_are_doubted_and_told_again() {
    let mut listener = Listener::trusting(5);
    listener.message(6);
    let heard = listener.beat(at(4));
    assert_eq!(heard[..1], [Distrust(Why::Rollback)]);
    let learned = listener.find(heard, at(4));
    assert_eq!(learned, [Resend, Doubt(Why::Rollback), Trust]);
    assert_eq!(listener.protocol.position(), Some(at(4)));
    assert_eq!(listener.message(5), [Apply]);
    assert_eq!(listener.protocol.position(), Some(at(5)));
}

#[test]
fn an_answer_that_crossed_a_message_is_no_rollback() {
    let mut listener = Listener::trusting(5);
    let asked = listener.hear(Event::Unreadable { position: None });
    listener.message(6);
    assert_eq!(listener.find(asked, at(5)), [Trust]);
    assert_eq!(listener.protocol.position(), Some(at(6)));
}

#[test]
fn a_number_that_nobody_gave_out_ends_in_a_doubt() {
    for by_beat in [true, false] {
        let mut listener = Listener::trusting(5);
        let asked = match by_beat {
            true => listener.beat(at(u64::MAX)),
            false => listener.message(u64::MAX),
        };
        let asked = listener.replay(asked, 5);
        let learned = listener.find(asked, at(5));
        assert_eq!(learned, [Resend, Doubt(Why::Lost), Trust]);
        assert_eq!(listener.message(6), [Apply]);
        assert_eq!(listener.message(8).len(), 4, "gaps are still seen");
    }
}

#[test]
fn a_journal_that_is_behind_its_own_numbers_ends_in_a_doubt() {
    let mut listener = Listener::trusting(5);
    let asked = listener.beat(at(9));
    let asked = listener.replay(asked, 7);
    assert_eq!(listener.find(asked, at(9)), [Doubt(Why::Lost), Trust]);
    assert_eq!(listener.protocol.position(), Some(at(9)));
}

#[test]
fn nobody_beats_who_hears_others() {
    let mut listener = Listener::trusting(0);
    for count in 1..100 {
        listener.message(count);
        assert_eq!(listener.tick(BEAT - 1), []);
    }
    assert_eq!(listener.tick(1), [Beat]);
    assert_eq!(listener.tick(BEAT - 1), []);
}

#[test]
fn whoever_does_not_listen_asks_nothing_and_does_not_beat() {
    let mut listener = Listener::trusting(5);
    listener.hear(Event::Ended);
    assert_eq!(listener.tick(60_000), []);
    assert_eq!(listener.protocol.wake_at(listener.now), None);
}

#[test]
fn many_processes_cost_about_one_beat_a_second() {
    let mut nodes: Vec<Protocol> = (0..50)
        .map(|node| Protocol::new(node * MAX_JITTER / 50))
        .collect();
    for node in &mut nodes {
        node.step(0, Event::Listening { server: BUS });
    }
    let mut beats = 0;
    for now in 1..=60_000 {
        let ready = |node: &&mut Protocol| node.wake_at(now).is_some_and(|at| at <= now);
        let woken = nodes.iter_mut().filter(ready);
        let told: usize = woken
            .map(|node| node.step(now, Event::Tick))
            .filter(|actions| actions.contains(&Beat))
            .count();
        beats += told;
        if told > 0 {
            // Everybody has heard it a millisecond later.
            for node in &mut nodes {
                node.step(now, Event::Beat { position: at(0) });
            }
        }
    }
    assert!((50..=60).contains(&beats), "{beats} beats in a minute");
}

/// What was told and what was applied, by the book.
#[derive(Default)]
struct Ledger {
    told: HashMap<u64, u64>,
    applied: HashMap<u64, BTreeSet<u64>>,
    /// Up to here, nothing has to have been applied: it was told before a doubt.
    doubted: HashMap<u64, u64>,
    question: Option<Action>,
    asked_at: Millis,
    trusted: bool,
}

impl Ledger {
    fn tell(&mut self, position: Position) {
        let told = self.told.entry(position.incarnation).or_default();
        *told = position.count.max(*told);
    }

    fn apply(&mut self, position: Position) {
        let applied = self.applied.entry(position.incarnation).or_default();
        applied.insert(position.count);
    }

    fn take_in(&mut self, now: Millis, event: &Event) {
        match event {
            Event::Tick if now - self.asked_at >= PATIENCE => self.question = None,
            Event::Message {
                position: Some(position),
            } => {
                self.tell(*position);
                self.apply(*position);
            }
            Event::Beat { position }
            | Event::Unreadable {
                position: Some(position),
            } => self.tell(*position),
            Event::Where { position, .. } | Event::Lost { position, .. } => {
                self.tell(*position);
                self.question = None;
            }
            Event::Replayed { ticket, last, .. } => {
                let Some(Replay { after, .. }) = self.question.take() else {
                    panic!("nobody asked for {ticket}");
                };
                for count in after.count + 1..=last.count {
                    let position = Position { count, ..*last };
                    self.tell(position);
                    self.apply(position);
                }
            }
            Event::Failed { .. } | Event::Ended | Event::Listening { .. } => self.question = None,
            Event::Unreadable { position: None } => {
                self.question = self.question.filter(|asked| ask_of(&[*asked]).is_none());
            }
            Event::Message { position: None } | Event::Tick => {}
        }
    }

    fn act(&mut self, now: Millis, action: Action) {
        match action {
            AskWhere { .. } | Replay { .. } => {
                assert_eq!(self.question, None, "one question at a time");
                self.question = Some(action);
                self.asked_at = now;
            }
            Doubt(_) => self.doubted.clone_from(&self.told),
            Trust => assert!(!std::mem::replace(&mut self.trusted, true)),
            Distrust(_) => assert!(std::mem::take(&mut self.trusted)),
            _ => {}
        }
    }

    /// The first number of this incarnation that was told and neither applied nor doubted.
    fn missing(&self, incarnation: u64) -> Option<u64> {
        let told = self.told.get(&incarnation).copied().unwrap_or(0);
        let doubted = self.doubted.get(&incarnation).copied().unwrap_or(0);
        let applied = self.applied.get(&incarnation);
        (doubted..told)
            .map(|before| before + 1)
            .find(|number| !applied.is_some_and(|applied| applied.contains(number)))
    }
}

/// Something that may happen next, likely or not.
fn happening(kind: u8, incarnation: u64, count: u64, question: Option<Action>) -> Event {
    let position = Position { incarnation, count };
    match (kind, question) {
        (0..4, Some(AskWhere { ticket })) => Event::Where { ticket, position },
        (0..4, Some(Replay { ticket, after })) => {
            let count = after.count.saturating_add(count / 3);
            Event::Replayed {
                ticket,
                last: Position { count, ..after },
                at_end: kind > 0,
                unreadable: usize::from(kind == 3),
            }
        }
        (4, Some(Replay { ticket, .. })) => Event::Lost { ticket, position },
        (4 | 5, Some(AskWhere { ticket } | Replay { ticket, .. })) => Event::Failed { ticket },
        (0..2, _) => Event::Listening { server: count % 2 },
        (2, _) => Event::Ended,
        (3, _) => Event::Unreadable { position: None },
        (4, _) => Event::Unreadable {
            position: Some(position),
        },
        (5, _) => Event::Message { position: None },
        (6..9, _) => Event::Beat { position },
        (9..11, _) => Event::Tick,
        _ => Event::Message {
            position: Some(position),
        },
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// Whatever is heard, possible or not: while there is trust, everything that was told was
    /// applied or doubted.
    #[test]
    fn trust_means_that_all_that_was_told_is_applied_or_doubted(
        happenings in proptest::collection::vec((0_u8..20, 0_u64..20, 0_u64..9, 0_u64..1_500), 0..60),
    ) {
        let mut protocol = Protocol::new(0);
        let mut ledger = Ledger::default();
        let mut now = 0;
        for (kind, incarnation, count, pass) in happenings {
            now += pass;
            // Nearly always the same incarnation, or nothing would ever fit.
            let incarnation = incarnation.saturating_sub(17) + u64::from(incarnation < 19);
            let event = happening(kind, incarnation, count, ledger.question);
            ledger.take_in(now, &event);
            let actions = protocol.step(now, event.clone());
            prop_assert!(actions.len() <= 8, "{:?}", actions);
            actions.into_iter().for_each(|action| ledger.act(now, action));
            prop_assert_eq!(protocol.is_trusted(), ledger.trusted);
            if protocol.is_trusted() {
                prop_assert!(protocol.trusted_until() > now);
                prop_assert!(now - protocol.heard_at().unwrap() < SILENCE);
                let position = protocol.position().unwrap();
                prop_assert_eq!(ledger.missing(position.incarnation), None);
            }
            // Whoever wakes when told to never spins.
            if event == Event::Tick {
                prop_assert!(protocol.wake_at(now).is_none_or(|wake_at| wake_at > now));
            }
        }
    }

    #[test]
    fn no_numbers_make_it_panic(
        happenings in proptest::collection::vec((0_u8..20, any::<u64>(), any::<u64>(), any::<u64>()), 0..60),
    ) {
        let mut protocol = Protocol::new(Millis::MAX);
        let mut question = None;
        for (kind, incarnation, count, now) in happenings {
            let incarnation = if incarnation % 8 > 0 { 1 } else { incarnation };
            let edge = if count % 3 == 0 { u64::MAX } else { count % 5 };
            let actions = protocol.step(now, happening(kind, incarnation, edge, question));
            let asked = |action: &&Action| matches!(action, AskWhere { .. } | Replay { .. });
            question = actions.iter().find(asked).copied().or(question);
            let _ = (protocol.wake_at(now), protocol.position());
        }
    }
}
