//! Several futures at once in one task, so that what they leave in its scope is the caller's.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;

/// Runs `count` futures, up to `at_most` of them at once, and returns what they give, in their order.
/// Each is made by `begin`, which gets its place, as its turn comes.
pub(super) async fn abreast<F: Future>(
    count: usize,
    at_most: usize,
    mut begin: impl FnMut(usize) -> F,
) -> Vec<F::Output> {
    let mut places = 0..count;
    let mut ended: Vec<(usize, F::Output)> = Vec::with_capacity(count);
    let mut under_way: Vec<(usize, Pin<Box<F>>)> = Vec::new();
    poll_fn(|context| {
        let mut at = 0;
        loop {
            if at == under_way.len() {
                if at == at_most.max(1) {
                    return Poll::Pending;
                }
                match places.next() {
                    Some(place) => under_way.push((place, Box::pin(begin(place)))),
                    None if under_way.is_empty() => return Poll::Ready(()),
                    None => return Poll::Pending,
                }
            }
            let (place, future) = &mut under_way[at];
            let Poll::Ready(output) = future.as_mut().poll(context) else {
                at += 1;
                continue;
            };
            ended.push((*place, output));
            // The next one moves into the same box: what ends at once costs no further one.
            match places.next() {
                Some(next) => {
                    *place = next;
                    future.set(begin(next));
                }
                None => drop(under_way.swap_remove(at)),
            }
        }
    })
    .await;
    ended.sort_unstable_by_key(|(place, _)| *place);
    ended.into_iter().map(|(_, output)| output).collect()
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// Notes how many of its kind are under way, for as many polls as it is told.
    async fn counted(under_way: &Cell<usize>, most: &Cell<usize>, polls: usize) -> usize {
        under_way.set(under_way.get() + 1);
        most.set(most.get().max(under_way.get()));
        for _ in 0..polls {
            tokio::task::yield_now().await;
        }
        under_way.set(under_way.get() - 1);
        polls
    }

    #[tokio::test]
    async fn so_many_run_at_once_and_their_order_stays() {
        let polls = [3, 0, 5, 1, 0, 0, 9, 2, 2, 0];
        for at_most in [0, 1, 3, 100] {
            let (under_way, most) = (Cell::new(0), Cell::new(0));
            let begin = |at| counted(&under_way, &most, polls[at]);
            assert_eq!(abreast(polls.len(), at_most, begin).await, polls);
            assert!(most.get() <= at_most.max(1));
            assert!(at_most < 3 || most.get() >= 3);
        }
        assert!(abreast(0, 3, std::future::ready).await.is_empty());
    }
}
