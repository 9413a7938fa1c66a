use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::Wake;

use super::*;
use crate::fence::Fence;

type Sky = Arc<Flights<u32, &'static str>>;

/// Counts how often it is woken.
struct Bell(AtomicUsize);

impl Wake for Bell {
    fn wake(self: std::sync::Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

fn poll<T: Clone>(wait: &mut Wait<u32, T>) -> Poll<Arrival<u32, T>> {
    Pin::new(wait).poll(&mut Context::from_waker(Waker::noop()))
}

fn is_empty(sky: &Sky) -> bool {
    sky.shards.iter().all(|shard| lock(shard).is_empty())
}

fn value<T: Clone>(poll: Poll<Arrival<u32, T>>) -> Option<T> {
    match poll {
        Poll::Ready(Arrival::Landed(value)) => Some(value),
        _ => None,
    }
}

fn lead<T: Clone>(poll: Poll<Arrival<u32, T>>) -> Option<Seat<u32, T>> {
    match poll {
        Poll::Ready(Arrival::Lead(seat)) => Some(seat),
        _ => None,
    }
}

fn setup() -> (Sky, Fence, Mark) {
    let fence = Fence::alone();
    let mark = fence.mark(1);
    (Arc::new(Flights::new()), fence, mark)
}

#[test]
fn one_leads_and_all_get_what_lands() {
    let (sky, _, mark) = setup();
    let (seat, mut own) = sky.board(1, &7, mark);
    let (none, mut other) = sky.board(1, &7, mark);
    assert!(none.is_none() && poll(&mut other).is_pending());
    seat.unwrap().land("value");
    assert_eq!(value(poll(&mut own)), Some("value"));
    assert_eq!(value(poll(&mut other)), Some("value"));
    assert!(is_empty(&sky));
}

#[test]
fn keys_that_share_a_hash_fly_apart() {
    let (sky, _, mark) = setup();
    let (first, _wait) = sky.board(1, &7, mark);
    let (second, _wait) = sky.board(1, &8, mark);
    assert_eq!(first.unwrap().key(), Some(&7));
    assert_eq!(second.unwrap().key(), Some(&8));
}

#[test]
fn a_dropped_seat_passes_the_lead_to_a_waiter() {
    let (sky, _, mark) = setup();
    let (seat, own) = sky.board(1, &7, mark);
    let (_, mut other) = sky.board(1, &7, mark);
    let bell = std::sync::Arc::new(Bell(AtomicUsize::new(0)));
    let waker = Waker::from(std::sync::Arc::clone(&bell));
    assert!(
        Pin::new(&mut other)
            .poll(&mut Context::from_waker(&waker))
            .is_pending()
    );
    drop((seat, own));
    assert_eq!(bell.0.load(SeqCst), 1, "the waiter was woken");
    let seat = lead(poll(&mut other)).expect("the waiter leads");
    assert!(
        poll(&mut other).is_pending(),
        "and waits for its own landing"
    );
    seat.land("value");
    assert_eq!(value(poll(&mut other)), Some("value"));
}

#[test]
fn a_vacant_lead_goes_to_whoever_boards_next() {
    let (sky, _, mark) = setup();
    let (seat, _own) = sky.board(1, &7, mark);
    let (_, _other) = sky.board(1, &7, mark);
    drop(seat);
    assert!(sky.board(1, &7, mark).0.is_some());
}

#[test]
fn a_flight_that_everybody_left_is_gone() {
    let (sky, _, mark) = setup();
    let (seat, own) = sky.board(1, &7, mark);
    let (_, other) = sky.board(1, &7, mark);
    drop(other);
    drop(seat);
    assert!(!is_empty(&sky), "one still waits");
    drop(own);
    assert!(is_empty(&sky));
}

#[test]
fn nobody_boards_a_flight_from_before_an_invalidation() {
    let (sky, fence, mark) = setup();
    let (old, mut old_wait) = sky.board(1, &7, mark);
    let mark = fence.bump(1);
    let (new, mut new_wait) = sky.board(1, &7, mark);
    old.unwrap().land("old");
    assert_eq!(value(poll(&mut old_wait)), Some("old"));
    assert!(poll(&mut new_wait).is_pending());
    assert!(
        sky.board(1, &7, mark).0.is_none(),
        "the old flight's end leaves the new one there"
    );
    new.unwrap().land("new");
    assert_eq!(value(poll(&mut new_wait)), Some("new"));
}

#[test]
fn what_is_shown_reaches_waiters_while_the_flight_goes_on() {
    let (sky, _, mark) = setup();
    let (seat, mut own) = sky.board(1, &7, mark);
    seat.as_ref().unwrap().show("stale");
    assert_eq!(value(poll(&mut own)), Some("stale"));
    let (none, mut late) = sky.board(1, &7, mark);
    assert!(none.is_none());
    assert_eq!(value(poll(&mut late)), Some("stale"));
    late.insist();
    assert!(poll(&mut late).is_pending());
    seat.unwrap().land("fresh");
    assert_eq!(value(poll(&mut late)), Some("fresh"));
}

#[test]
fn a_thousand_waiters_survive_leader_after_leader() {
    let (sky, _, mark) = setup();
    let (seat, own) = sky.board(1, &7, mark);
    let mut waits: Vec<_> = (0..1000).map(|_| sky.board(1, &7, mark).1).collect();
    for wait in &mut waits {
        assert!(poll(wait).is_pending());
    }
    drop((seat, own));
    // Every leader but the last gives up at once.
    while waits.len() > 1 {
        let mut wait = waits.pop().unwrap();
        drop(lead(poll(&mut wait)).expect("the lead is vacant"));
    }
    let seat = lead(poll(&mut waits[0])).unwrap();
    seat.land("value");
    assert_eq!(value(poll(&mut waits[0])), Some("value"));
    drop(waits);
    assert!(is_empty(&sky));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_that_are_aborted_at_random_strand_nobody() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    for _ in 0..200 {
        let (sky, _, mark) = setup();
        let landed = Arc::new(AtomicUsize::new(0));
        let mut tasks = Vec::new();
        for _ in 0..20 {
            let (sky, landed) = (Arc::clone(&sky), Arc::clone(&landed));
            let yields = rng.usize(0..4);
            tasks.push(tokio::spawn(async move {
                let (mut seat, mut wait) = sky.board(1, &7, mark);
                loop {
                    if let Some(seat) = seat.take() {
                        for _ in 0..yields {
                            tokio::task::yield_now().await;
                        }
                        landed.fetch_add(1, SeqCst);
                        seat.land("value");
                    }
                    match (&mut wait).await {
                        Arrival::Landed(value) => return value,
                        Arrival::Lead(vacant) => seat = Some(vacant),
                    }
                }
            }));
        }
        for task in &tasks {
            if rng.bool() {
                task.abort();
            }
        }
        for task in tasks {
            if let Ok(value) = task.await {
                assert_eq!(value, "value");
            }
        }
        assert!(is_empty(&sky));
    }
}

#[test]
fn a_caller_with_an_old_mark_joins_the_newer_flight_and_does_not_replace_it() {
    let (sky, fence, old) = setup();
    let new = fence.bump(1);
    let (seat, _own) = sky.board(1, &7, new);
    let (none, mut late) = sky.board(1, &7, old);
    assert!(none.is_none());
    assert!(sky.board(1, &7, new).0.is_none());
    seat.unwrap().land("new");
    assert_eq!(value(poll(&mut late)), Some("new"));
}

#[test]
fn places_of_waits_that_are_gone_are_used_again() {
    let (sky, _, mark) = setup();
    let (_seat, _own) = sky.board(1, &7, mark);
    for _ in 0..1000 {
        let (_, mut wait) = sky.board(1, &7, mark);
        assert!(poll(&mut wait).is_pending());
    }
    let (_, wait) = sky.board(1, &7, mark);
    assert!(lock(&wait.flight.state).waiting.len() <= 2);
}
