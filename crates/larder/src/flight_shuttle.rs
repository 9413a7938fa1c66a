//! Flights under every schedule that shuttle thinks of: run with `RUSTFLAGS="--cfg shuttle"`.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use shuttle::future::block_on;
use shuttle::thread;

use super::*;
use crate::fence::Fence;

const SCHEDULES: usize = 2_000;

type Sky = Arc<Flights<u32, usize>>;

/// Flies as a caller does. `gives_up` callers drop the seat as often as they get it, and leave.
fn fly(
    sky: &Sky,
    mark: Mark,
    value: usize,
    gives_up: bool,
    landings: &AtomicUsize,
) -> Option<usize> {
    let (mut seat, mut wait) = sky.board(1, &7, mark);
    loop {
        if let Some(seat) = seat.take() {
            if gives_up {
                return None;
            }
            landings.fetch_add(1, SeqCst);
            seat.land(value);
        }
        match block_on(&mut wait) {
            Arrival::Landed(value) => return Some(value),
            Arrival::Lead(vacant) => seat = Some(vacant),
        }
    }
}

fn is_empty(sky: &Sky) -> bool {
    sky.shards.iter().all(|shard| lock(shard).is_empty())
}

/// Callers that all want the key, the first `quitters` of which give up whenever they lead.
fn callers(count: usize, quitters: usize) {
    let sky: Sky = Arc::new(Flights::new());
    let mark = Fence::alone().mark(1);
    let landings = Arc::new(AtomicUsize::new(0));
    let threads: Vec<_> = (0..count)
        .map(|at| {
            let (sky, landings) = (Arc::clone(&sky), Arc::clone(&landings));
            thread::spawn(move || fly(&sky, mark, at, at < quitters, &landings))
        })
        .collect();
    let values: Vec<_> = threads
        .into_iter()
        .map(|thread| thread.join().unwrap())
        .collect();
    assert!(
        values[quitters..].iter().all(Option::is_some),
        "nobody is stranded"
    );
    assert!((1..=count - quitters).contains(&landings.load(SeqCst)));
    assert!(is_empty(&sky), "nothing is left behind");
}

#[test]
fn everybody_gets_a_value_under_any_schedule() {
    shuttle::check_random(|| callers(4, 0), SCHEDULES);
    shuttle::check_pct(|| callers(4, 0), SCHEDULES, 3);
}

#[test]
fn leaders_that_give_up_strand_nobody_under_any_schedule() {
    shuttle::check_random(|| callers(4, 2), SCHEDULES);
    shuttle::check_pct(|| callers(4, 2), SCHEDULES, 3);
}

/// A caller that takes its mark before a bump loads 1, one after it loads 2; whoever boards after
/// the bump must get 2.
fn overtaken() {
    let sky: Sky = Arc::new(Flights::new());
    let fence = Arc::new(Fence::alone());
    let before = fence.mark(1);
    let old = {
        let (sky, fence) = (Arc::clone(&sky), Arc::clone(&fence));
        thread::spawn(move || {
            let mark = fence.mark(1);
            let value = if mark == before { 1 } else { 2 };
            fly(&sky, mark, value, false, &AtomicUsize::new(0))
        })
    };
    let new = {
        let sky = Arc::clone(&sky);
        thread::spawn(move || fly(&sky, fence.bump(1), 2, false, &AtomicUsize::new(0)))
    };
    assert!(old.join().unwrap().is_some());
    assert_eq!(new.join().unwrap(), Some(2));
    assert!(is_empty(&sky));
}

#[test]
fn a_caller_from_after_an_invalidation_gets_no_older_flight_under_any_schedule() {
    shuttle::check_random(overtaken, SCHEDULES);
    shuttle::check_pct(overtaken, SCHEDULES, 3);
}

/// A leader that shows something first and lands later reaches those who insist on the end.
#[test]
fn those_who_insist_get_what_lands_under_any_schedule() {
    shuttle::check_random(
        || {
            let sky: Sky = Arc::new(Flights::new());
            let mark = Fence::alone().mark(1);
            let (seat, own) = sky.board(1, &7, mark);
            drop(own);
            let waiting: Vec<_> = (0..2)
                .map(|_| {
                    let (_, mut wait) = sky.board(1, &7, mark);
                    wait.insist();
                    thread::spawn(move || match block_on(&mut wait) {
                        Arrival::Landed(value) => value,
                        Arrival::Lead(_) => unreachable!("the leader lands"),
                    })
                })
                .collect();
            let seat = seat.unwrap();
            seat.show(1);
            seat.land(2);
            for thread in waiting {
                assert_eq!(thread.join().unwrap(), 2);
            }
            assert!(is_empty(&sky));
        },
        SCHEDULES,
    );
}

/// Looks once and leaves, as a caller whose patience is over, with whatever it has.
fn leave(sky: &Sky, mark: Mark) {
    let (seat, mut wait) = sky.board(1, &7, mark);
    block_on(std::future::poll_fn(|context| {
        drop(Pin::new(&mut wait).poll(context));
        Poll::Ready(())
    }));
    drop((wait, seat));
}

/// A leader that shows something and then goes, or lands.
fn show(sky: &Sky, mark: Mark, lands: bool) {
    let (seat, wait) = sky.board(1, &7, mark);
    drop(wait);
    let Some(seat) = seat else { return };
    seat.show(1);
    if lands {
        seat.land(2);
    }
}

#[test]
fn those_who_leave_strand_nobody_and_leave_nothing_behind_under_any_schedule() {
    let leaving = |lands| {
        let sky: Sky = Arc::new(Flights::new());
        let mark = Fence::alone().mark(1);
        let others: [fn(&Sky, Mark, bool); 3] = [
            |sky, mark, _| leave(sky, mark),
            |sky, mark, _| leave(sky, mark),
            show,
        ];
        let others = others.map(|other| {
            let sky = Arc::clone(&sky);
            thread::spawn(move || other(&sky, mark, lands))
        });
        let stays = {
            let sky = Arc::clone(&sky);
            thread::spawn(move || fly(&sky, mark, 3, false, &AtomicUsize::new(0)))
        };
        assert!(stays.join().unwrap().is_some());
        for other in others {
            other.join().unwrap();
        }
        assert!(is_empty(&sky));
        assert_eq!(Arc::strong_count(&sky), 1, "no flight holds the sky up");
    };
    for lands in [false, true] {
        shuttle::check_random(move || leaving(lands), SCHEDULES);
        shuttle::check_pct(move || leaving(lands), SCHEDULES, 3);
    }
}
