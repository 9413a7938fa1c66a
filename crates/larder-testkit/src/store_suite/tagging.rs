//! Properties of values with tags: which are refused, what their records hold, what they carry.

use bytes::Bytes;
use larder::envelope::Header;
use larder::store::{Fill, Filled, LeaseRequest, LeaseToken, Position, TagRecord, Tagged, Write};

use super::counting::since;
use super::{
    HOUR, SHORT, Subject, assert_acquired, fill, lease_in, token, versions_in, with_tags, write,
};

/// A namespace with its counter and some tags.
struct Tags {
    counter: Bytes,
    records: Vec<Bytes>,
}

impl Tags {
    fn since(&self, since: Option<Position>) -> Tagged {
        Tagged {
            counter: self.counter.clone(),
            records: self.records.clone(),
            since,
        }
    }

    fn of(&self, records: impl IntoIterator<Item = usize>) -> Tags {
        Tags {
            counter: self.counter.clone(),
            records: records
                .into_iter()
                .map(|n| self.records[n].clone())
                .collect(),
        }
    }
}

/// A lease that was taken, and where the counter stood.
struct Held {
    key: Bytes,
    holder: LeaseToken,
    since: Position,
}

impl Subject {
    fn tags(&self, count: usize) -> Tags {
        Tags {
            counter: self.key("counter"),
            records: (0..count).map(|n| self.key(format!("tag:{n}"))).collect(),
        }
    }

    /// Takes the lease on `name`, whatever stands there.
    async fn begin(&self, name: &str, tags: &Tags) -> Held {
        let key = self.key(name);
        let request = LeaseRequest {
            stale_at: u64::MAX,
            ..self.request_at(&tags.counter)
        };
        let leased = self.lease_with(&key, &request).await;
        Held {
            key,
            holder: request.token,
            since: since(&leased),
        }
    }

    /// Fills under the lease with a version proposed for each record.
    async fn finish(&self, held: &Held, tags: &Tags, proposed: &[u64]) -> Filled {
        let value = with_tags(&self.fresh("filled"), proposed);
        let fill = Fill {
            tags: Some(tags.since(Some(held.since))),
            ..fill(&held.key, held.holder, &value)
        };
        self.fill_all(&[fill]).await.swap_remove(0)
    }

    /// Writes past all leases.
    async fn write_tagged(&self, name: &str, tags: &Tags, proposed: &[u64]) -> Filled {
        let value = with_tags(&self.fresh("written"), proposed);
        let write = Write {
            tags: Some(tags.since(None)),
            ..write(&self.key(name), &value)
        };
        self.set_all(&[write]).await.swap_remove(0)
    }

    async fn record(&self, key: &Bytes) -> Option<TagRecord> {
        let bytes = self.raw(key).await?;
        let record = TagRecord::parse(&bytes);
        assert!(record.is_some(), "{bytes:?} is no record of a tag");
        record
    }

    async fn versions(&self, tags: &Tags) -> Vec<Option<u64>> {
        let mut versions = Vec::new();
        for key in &tags.records {
            versions.push(self.record(key).await.map(|record| record.version));
        }
        versions
    }
}

fn kept(versions: &[u64]) -> Filled {
    Filled::Stored {
        versions: versions.into(),
    }
}

/// A record that is missing is made with the version proposed and the counter of now.
pub async fn a_missing_record_is_made_as_proposed(subject: &Subject) {
    let tags = subject.tags(3);
    let held = subject.begin("filled", &tags).await;
    assert_eq!(
        subject.finish(&held, &tags, &[11, 12, 13]).await,
        kept(&[11, 12, 13])
    );
    for (n, key) in tags.records.iter().enumerate() {
        let expected = TagRecord {
            version: 11 + n as u64,
            made_at: held.since,
        };
        assert_eq!(subject.record(key).await, Some(expected));
        // A record is these bytes and nothing else, for all stores: other releases read them.
        let bytes = Bytes::copy_from_slice(&expected.to_bytes());
        assert_eq!(subject.raw(key).await, Some(bytes));
    }
    subject.invalidate(&tags.records[..1], &tags.counter).await;
    let now = subject.position(&tags.counter).await;
    let written = subject.write_tagged("written", &tags, &[21, 22, 23]).await;
    assert_eq!(written, kept(&[21, 12, 13]));
    let made = subject.record(&tags.records[0]).await;
    assert_eq!(made.map(|record| record.made_at), Some(now));
}

