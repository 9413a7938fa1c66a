use larder::backplane::Notice;

use super::{BusSubject, further};
use crate::{Ear, seeded};

/// Once [`Notice::Listening`] came, the very next message is heard.
pub async fn every_message_after_listening_is_heard(subject: &BusSubject) {
    let channel = subject.channel("at once");
    for _ in 0..50 {
        let mut ear = subject.ear(&channel).await;
        let position = subject.publish(&channel, "m").await;
        assert_eq!(ear.message().await, (Some(position), "m".into()));
    }
}

/// Messages are heard in the order of their numbers, each once.
pub async fn messages_are_heard_in_order(subject: &BusSubject) {
    let channel = subject.channel("order");
    let mut ear = subject.ear(&channel).await;
    let start = subject.beat(&channel, "").await;
    assert_eq!(ear.beat().await.0, start);
    for hundred in 0..20 {
        let numbers = hundred * 100 + 1..hundred * 100 + 101;
        subject.publish_numbers(&channel, numbers.clone()).await;
        for number in numbers {
            let heard = ear.message().await;
            let position = further(start, number);
            assert_eq!(heard, (Some(position), number.to_string().into()));
        }
    }
}

/// All listeners of a channel are told the same.
pub async fn all_listeners_hear_the_same(subject: &BusSubject) {
    let channel = subject.channel("several");
    let mut ears = Vec::new();
    for (_, bus) in (0..6).zip(subject.handles()) {
        ears.push(Ear::open(bus.clone(), &channel).await);
    }
    let position = subject.publish(&channel, "m").await;
    let beat = subject.beat(&channel, "b").await;
    for ear in &mut ears {
        assert_eq!(ear.message().await, (Some(position), "m".into()));
        assert_eq!(ear.beat().await, (beat, "b".into()));
    }
}

/// A listener hears what is published through its own handle.
pub async fn the_sender_hears_itself(subject: &BusSubject) {
    let channel = subject.channel("echo");
    let mut ear = Ear::open(subject.bus.clone(), &channel).await;
    let position = subject.publish(&channel, "m").await;
    assert_eq!(ear.message().await, (Some(position), "m".into()));
    let position = subject.beat(&channel, "b").await;
    assert_eq!(ear.beat().await, (position, "b".into()));
}

/// While the server lives, all are told the same of it, whenever and through whatever they listen.
pub async fn listeners_of_one_server_agree_on_it(subject: &BusSubject) {
    let mut servers = Vec::new();
    for (name, bus) in ["one", "one", "two", "two"].iter().zip(subject.handles()) {
        let ear = Ear::open(bus.clone(), &subject.channel(name)).await;
        servers.push(ear.server());
        ear.close().await;
    }
    assert!(servers.iter().all(|id| *id == servers[0]), "{servers:?}");
}

/// Listening that is dropped leaves nothing behind: many times over, and for those who go on.
pub async fn a_dropped_listening_ends(subject: &BusSubject) {
    let channel = subject.channel("dropped");
    let mut stays = subject.ear(&channel).await;
    for _ in 0..200 {
        let ear = subject.ear(&channel).await;
        ear.close().await;
    }
    // Some are dropped while they begin.
    for _ in 0..50 {
        let ear = Ear::begin(subject.peer().clone(), &channel);
        tokio::task::yield_now().await;
        ear.close().await;
    }
    let position = subject.publish(&channel, "m").await;
    assert_eq!(stays.message().await, (Some(position), "m".into()));
}

/// What arrives and is no message of the bus is told as such, however long it is, and the listening
/// goes on. Holds by itself for a bus that nobody else can reach.
pub async fn what_cannot_be_read_is_told(subject: &BusSubject) {
    let Some(forge) = &subject.forge else {
        return;
    };
    let channel = subject.channel("garbage");
    let mut ear = subject.ear(&channel).await;
    let mut garbage: Vec<Vec<u8>> = vec![
        Vec::new(),
        b"hello".into(),
        b"{\"invalidate\":\"everything\"}".into(),
        vec![0; 1 << 20],
        vec![b'$'; 70_000],
    ];
    seeded(20, |rng, _| {
        let length = rng.usize(..200);
        garbage.push((0..length).map(|_| rng.u8(..)).collect());
    });
    for bytes in garbage {
        forge(&channel, &bytes);
        let start = String::from_utf8_lossy(&bytes[..bytes.len().min(40)]);
        assert_eq!(ear.next().await, Notice::Unreadable, "{start:?}");
    }
    let position = subject.publish(&channel, "m").await;
    assert_eq!(ear.message().await, (Some(position), "m".into()));
}

/// A beat says what [`larder::backplane::Backplane::beat`] returned, and where the last message is.
pub async fn a_beat_tells_where_the_channel_stands(subject: &BusSubject) {
    let channel = subject.channel("beats");
    let mut ear = subject.ear(&channel).await;
    let start = subject.beat(&channel, "begin").await;
    assert_eq!(start.count, 0);
    assert_ne!(start.incarnation, 0);
    assert_eq!(ear.beat().await, (start, "begin".into()));
    for count in 1..=5 {
        let position = subject.publish(&channel, "m").await;
        assert_eq!(position, further(start, count));
        assert_eq!(ear.message().await.0, Some(position));
        assert_eq!(subject.beat(&channel, "b").await, position);
        assert_eq!(ear.beat().await, (position, "b".into()));
    }
}

/// Beats are neither numbered nor kept.
pub async fn a_beat_takes_no_number(subject: &BusSubject) {
    let channel = subject.channel("no number");
    let start = subject.beat(&channel, "b").await;
    for bus in subject.handles().take(10) {
        let beat = bus.beat(&channel, "b".into()).await;
        assert_eq!(super::ok("beat", beat), start);
    }
    let position = subject.publish(&channel, "m").await;
    assert_eq!(position, further(start, 1));
    let replayed = subject.replayed(&channel, start, super::ALL).await;
    assert_eq!(replayed, [(position, "m".into())]);
}

/// Messages and beats are heard in the order in which they were sent; where beats come late, they say
/// where the last message is that was told before them.
pub async fn beats_keep_their_place_among_messages(subject: &BusSubject) {
    let channel = subject.channel("places");
    let mut ear = subject.ear(&channel).await;
    for _ in 0..50 {
        let first = subject.publish(&channel, "first").await;
        let beat = subject.beat(&channel, "beat").await;
        let second = subject.publish(&channel, "second").await;
        assert_eq!(ear.message().await, (Some(first), "first".into()));
        if subject.late_beats {
            let mut rest = [ear.next().await, ear.next().await];
            let told = match &rest[0] {
                Notice::Message { .. } => second,
                _ => beat,
            };
            rest.sort_by_key(|notice| matches!(notice, Notice::Beat { .. }));
            let message = Notice::Message {
                position: Some(second),
                message: "second".into(),
            };
            let late = Notice::Beat {
                position: told,
                message: "beat".into(),
            };
            assert_eq!(rest, [message, late]);
            continue;
        }
        assert_eq!(ear.beat().await, (beat, "beat".into()));
        assert_eq!(ear.message().await, (Some(second), "second".into()));
    }
}
