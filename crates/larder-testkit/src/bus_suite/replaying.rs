use bytes::Bytes;
use larder::backplane::Replay;
use larder::store::Position;

use super::{ALL, BusSubject, further, joined, publish};

/// A replay holds exactly the messages behind a position, oldest first, as listeners heard them.
pub async fn a_replay_holds_what_follows(subject: &BusSubject) {
    let channel = subject.channel("replay");
    let start = subject.beat(&channel, "").await;
    subject.publish_numbers(&channel, 1..31).await;
    for after in 0..30 {
        let expected: Vec<(Position, Bytes)> = (after + 1..31)
            .map(|number| (further(start, number), number.to_string().into()))
            .collect();
        let replayed = subject.replayed(&channel, further(start, after), ALL).await;
        assert_eq!(replayed, expected);
    }
}

/// Nothing follows on the last message.
pub async fn a_replay_from_the_end_is_empty(subject: &BusSubject) {
    let channel = subject.channel("end");
    let start = subject.beat(&channel, "").await;
    assert_eq!(subject.replayed(&channel, start, ALL).await, []);
    let end = subject.publish_numbers(&channel, 1..4).await;
    assert_eq!(subject.replayed(&channel, end, ALL).await, []);
    assert_eq!(subject.replayed(&channel, end, 1).await, []);
}

/// Where more messages follow than asked for, the oldest ones come.
pub async fn a_replay_holds_no_more_than_asked_for(subject: &BusSubject) {
    let channel = subject.channel("at most");
    let start = subject.beat(&channel, "").await;
    subject.publish_numbers(&channel, 1..21).await;
    for at_most in [1, 2, 19, 20, 21] {
        let replayed = subject.replayed(&channel, start, at_most).await;
        let counts: Vec<u64> = replayed.iter().map(|(each, _)| each.count).collect();
        let expected: Vec<u64> = (1..21).take(at_most).collect();
        assert_eq!(counts, expected, "at most {at_most}");
    }
}

/// Replays that go on where the last one stopped see every message once.
pub async fn a_replay_in_steps_reaches_the_end(subject: &BusSubject) {
    let channel = subject.channel("steps");
    let start = subject.beat(&channel, "").await;
    let count = (subject.journal_messages / 2).min(5_000) as u64;
    let end = publish_many(subject, &channel, count).await;
    assert_eq!(end, further(start, count));
    for step in [997, ALL] {
        let mut at = start;
        while at != end {
            let replayed = subject.replayed(&channel, at, step).await;
            assert!(!replayed.is_empty() && replayed.len() <= step, "{at:?}");
            for (position, _) in replayed {
                assert_eq!(position, further(at, 1));
                at = position;
            }
        }
    }
}

/// Messages beyond the journal's bound are gone, and a replay that needed them says so. What the
/// journal still holds is complete.
pub async fn what_the_journal_no_longer_holds_is_lost(subject: &BusSubject) {
    let channel = subject.channel("trimmed");
    let start = subject.beat(&channel, "").await;
    let journal = subject.journal_messages as u64;
    let count = journal + journal / 5;
    let end = publish_many(subject, &channel, count).await;
    assert_eq!(subject.lost(&channel, start).await, end);
    assert_eq!(subject.lost(&channel, further(start, 1)).await, end);
    let mut complete = None;
    for missed in [journal, journal / 2, 10, 1] {
        let after = further(start, count - missed);
        match subject.replay(&channel, after, ALL).await {
            Replay::Complete(messages) => {
                assert_eq!(messages.len() as u64, missed);
                assert_eq!(messages[0].0, further(after, 1));
                complete.get_or_insert(missed);
            }
            Replay::Lost { position } => {
                assert_eq!(position, end);
                assert_eq!(complete, None, "what is newer is not lost either");
            }
        }
    }
    let complete = complete.unwrap_or_default();
    assert!(complete >= journal / 2, "the journal is short: {complete}");
}

/// A position of another incarnation is lost, whatever it counts, and the true one is told.
pub async fn a_position_of_another_incarnation_is_lost(subject: &BusSubject) {
    let channel = subject.channel("other incarnation");
    let end = subject.publish_numbers(&channel, 1..6).await;
    for incarnation in [
        0,
        1,
        end.incarnation ^ 1,
        end.incarnation ^ (1 << 63),
        u64::MAX,
    ] {
        for count in [0, 3, 5, 9] {
            let other = Position { incarnation, count };
            assert_eq!(subject.lost(&channel, other).await, end, "{other:?}");
        }
    }
    assert_eq!(subject.replayed(&channel, end, ALL).await, []);
}

/// A position that the channel has not reached is lost: what it counted was rolled back.
pub async fn a_position_ahead_of_the_channel_is_lost(subject: &BusSubject) {
    let channel = subject.channel("ahead");
    let start = subject.beat(&channel, "").await;
    assert_eq!(subject.lost(&channel, further(start, 1)).await, start);
    let end = subject.publish_numbers(&channel, 1..6).await;
    for ahead in [1, 2, 1_000_000, u64::MAX - end.count] {
        assert_eq!(subject.lost(&channel, further(end, ahead)).await, end);
    }
}

/// A channel that nobody used yet begins with the replay.
pub async fn an_unknown_channel_is_lost_and_begins(subject: &BusSubject) {
    let channel = subject.channel("unknown");
    let begun = subject.lost(&channel, Position::default()).await;
    assert_ne!(begun.incarnation, 0);
    assert_eq!(begun.count, 0);
    assert_eq!(subject.beat(&channel, "").await, begun);
    assert_eq!(subject.publish(&channel, "m").await, further(begun, 1));
}

/// While others publish, every replay goes on from its position without a hole, up to the last.
pub async fn a_replay_under_way_sees_no_hole(subject: &BusSubject) {
    const STEP: u64 = 50;
    let channel = subject.channel("under way");
    let start = subject.beat(&channel, "").await;
    // More than one replay holds, so that it is behind, whoever is quicker from then on.
    let before = STEP + 10;
    subject.publish_numbers(&channel, 0..before).await;
    let messages = (subject.journal_messages / 2).clamp(100, 500) as u64;
    let publisher = tokio::spawn({
        let (bus, channel) = (subject.bus.clone(), channel.clone());
        async move {
            for _ in before..messages {
                publish(&bus, &channel, "m").await;
                tokio::task::yield_now().await;
            }
        }
    });
    let mut at = start;
    while at != further(start, messages) {
        for (position, _) in subject.replayed(&channel, at, STEP as usize).await {
            assert_eq!(position, further(at, 1));
            at = position;
        }
        tokio::task::yield_now().await;
    }
    joined(publisher.await);
}

/// Publishes short messages, some at a time; returns the position of the last one.
async fn publish_many(subject: &BusSubject, channel: &str, count: u64) -> Position {
    const AT_A_TIME: u64 = 16;
    let publishers = (0..AT_A_TIME).zip(subject.handles()).map(|(who, bus)| {
        let (bus, channel) = (bus.clone(), channel.to_owned());
        tokio::spawn(async move {
            for number in (who..count).step_by(AT_A_TIME as usize) {
                publish(&bus, &channel, number.to_string()).await;
            }
        })
    });
    for publisher in publishers.collect::<Vec<_>>() {
        joined(publisher.await);
    }
    subject.beat(channel, "").await
}