/// The versions that the records hold replace those that were proposed, in the answer and in the
/// bytes, in the order of the records; everything else in the bytes stays.
pub async fn versions_of_records_replace_those_proposed(subject: &Subject) {
    let tags = subject.tags(4);
    let made = subject
        .write_tagged("first", &tags.of([3, 1]), &[33, 31])
        .await;
    assert_eq!(made, kept(&[33, 31]));
    let proposed = [u64::MAX, 1 << 53, 0, 0x0a0d_0000_00ff_0001];
    let expected = [proposed[0], 31, proposed[2], 33];
    for order in [[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]] {
        let reordered = tags.of(order);
        let proposed = order.map(|n| proposed[n]);
        let expected = order.map(|n| expected[n]);
        for name in ["filled", "written"] {
            let key = subject.key(name);
            let sent = with_tags(&subject.fresh(vec![7; 3_000]), &proposed);
            let answer = if name == "filled" {
                let held = subject.begin(name, &tags).await;
                let tagged = Fill {
                    tags: Some(reordered.since(Some(held.since))),
                    ..fill(&key, held.holder, &sent)
                };
                subject.fill_all(&[tagged]).await
            } else {
                let tagged = Write {
                    tags: Some(reordered.since(None)),
                    ..write(&key, &sent)
                };
                subject.set_all(&[tagged]).await
            };
            assert_eq!(answer, [kept(&expected)], "{name} {order:?}");
            let expected = with_tags(&sent, &expected);
            assert_eq!(subject.raw(&key).await, Some(expected), "{name} {order:?}");
        }
    }
}

/// A thousand tags are taken, each with its own version.
pub async fn a_value_may_have_many_tags(subject: &Subject) {
    const MANY: usize = 1_001;
    let tags = subject.tags(MANY);
    let odd = tags.of((0..MANY).skip(1).step_by(2));
    let proposed: Vec<u64> = (0..odd.records.len() as u64).collect();
    assert_eq!(
        subject.write_tagged("half", &odd, &proposed).await,
        kept(&proposed)
    );
    let held = subject.begin("all", &tags).await;
    let proposed: Vec<u64> = (0..MANY as u64).map(|n| 10_000 + n).collect();
    let expected: Vec<u64> = (0..MANY as u64)
        .map(|n| if n % 2 == 1 { n / 2 } else { 10_000 + n })
        .collect();
    assert_eq!(
        subject.finish(&held, &tags, &proposed).await,
        kept(&expected)
    );
    let value = subject.raw(&held.key).await.unwrap_or_default();
    assert_eq!(versions_in(&value), expected);
}

/// A namespace whose counter was lost cannot tell what happened since: the fill is refused.
pub async fn a_fill_from_another_incarnation_is_refused(subject: &Subject) {
    let tags = subject.tags(1);
    for round in 0..2 {
        let held = subject.begin("k", &tags).await;
        subject.delete(std::slice::from_ref(&tags.counter)).await;
        // Whether or not somebody has begun it anew by then, and although the record is there.
        if round == 1 {
            subject.position(&tags.counter).await;
        }
        let late = subject.finish(&held, &tags, &[7]).await;
        assert_eq!(late, Filled::Refused, "round {round}");
        assert_eq!(subject.value(&held.key).await, None);
        subject.release(&held.key, held.holder).await;
    }
    // A fill without tags asks no counter, even beside a position.
    let held = subject.begin("k", &tags).await;
    subject.delete(std::slice::from_ref(&tags.counter)).await;
    let value = subject.fresh("v");
    assert_eq!(
        subject.fill(&held.key, held.holder, &value).await,
        super::stored()
    );
}

/// The same for a value that has no tag but comes with a position: only the incarnation counts.
pub async fn a_fill_without_records_asks_for_the_incarnation(subject: &Subject) {
    let tags = subject.tags(0);
    let held = subject.begin("k", &tags).await;
    subject.invalidate(&[], &tags.counter).await;
    assert_eq!(subject.finish(&held, &tags, &[]).await, kept(&[]));
    let held = subject.begin("k", &tags).await;
    subject.delete(std::slice::from_ref(&tags.counter)).await;
    assert_eq!(subject.finish(&held, &tags, &[]).await, Filled::Refused);
}

