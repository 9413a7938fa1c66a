use std::collections::HashSet;

use bytes::Bytes;
use larder::backplane::MAX_MESSAGE_BYTES;
use larder::store::StoreErrorKind;

use super::{ALL, BusSubject, further, joined, publish};

/// Each message has the number behind the last one's, whichever handle publishes it.
pub async fn numbers_have_no_holes(subject: &BusSubject) {
    let channel = subject.channel("numbers");
    let start = subject.beat(&channel, "").await;
    for (count, bus) in (1..=100).zip(subject.handles()) {
        let position = publish(bus, &channel, "m").await;
        assert_eq!(position, further(start, count));
    }
}

/// The incarnation of a channel is its own, never zero, and stays.
pub async fn a_channel_begins_with_an_incarnation_of_its_own(subject: &BusSubject) {
    let mut seen = HashSet::from([0]);
    for name in ["one", "two", "three"] {
        let channel = subject.channel(name);
        let first = subject.publish(&channel, "m").await;
        assert_eq!(first.count, 1);
        let new = seen.insert(first.incarnation);
        assert!(new, "{first:?} of {name} is not of its own incarnation");
        assert_eq!(subject.publish(&channel, "m").await, further(first, 1));
        assert_eq!(subject.beat(&channel, "").await, further(first, 1));
    }
}

/// What goes through one channel is not seen in another, however much alike their names are.
pub async fn channels_do_not_mix(subject: &BusSubject) {
    let names = ["a", "a:b", "A", "a*", "?", "[a]", "a b", "ä", "a\0", "a~"];
    let channels = names.map(|name| subject.channel(name));
    let mut ears = Vec::new();
    for channel in &channels {
        ears.push(subject.ear(channel).await);
    }
    let mut positions = Vec::new();
    for channel in &channels {
        positions.push(subject.publish(channel, channel.clone()).await);
    }
    for ((channel, ear), position) in channels.iter().zip(&mut ears).zip(positions) {
        assert_eq!(position.count, 1, "{channel:?}");
        let heard = ear.message().await;
        assert_eq!(heard, (Some(position), channel.clone().into()));
        let last = subject.beat(channel, "last").await;
        assert_eq!(ear.beat().await, (last, "last".into()), "{channel:?}");
    }
}

/// A message may be any bytes, for listeners and in a replay.
pub async fn messages_come_back_byte_for_byte(subject: &BusSubject) {
    let channel = subject.channel("bytes");
    let start = subject.beat(&channel, "").await;
    let mut ear = subject.ear(&channel).await;
    let every_byte: Vec<u8> = (0..=255).collect();
    let messages: [&[u8]; 8] = [
        b"",
        b"\0",
        b"a\0b",
        b"\r\n",
        b"$-1\r\n",
        b"LRDB\x01",
        b"\xff\xfe",
        &every_byte,
    ];
    for message in messages {
        subject.publish(&channel, message.to_vec()).await;
        assert_eq!(ear.message().await.1, message);
        subject.beat(&channel, message.to_vec()).await;
        assert_eq!(ear.beat().await.1, message);
    }
    let replayed = subject.replayed(&channel, start, ALL).await;
    let replayed: Vec<Bytes> = replayed.into_iter().map(|(_, message)| message).collect();
    assert_eq!(replayed, messages);
}

/// [`MAX_MESSAGE_BYTES`] are taken, told and replayed.
pub async fn a_message_may_be_as_long_as_promised(subject: &BusSubject) {
    let channel = subject.channel("long");
    let start = subject.beat(&channel, "").await;
    let mut ear = subject.ear(&channel).await;
    let message = Bytes::from(vec![0xa5; MAX_MESSAGE_BYTES]);
    let position = subject.publish(&channel, message.clone()).await;
    assert_eq!(ear.message().await, (Some(position), message.clone()));
    let replayed = subject.replayed(&channel, start, ALL).await;
    assert_eq!(replayed, [(position, message)]);
}

/// One byte more is refused, as a message and in a beat, and nobody notices.
pub async fn a_longer_message_is_refused_and_takes_no_number(subject: &BusSubject) {
    let channel = subject.channel("too long");
    let start = subject.beat(&channel, "").await;
    let mut ear = subject.ear(&channel).await;
    for length in [MAX_MESSAGE_BYTES + 1, 16 * MAX_MESSAGE_BYTES] {
        let message = Bytes::from(vec![1; length]);
        let published = subject.bus.publish(&channel, message.clone()).await;
        let beat = subject.bus.beat(&channel, message).await;
        for result in [published, beat] {
            match result {
                Ok(position) => panic!("{length} bytes were taken at {position:?}"),
                Err(error) => assert_eq!(error.kind(), StoreErrorKind::Refused, "{error}"),
            }
        }
    }
    let next = subject.publish(&channel, "short").await;
    assert_eq!(next, further(start, 1));
    assert_eq!(ear.message().await, (Some(next), "short".into()));
}

/// Many publish at once through several handles: every number is given once, and listeners are told
/// in its order.
pub async fn concurrent_publishers_share_one_sequence(subject: &BusSubject) {
    const PUBLISHERS: u64 = 8;
    const EACH: u64 = 50;
    let channel = subject.channel("crowded");
    let start = subject.beat(&channel, "").await;
    let mut ear = subject.ear(&channel).await;
    let publishers = (0..PUBLISHERS).zip(subject.handles()).map(|(who, bus)| {
        let (bus, channel) = (bus.clone(), channel.clone());
        tokio::spawn(async move {
            let mut given = Vec::new();
            for turn in 0..EACH {
                let text = Bytes::from(format!("{who}.{turn}"));
                given.push((publish(&bus, &channel, text.clone()).await, text));
            }
            given
        })
    });
    let publishers: Vec<_> = publishers.collect();
    let mut given = Vec::new();
    for publisher in publishers {
        given.extend(joined(publisher.await));
    }
    given.sort_by_key(|(position, _)| position.count);
    for (count, (position, text)) in (1..).zip(given) {
        assert_eq!(position, further(start, count));
        assert_eq!(ear.message().await, (Some(position), text));
    }
}
