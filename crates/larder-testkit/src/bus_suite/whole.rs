use std::future::Future;
use std::pin::pin;
use std::task::{Context, Waker};

use bytes::Bytes;
use fastrand::Rng;
use larder::backplane::Replay;
use larder::store::Position;

use super::{ALL, BusSubject, further, publish};
use crate::seeds;

/// The bus has a name, in one short word, for statistics.
pub async fn the_bus_describes_itself(subject: &BusSubject) {
    let name = subject.bus.name();
    assert!(!name.is_empty() && name.len() <= 32, "{name:?}");
    assert!(!name.contains(char::is_whitespace), "{name:?}");
    assert!(!format!("{:?}", subject.bus).is_empty());
}

/// Operations may be dropped at any await point; what they did or did not do is whole.
pub async fn a_dropped_operation_leaves_the_bus_usable(subject: &BusSubject) {
    let channel = subject.channel("dropped operations");
    let start = subject.beat(&channel, "").await;
    for polls in 0..40 {
        poll_and_drop(polls % 4, subject.bus.publish(&channel, "m".into())).await;
        poll_and_drop(polls % 3, subject.bus.beat(&channel, "b".into())).await;
        poll_and_drop(polls % 2, subject.bus.replay(&channel, start, ALL)).await;
    }
    let end = subject.publish(&channel, "m").await;
    let replayed = subject.replayed(&channel, start, ALL).await;
    let numbers = replayed.iter().map(|(position, _)| *position);
    let all = (start.count + 1..=end.count).map(|count| Position { count, ..start });
    assert!(numbers.eq(all), "{replayed:?} up to {end:?}");
    assert!(replayed.iter().all(|(_, message)| message == "m"));
}

/// Polls a future so many times, with a chance for others in between, and drops it.
async fn poll_and_drop(polls: usize, future: impl Future) {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    for _ in 0..polls {
        if future.as_mut().poll(&mut context).is_ready() {
            return;
        }
        tokio::task::yield_now().await;
    }
}

/// Closing one handle is no other process's affair.
pub async fn a_handle_that_is_closed_leaves_the_others_usable(subject: &BusSubject) {
    if subject.peer.is_none() {
        return;
    }
    let channel = subject.channel("closed");
    let before = subject.publish(&channel, "m").await;
    let mut ear = subject.ear(&channel).await;
    super::ok("close", subject.bus.close().await);
    let position = publish(subject.peer(), &channel, "m").await;
    assert_eq!(position, further(before, 1));
    assert_eq!(ear.message().await, (Some(position), "m".into()));
}

/// Whatever is asked in whatever order, the answers are those of a plain list of messages.
pub async fn random_sequences_agree_with_the_model(subject: &BusSubject) {
    for seed in seeds(5) {
        let mut rng = seed.rng();
        let channel = subject.channel(&format!("model {}", seed.number()));
        let start = subject.beat(&channel, "").await;
        let mut ear = subject.ear(&channel).await;
        let mut model: Vec<(Position, Bytes)> = Vec::new();
        let handles = [&subject.bus, subject.peer()];
        for _ in 0..200 {
            let bus = handles[rng.usize(..2)];
            let end = model.last().map_or(start, |(position, _)| *position);
            match rng.u8(..10) {
                0..5 => {
                    let message = noise(&mut rng);
                    let position = publish(bus, &channel, message.clone()).await;
                    assert_eq!(position, further(end, 1));
                    assert_eq!(ear.message().await, (Some(position), message.clone()));
                    model.push((position, message));
                }
                5..7 => {
                    let message = noise(&mut rng);
                    let position = bus.beat(&channel, message.clone()).await;
                    assert_eq!(super::ok("beat", position), end);
                    assert_eq!(ear.beat().await, (end, message));
                }
                _ => {
                    let after = further(start, rng.u64(..model.len() as u64 + 3));
                    let at_most = rng.usize(1..20);
                    let replay = super::ok("replay", bus.replay(&channel, after, at_most).await);
                    assert_eq!(replay, expected(&model, start, end, after, at_most));
                }
            }
        }
    }
}

fn expected(
    model: &[(Position, Bytes)],
    start: Position,
    end: Position,
    after: Position,
    at_most: usize,
) -> Replay {
    match model.get((after.count - start.count) as usize..) {
        Some(behind) => Replay::Complete(behind.iter().take(at_most).cloned().collect()),
        None => Replay::Lost { position: end },
    }
}

fn noise(rng: &mut Rng) -> Bytes {
    let length = match rng.u8(..10) {
        0 => 0,
        9 => rng.usize(..5_000),
        _ => rng.usize(..40),
    };
    (0..length).map(|_| rng.u8(..)).collect()
}