/// A record that was made after the load began stands for an invalidation in between.
pub async fn a_fill_older_than_a_record_is_refused(subject: &Subject) {
    let tags = subject.tags(3);
    let held = subject.begin("k", &tags).await;
    subject.invalidate(&tags.records[1..2], &tags.counter).await;
    let made = subject.write_tagged("other", &tags.of([1]), &[7]).await;
    assert_eq!(made, kept(&[7]));
    let late = subject.finish(&held, &tags.of([1]), &[8]).await;
    assert_eq!(late, Filled::Refused);
    let late = subject.finish(&held, &tags, &[8, 8, 8]).await;
    assert_eq!(late, Filled::Refused, "one such tag is enough");
    assert_eq!(subject.value(&held.key).await, None);
    subject.release(&held.key, held.holder).await;
    let held = subject.begin("k", &tags).await;
    let next = subject.finish(&held, &tags.of([1]), &[9]).await;
    assert_eq!(next, kept(&[7]), "a load that began later is not late");
}

/// A record that is missing, once anything was invalidated since, may have been that.
pub async fn a_fill_without_a_record_is_refused_once_the_counter_moved(subject: &Subject) {
    let tags = subject.tags(2);
    let held = subject.begin("k", &tags).await;
    subject.invalidate(&tags.records[..1], &tags.counter).await;
    let late = subject.finish(&held, &tags.of([0]), &[7]).await;
    assert_eq!(late, Filled::Refused);
    assert_eq!(subject.value(&held.key).await, None);
    // It need not have been this tag: nobody knows.
    let late = subject.finish(&held, &tags.of([1]), &[7]).await;
    assert_eq!(late, Filled::Refused);
}

/// Invalidating one tag refuses no fill whose tags have records from before.
pub async fn a_fill_whose_records_are_older_is_stored(subject: &Subject) {
    let tags = subject.tags(2);
    subject.write_tagged("other", &tags.of([0]), &[7]).await;
    let held = subject.begin("k", &tags).await;
    for _ in 0..3 {
        subject.invalidate(&tags.records[1..], &tags.counter).await;
    }
    let filled = subject.finish(&held, &tags.of([0]), &[8]).await;
    assert_eq!(filled, kept(&[7]));
    // A record from an earlier life of the counter is older than every load of this one.
    subject.delete(std::slice::from_ref(&tags.counter)).await;
    let held = subject.begin("k", &tags).await;
    subject.invalidate(&tags.records[1..], &tags.counter).await;
    let filled = subject.finish(&held, &tags.of([0]), &[8]).await;
    assert_eq!(filled, kept(&[7]));
}

/// A record that was lost while nothing was invalidated refuses no fill.
pub async fn a_fill_without_a_record_is_stored_while_the_counter_stands(subject: &Subject) {
    let tags = subject.tags(1);
    assert_eq!(subject.write_tagged("old", &tags, &[7]).await, kept(&[7]));
    let held = subject.begin("k", &tags).await;
    subject.delete(&tags.records).await;
    assert_eq!(subject.finish(&held, &tags, &[8]).await, kept(&[8]));
    let old = subject.raw(&subject.key("old")).await.unwrap_or_default();
    assert_eq!(versions_in(&old), [7], "and the old entry is not valid");
}

/// Records are made also where the fill is refused, so that the next fill finds them.
pub async fn a_refused_fill_makes_the_records_that_are_missing(subject: &Subject) {
    let tags = subject.tags(3);
    let held = subject.begin("k", &tags).await;
    subject.invalidate(&[], &tags.counter).await;
    let now = subject.position(&tags.counter).await;
    // The middle one refuses the fill by itself.
    subject.write_tagged("other", &tags.of([1]), &[12]).await;
    let late = subject.finish(&held, &tags, &[21, 22, 23]).await;
    assert_eq!(late, Filled::Refused);
    assert_eq!(
        subject.versions(&tags).await,
        [Some(21), Some(12), Some(23)]
    );
    for key in &tags.records {
        let made_at = subject.record(key).await.map(|record| record.made_at);
        assert_eq!(made_at, Some(now), "not where the load began");
    }
    let raw = subject.raw(&held.key).await;
    assert!(
        raw.is_none() || lease_in(&raw) == Some(held.holder),
        "the lease is left as it is"
    );
    subject.release(&held.key, held.holder).await;
    let held = subject.begin("k", &tags).await;
    let next = subject.finish(&held, &tags, &[31, 32, 33]).await;
    assert_eq!(next, kept(&[21, 12, 23]));
}

