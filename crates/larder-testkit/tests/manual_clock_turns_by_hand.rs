//! Time that stands still until it is turned.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use larder::clock::Clock;
use larder_testkit::ManualClock;

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test]
async fn sleepers_wake_in_the_order_of_their_deadlines() {
    let clock = ManualClock::new();
    let woken = Arc::new(Mutex::new(Vec::new()));
    let sleepers: Vec<_> = [5, 1, 4, 2, 3]
        .map(|seconds| {
            let (sleep, woken) = (clock.sleep(SECOND * seconds), woken.clone());
            tokio::spawn(async move {
                sleep.await;
                woken.lock().unwrap().push(seconds);
            })
        })
        .into();
    clock.sleeping(5).await;
    clock.advance(SECOND * 3);
    assert_eq!(
        clock.sleepers(),
        2,
        "those whose time has come are not parked"
    );
    clock.advance(SECOND * 2);
    for sleeper in sleepers {
        sleeper.await.unwrap();
    }
    assert_eq!(*woken.lock().unwrap(), [1, 2, 3, 4, 5]);
}

#[tokio::test]
async fn a_sleep_is_counted_from_its_call_and_forgotten_when_dropped() {
    let clock = ManualClock::new();
    let sleep = clock.sleep(SECOND);
    clock.advance(SECOND);
    sleep.await;
    let abandoned = tokio::spawn(clock.sleep(SECOND));
    clock.sleeping(1).await;
    abandoned.abort();
    assert!(abandoned.await.unwrap_err().is_cancelled());
    assert_eq!(clock.sleepers(), 0);
}

#[test]
fn wall_time_is_set_apart_from_monotonic_time() {
    let clock = ManualClock::new();
    assert_eq!((clock.monotonic(), clock.wall()), (0, ManualClock::START));
    clock.advance(Duration::from_micros(1_500));
    clock.advance(Duration::from_micros(500));
    assert_eq!(
        (clock.monotonic(), clock.wall()),
        (2, ManualClock::START + 2)
    );
    clock.set_wall(1_000);
    clock.advance(SECOND);
    assert_eq!((clock.monotonic(), clock.wall()), (1_002, 2_000));
    clock.advance(Duration::MAX);
    assert_eq!(clock.monotonic(), u64::MAX);
}
