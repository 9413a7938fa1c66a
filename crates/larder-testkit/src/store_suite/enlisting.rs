//! Properties of sets whose members end by themselves.

use std::time::Duration;

use bytes::Bytes;

use super::{HOUR, SHORT, Subject, joined, ok};

impl Subject {
    /// All members that count, in order.
    async fn enlist(&self, record: &Bytes, member: u32, keep: Duration) -> Vec<u32> {
        let mut members = ok("enlist", self.store.enlist(record, member, keep).await);
        members.sort_unstable();
        members
    }
}

/// Everyone who was noted is returned, once each, the caller included.
pub async fn enlisted_members_are_returned(subject: &Subject) {
    let (record, other) = (subject.key("set"), subject.key("other"));
    let members = [7, 0, u32::MAX, 1 << 31, 7];
    let mut expected = Vec::new();
    for member in members {
        expected.push(member);
        expected.sort_unstable();
        expected.dedup();
        assert_eq!(subject.enlist(&record, member, HOUR).await, expected);
    }
    assert_eq!(
        subject.enlist(&other, 9, HOUR).await,
        [9],
        "each record has its own"
    );
}

/// To note a member for no time is to ask who is there.
pub async fn a_member_for_no_time_is_not_noted(subject: &Subject) {
    let record = subject.key("set");
    for _ in 0..2 {
        assert!(subject.enlist(&record, 7, Duration::ZERO).await.is_empty());
    }
    subject.enlist(&record, 7, HOUR).await;
    assert_eq!(subject.enlist(&record, 8, Duration::ZERO).await, [7]);
    assert_eq!(subject.enlist(&record, 7, Duration::ZERO).await, [7]);
    assert_eq!(subject.enlist(&record, 9, HOUR).await, [7, 9]);
}

/// A member counts for the time that was asked, and then no more.
pub async fn a_member_ends_when_its_time_is_over(subject: &Subject) {
    let (record, brief) = (subject.key("set"), subject.key("brief"));
    subject.enlist(&record, 1, SHORT).await;
    subject.enlist(&brief, 1, SHORT).await;
    subject.enlist(&record, 2, HOUR).await;
    subject.pass(SHORT);
    for (record, expected) in [(&record, vec![2, 3]), (&brief, vec![3])] {
        subject
            .eventually("a member ends", async || {
                subject.enlist(record, 3, HOUR).await == expected
            })
            .await;
    }
    if subject.clock.is_some() {
        subject.pass(HOUR - SHORT - Duration::from_millis(1));
        assert_eq!(subject.enlist(&record, 4, SHORT).await, [2, 3, 4]);
    }
}

/// Noted again for a longer time a member stays; for a shorter time it loses nothing.
pub async fn a_member_is_kept_for_the_longest_time_asked(subject: &Subject) {
    let record = subject.key("set");
    for (member, times) in [(1, [SHORT, HOUR]), (2, [HOUR, SHORT])] {
        for keep in times {
            subject.enlist(&record, member, keep).await;
        }
    }
    subject.enlist(&record, 3, SHORT).await;
    subject.pass(SHORT);
    subject
        .eventually("a brief member ends", async || {
            !subject.enlist(&record, 4, HOUR).await.contains(&3)
        })
        .await;
    assert_eq!(subject.enlist(&record, 4, HOUR).await, [1, 2, 4]);
}

/// Times at both ends neither fail nor wrap around.
pub async fn extreme_times_of_members_are_taken(subject: &Subject) {
    let record = subject.key("set");
    assert_eq!(subject.enlist(&record, 1, Duration::MAX).await, [1]);
    subject.enlist(&record, 2, Duration::from_nanos(1)).await;
    subject.pass(SHORT);
    subject
        .eventually("the shortest time ends", async || {
            subject.enlist(&record, 3, HOUR).await == [1, 3]
        })
        .await;
}

/// Members that are noted at the same moment are all kept.
pub async fn concurrent_members_are_all_kept(subject: &Subject) {
    let record = subject.key("set");
    let tasks: Vec<_> = (0..32)
        .map(|member| {
            let (store, record) = (subject.store.clone(), record.clone());
            tokio::spawn(async move { ok("enlist", store.enlist(&record, member, HOUR).await) })
        })
        .collect();
    for (member, task) in tasks.into_iter().enumerate() {
        let seen = joined(task.await);
        assert!(seen.contains(&(member as u32)), "{member} is in {seen:?}");
    }
    let all: Vec<u32> = (0..32).collect();
    assert_eq!(subject.enlist(&record, 0, HOUR).await, all);
}

/// A set is removed like any other key, and what somebody else left there is replaced.
pub async fn a_set_is_a_key_like_any_other(subject: &Subject) {
    let record = subject.key("set");
    subject.enlist(&record, 1, HOUR).await;
    subject.delete(std::slice::from_ref(&record)).await;
    assert_eq!(subject.enlist(&record, 2, HOUR).await, [2]);
    subject.set(&record, &subject.fresh("v")).await;
    assert_eq!(subject.enlist(&record, 3, HOUR).await, [3]);
}