/// A write is newer than every invalidation that came before it, whatever position it names.
pub async fn a_write_with_tags_is_not_compared_with_the_counter(subject: &Subject) {
    let tags = subject.tags(2);
    let long_ago = Position {
        incarnation: 1,
        count: 0,
    };
    for since in [None, Some(long_ago)] {
        subject.invalidate(&tags.records, &tags.counter).await;
        let write = Write {
            tags: Some(tags.since(since)),
            ..write(
                &subject.key("k"),
                &with_tags(&subject.fresh("written"), &[7, 8]),
            )
        };
        assert_eq!(subject.set_all(&[write]).await, [kept(&[7, 8])]);
    }
}

/// An invalidated tag has another version from then on, and the entries from before keep theirs.
pub async fn an_invalidated_tag_gets_another_version(subject: &Subject) {
    let tags = subject.tags(2);
    subject.write_tagged("before", &tags, &[7, 8]).await;
    subject.invalidate(&tags.records[..1], &tags.counter).await;
    assert_eq!(subject.versions(&tags).await, [None, Some(8)]);
    let held = subject.begin("after", &tags).await;
    assert_eq!(
        subject.finish(&held, &tags, &[17, 18]).await,
        kept(&[17, 8])
    );
    let before = subject
        .raw(&subject.key("before"))
        .await
        .unwrap_or_default();
    assert_eq!(versions_in(&before), [7, 8]);
}

/// A record is kept at least as long as each of its values: it is prolonged, and never shortened.
pub async fn a_record_is_kept_as_long_as_its_values(subject: &Subject) {
    let tags = subject.tags(2);
    let short = |name: &str, tags: &Tags| Write {
        ttl: SHORT,
        tags: Some(tags.since(None)),
        ..write(&subject.key(name), &with_tags(&subject.fresh("v"), &[7]))
    };
    // The first record begins short and must be prolonged, the second must not be shortened.
    let (first, second) = (tags.of([0]), tags.of([1]));
    subject.set_all(&[short("brief", &first)]).await;
    let held = subject.begin("long", &first).await;
    assert!(matches!(
        subject.finish(&held, &first, &[8]).await,
        Filled::Stored { .. }
    ));
    subject.write_tagged("longer", &second, &[9]).await;
    subject.set_all(&[short("briefer", &second)]).await;
    let versions = subject.versions(&tags).await;
    subject.pass(SHORT);
    subject
        .eventually("the short values end", async || {
            let keys = ["brief", "briefer"].map(|name| subject.key(name));
            subject.get(&keys).await == [None, None]
        })
        .await;
    assert_eq!(subject.versions(&tags).await, versions);
    assert!(versions.iter().all(Option::is_some));
    if subject.clock.is_some() {
        // Just before the long values end.
        subject.pass(HOUR - SHORT - std::time::Duration::from_millis(1));
        assert!(subject.value(&held.key).await.is_some());
        assert_eq!(subject.versions(&tags).await, versions);
    }
}

/// What somebody else left under the key of a record is no record: one is made.
pub async fn foreign_bytes_under_a_record_are_replaced(subject: &Subject) {
    let tags = subject.tags(4);
    let whole = TagRecord {
        version: 1,
        made_at: Position::default(),
    };
    let foreign = [
        Bytes::from_static(b"hello"),
        subject.fresh("v"),
        Bytes::copy_from_slice(&whole.to_bytes()[1..]),
        [&whole.to_bytes()[..], b"x"].concat().into(),
    ];
    for (key, bytes) in tags.records.iter().zip(&foreign) {
        subject.set(key, bytes).await;
    }
    let held = subject.begin("k", &tags).await;
    assert_eq!(
        subject.finish(&held, &tags, &[1, 2, 3, 4]).await,
        kept(&[1, 2, 3, 4])
    );
    assert_eq!(
        subject.versions(&tags).await,
        [Some(1), Some(2), Some(3), Some(4)]
    );
    for (key, bytes) in tags.records.iter().zip(&foreign) {
        subject.set(key, bytes).await;
    }
    let late = subject.begin("k", &tags).await;
    subject.invalidate(&[], &tags.counter).await;
    assert_eq!(
        subject.finish(&late, &tags, &[5, 6, 7, 8]).await,
        Filled::Refused,
        "as for records that are missing"
    );
}

/// Versions of values count for tagged values as for others, in both directions.
pub async fn versions_and_tags_go_together(subject: &Subject) {
    let tags = subject.tags(1);
    let plain = subject.fresh("v");
    let value =
        |version: u64, proposed: u64| super::with_version(&with_tags(&plain, &[proposed]), version);
    let key = subject.key("k");
    let set = async |version: u64, proposed: u64| {
        let write = Write {
            tags: Some(tags.since(None)),
            ..write(&key, &value(version, proposed))
        };
        subject.set_all(&[write]).await.swap_remove(0)
    };
    assert_eq!(set(7, 1).await, kept(&[1]));
    assert_eq!(set(6, 2).await, Filled::Refused);
    assert_eq!(set(8, 3).await, kept(&[1]));
    assert_eq!(subject.raw(&key).await, Some(value(8, 1)));
    let held = subject.begin("k", &tags).await;
    let late = |version: u64| Fill {
        tags: Some(tags.since(Some(held.since))),
        ..fill(&key, held.holder, &value(version, 4))
    };
    assert_eq!(subject.fill_all(&[late(7)]).await, [Filled::Refused]);
    assert_eq!(subject.fill_all(&[late(9)]).await, [kept(&[1])]);
    assert_eq!(subject.raw(&key).await, Some(value(9, 1)));
}

/// A batch mixes values of several tags, of none, and fills that are refused; each is answered by
/// its place, and one batch makes a record once.
pub async fn tagged_fills_of_a_batch_are_answered_in_order(subject: &Subject) {
    let tags = subject.tags(3);
    let names = ["a", "b", "late", "plain", "c"];
    let mut fills = Vec::new();
    let late = subject.begin("late", &tags).await;
    subject.invalidate(&[], &tags.counter).await;
    subject.write_tagged("other", &tags.of([2]), &[9]).await;
    for (n, name) in names.into_iter().enumerate() {
        let held = match name {
            "late" => Held {
                key: late.key.clone(),
                ..late
            },
            _ => subject.begin(name, &tags).await,
        };
        let records = tags.of(match name {
            "a" => vec![0, 1],
            "b" => vec![1, 0],
            "late" => vec![2],
            "plain" => vec![],
            _ => vec![2, 1],
        });
        let proposed: Vec<u64> = (0..records.records.len() as u64)
            .map(|place| 100 * (n as u64 + 1) + place)
            .collect();
        let value = with_tags(&subject.fresh(name), &proposed);
        fills.push(Fill {
            tags: (name != "plain").then(|| records.since(Some(held.since))),
            ..fill(&held.key, held.holder, &value)
        });
    }
    let answers = [
        kept(&[100, 101]),
        kept(&[101, 100]),
        Filled::Refused,
        kept(&[]),
        kept(&[9, 101]),
    ];
    assert_eq!(subject.fill_all(&fills).await, answers);
    for (fill, answer) in fills.iter().zip(answers) {
        let expected = match answer {
            Filled::Stored { versions } => Some(with_tags(&fill.value, &versions)),
            Filled::Refused => None,
        };
        assert_eq!(subject.value(&fill.key).await, expected);
    }
}

/// A lease and its fill work the same with a header that names tags: nothing reads behind it.
pub async fn a_tagged_value_is_leased_and_expired_like_any_other(subject: &Subject) {
    let tags = subject.tags(2);
    subject.write_tagged("k", &tags, &[7, 8]).await;
    let key = subject.key("k");
    let before = subject.raw(&key).await.unwrap_or_default();
    subject.expire(&key, subject.now()).await;
    let expired = subject.raw(&key).await.unwrap_or_default();
    assert_eq!(expired[Header::LEN..], before[Header::LEN..]);
    assert_eq!(
        Header::parse(&expired).map(|header| header.tag_count),
        Some(2)
    );
    let holder = token();
    assert_acquired(&subject.lease(&key, holder).await);
    subject.release(&key, holder).await;
    assert_eq!(subject.raw(&key).await, Some(expired));
}
