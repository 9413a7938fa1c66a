//! What a store must answer while no time passes, as plainly as it can be said.

use bytes::Bytes;
use fastrand::Rng;
use larder::clock::Millis;
use larder::envelope::Header;
use larder::store::{Fill, Filled, LeaseToken, Leased, Position, TagRecord, Tagged, Write};

use super::{
    Subject, envelope, expired, fill, lease_in, ok, same_but_lease, stored, token, with_tags,
    with_version, write,
};

#[derive(Clone, Debug, PartialEq)]
enum Slot {
    Absent,
    Placeholder {
        lease: Option<LeaseToken>,
        minimum: u64,
    },
    Value {
        value: Bytes,
        lease: Option<LeaseToken>,
    },
}

impl Slot {
    fn lease(&mut self, token: LeaseToken, stale_at: Millis, here: Position) -> Leased {
        let stale = match self {
            Slot::Value { value, .. } if is_fresh(value, stale_at) => {
                return Leased::Value(value.clone());
            }
            Slot::Value { value, .. } => Some(value.clone()),
            Slot::Placeholder { .. } | Slot::Absent => None,
        };
        if self.holder().is_some() {
            return Leased::Held { stale };
        }
        match self {
            Slot::Value { lease, .. } | Slot::Placeholder { lease, .. } => *lease = Some(token),
            Slot::Absent => {
                *self = Slot::Placeholder {
                    lease: Some(token),
                    minimum: 0,
                };
            }
        }
        Leased::Acquired {
            stale,
            since: Some(here),
        }
    }

    fn holder(&self) -> Option<LeaseToken> {
        match self {
            Slot::Absent => None,
            Slot::Placeholder { lease, .. } | Slot::Value { lease, .. } => *lease,
        }
    }

    fn lets_in_fill(&self, token: LeaseToken, value: &Bytes) -> bool {
        let version = version_of(value);
        let is_new_enough = match self {
            Slot::Absent => true,
            Slot::Placeholder { minimum, .. } => version >= *minimum,
            Slot::Value { value, .. } => version == 0 || version >= version_of(value),
        };
        self.holder() == Some(token) && is_new_enough
    }

    fn lets_in_write(&self, value: &Bytes) -> bool {
        let version = version_of(value);
        let held = match self {
            Slot::Absent => 0,
            Slot::Placeholder { minimum, .. } => *minimum,
            Slot::Value { value, .. } => version_of(value),
        };
        let is_demand = value.len() == Header::LEN;
        let is_met = matches!(self, Slot::Value { .. }) && is_demand && held == version;
        version == 0 || version >= held && !is_met
    }

    fn put(&mut self, value: Bytes) {
        *self = match value.len() {
            Header::LEN => Slot::Placeholder {
                lease: None,
                minimum: version_of(&value),
            },
            _ => Slot::Value { value, lease: None },
        };
    }

    fn release(&mut self, token: LeaseToken) {
        if self.holder() == Some(token) {
            self.end_lease();
        }
    }

    fn expire(&mut self, wall: Millis) {
        self.end_lease();
        if let Slot::Value { value, .. } = self {
            *value = expired(value, wall);
        }
    }

    fn end_lease(&mut self) {
        match self {
            Slot::Placeholder { minimum: 0, .. } | Slot::Absent => *self = Slot::Absent,
            Slot::Value { lease, .. } | Slot::Placeholder { lease, .. } => *lease = None,
        }
    }

    fn agrees_with(&self, found: &Option<Bytes>) -> bool {
        match (self, found) {
            (Slot::Absent | Slot::Placeholder { .. }, None) => true,
            (Slot::Placeholder { lease, minimum }, Some(bytes)) => {
                bytes.len() == Header::LEN
                    && version_of(bytes) == *minimum
                    && lease_in(found) == *lease
            }
            (Slot::Value { value, lease }, Some(bytes)) => {
                same_but_lease(bytes, value) && lease_in(found) == *lease
            }
            _ => false,
        }
    }
}

fn is_fresh(value: &Bytes, at: Millis) -> bool {
    Header::parse(value).is_some_and(|header| header.is_fresh(at))
}

fn version_of(value: &Bytes) -> u64 {
    Header::parse(value).map_or(0, |header| header.version)
}

/// The counter of a namespace and the records of its tags.
struct Namespace {
    counter: Bytes,
    here: Position,
    names: Vec<Bytes>,
    records: Vec<Option<TagRecord>>,
}

impl Namespace {
    /// The versions of these tags, made where they are missing; `None` refuses the value.
    fn tag(
        &mut self,
        tags: &[usize],
        since: Option<Position>,
        proposed: &[u64],
    ) -> Option<Vec<u64>> {
        let here = self.here;
        let mut refused = since.is_some_and(|since| since.incarnation != here.incarnation);
        let mut versions = Vec::new();
        for (&n, &version) in tags.iter().zip(proposed) {
            refused |= match (since, self.records[n]) {
                (None, _) => false,
                (Some(since), None) => since != here,
                (Some(since), Some(TagRecord { made_at, .. })) => {
                    made_at.incarnation == since.incarnation && made_at.count > since.count
                }
            };
            let made = TagRecord {
                version,
                made_at: here,
            };
            versions.push(self.records[n].get_or_insert(made).version);
        }
        (!refused).then_some(versions)
    }

    fn tagged(&self, tags: &[usize], since: Option<Position>) -> Tagged {
        Tagged {
            counter: self.counter.clone(),
            records: tags.iter().map(|&n| self.names[n].clone()).collect(),
            since,
        }
    }
}

const KEYS: usize = 4;
const TAGS: usize = 3;

/// Does `steps` random operations on the subject and on the model, and compares every answer.
pub(super) async fn compare(subject: &Subject, rng: &mut Rng, prefix: &str, steps: usize) {
    let names = |kind: &str, count: usize| -> Vec<Bytes> {
        (0..count)
            .map(|n| subject.key(format!("{prefix}{kind}{n}")))
            .collect()
    };
    let counter = subject.key(format!("{prefix}counter"));
    let here = subject.position(&counter).await;
    let mut run = Run {
        subject,
        now: subject.now(),
        names: names("", KEYS),
        slots: vec![Slot::Absent; KEYS],
        namespace: Namespace {
            counter,
            here,
            names: names("tag", TAGS),
            records: vec![None; TAGS],
        },
        loads: vec![(token(), here)],
        log: Vec::new(),
    };
    for _ in 0..steps {
        run.step(rng).await;
        run.compare_all().await;
    }
}

struct Run<'a> {
    subject: &'a Subject,
    now: Millis,
    names: Vec<Bytes>,
    slots: Vec<Slot>,
    namespace: Namespace,
    /// The last few tokens that asked for a lease, and where the counter stood.
    loads: Vec<(LeaseToken, Position)>,
    log: Vec<String>,
}

impl Run<'_> {
    async fn step(&mut self, rng: &mut Rng) {
        let count = rng.usize(1..=KEYS);
        let picked = rng.choose_multiple(0..KEYS, count);
        let keys: Vec<Bytes> = picked.iter().map(|&n| self.names[n].clone()).collect();
        match rng.u8(..20) {
            0..5 => self.lease(&picked, &keys).await,
            5..8 => self.fill(rng, &picked).await,
            8..12 => self.fill_tagged(rng, picked[0]).await,
            12 => self.release(rng, &picked, &keys).await,
            13 => self.set(rng, &picked).await,
            14 => self.set_tagged(rng, picked[0]).await,
            15 => self.demand(rng, &picked).await,
            16 => self.expire(rng, &picked, &keys).await,
            17 => self.delete(rng, &picked, &keys).await,
            18 => self.invalidate_tag(rng).await,
            _ => self.lose(rng).await,
        }
    }

    async fn lease(&mut self, picked: &[usize], keys: &[Bytes]) {
        let token = token();
        self.log.push(format!("lease {picked:?} with {token:?}"));
        let here = self.namespace.here;
        self.loads.push((token, here));
        if self.loads.len() > 3 {
            self.loads.remove(0);
        }
        let mut request = self.subject.request_at(&self.namespace.counter);
        (request.token, request.stale_at) = (token, self.now);
        let found = self.subject.lease_all(keys, &request).await;
        for (&n, found) in picked.iter().zip(&found) {
            let expected = self.slots[n].lease(token, self.now, here);
            assert!(
                same_answer(found, &expected),
                "{}",
                self.told(n, found, &expected)
            );
        }
    }

    async fn fill(&mut self, rng: &mut Rng, picked: &[usize]) {
        let (token, _) = self.a_load(rng);
        self.log.push(format!("fill {picked:?} with {token:?}"));
        let fills: Vec<Fill> = picked
            .iter()
            .map(|&n| fill(&self.names[n], token, &self.a_value(rng)))
            .collect();
        let found = self.subject.fill_all(&fills).await;
        for ((&n, found), fill) in picked.iter().zip(&found).zip(&fills) {
            let lets_in = self.slots[n].lets_in_fill(token, &fill.value);
            self.expect(n, lets_in, found, &fill.value);
        }
    }

    async fn set(&mut self, rng: &mut Rng, picked: &[usize]) {
        self.log.push(format!("set {picked:?}"));
        let writes: Vec<Write> = picked
            .iter()
            .map(|&n| write(&self.names[n], &self.a_value(rng)))
            .collect();
        self.write_all(picked, &writes).await;
    }

    async fn demand(&mut self, rng: &mut Rng, picked: &[usize]) {
        let version = rng.u64(1..4);
        self.log.push(format!("demand {version} of {picked:?}"));
        let minimum = Bytes::copy_from_slice(&Header::minimum(version).to_bytes());
        let writes: Vec<Write> = picked
            .iter()
            .map(|&n| write(&self.names[n], &minimum))
            .collect();
        self.write_all(picked, &writes).await;
    }

    async fn write_all(&mut self, picked: &[usize], writes: &[Write]) {
        let found = self.subject.set_all(writes).await;
        for ((&n, found), write) in picked.iter().zip(&found).zip(writes) {
            let lets_in = self.slots[n].lets_in_write(&write.value);
            self.expect(n, lets_in, found, &write.value);
        }
    }

    /// Takes over a value without tags where the slot lets it in.
    fn expect(&mut self, n: usize, lets_in: bool, found: &Filled, value: &Bytes) {
        let expected = match lets_in {
            true => stored(),
            false => Filled::Refused,
        };
        assert_eq!(*found, expected, "{}", self.told(n, found, &expected));
        if lets_in {
            self.slots[n].put(value.clone());
        }
    }

    async fn fill_tagged(&mut self, rng: &mut Rng, n: usize) {
        let (token, since) = self.a_load(rng);
        let (tags, proposed, value) = self.a_tagged_value(rng);
        self.log.push(format!(
            "fill {n} with {token:?} since {since:?} and tags {tags:?}, {proposed:?}"
        ));
        let fill = Fill {
            tags: Some(self.namespace.tagged(&tags, Some(since))),
            ..fill(&self.names[n], token, &value)
        };
        let found = self.subject.fill_all(&[fill]).await;
        let lets_in = self.slots[n].lets_in_fill(token, &value);
        self.expect_tagged(
            n,
            lets_in,
            &found[0],
            (&tags, Some(since), &proposed, value),
        )
        .await;
    }

    async fn set_tagged(&mut self, rng: &mut Rng, n: usize) {
        let (tags, proposed, value) = self.a_tagged_value(rng);
        self.log
            .push(format!("set {n} with tags {tags:?}, {proposed:?}"));
        let write = Write {
            tags: Some(self.namespace.tagged(&tags, None)),
            ..write(&self.names[n], &value)
        };
        let found = self.subject.set_all(&[write]).await;
        let lets_in = self.slots[n].lets_in_write(&value);
        self.expect_tagged(n, lets_in, &found[0], (&tags, None, &proposed, value))
            .await;
    }

    async fn expect_tagged(
        &mut self,
        n: usize,
        lets_in: bool,
        found: &Filled,
        (tags, since, proposed, value): (&[usize], Option<Position>, &[u64], Bytes),
    ) {
        if !lets_in {
            assert_eq!(*found, Filled::Refused, "{}", self.told(n, found, &"no"));
            return self.adopt_records(tags, proposed).await;
        }
        let expected = match self.namespace.tag(tags, since, proposed) {
            Some(versions) => {
                self.slots[n].put(with_tags(&value, &versions));
                Filled::Stored { versions }
            }
            None => Filled::Refused,
        };
        assert_eq!(*found, expected, "{}", self.told(n, found, &expected));
    }

    /// A store that looks at the tags first may have made records for a value that the key then
    /// refused.
    async fn adopt_records(&mut self, tags: &[usize], proposed: &[u64]) {
        let found = self.subject.get(&self.namespace.names).await;
        for (&n, &version) in tags.iter().zip(proposed) {
            let made = TagRecord {
                version,
                made_at: self.namespace.here,
            };
            if found[n].as_deref() == Some(&made.to_bytes()[..]) {
                self.namespace.records[n].get_or_insert(made);
            }
        }
    }

    async fn release(&mut self, rng: &mut Rng, picked: &[usize], keys: &[Bytes]) {
        let (token, _) = self.a_load(rng);
        self.log.push(format!("release {picked:?} with {token:?}"));
        ok("release", self.subject.store.release(keys, token).await);
        picked.iter().for_each(|&n| self.slots[n].release(token));
    }

    async fn expire(&mut self, rng: &mut Rng, picked: &[usize], keys: &[Bytes]) {
        let wall = self.now - rng.u64(..2_000);
        self.log.push(format!("expire {picked:?} at {wall}"));
        ok("expire", self.subject.store.expire(keys, wall).await);
        picked.iter().for_each(|&n| self.slots[n].expire(wall));
    }

    async fn delete(&mut self, rng: &mut Rng, picked: &[usize], keys: &[Bytes]) {
        let moves = rng.bool();
        self.log.push(format!("delete {picked:?}, moving: {moves}"));
        picked.iter().for_each(|&n| self.slots[n] = Slot::Absent);
        match moves {
            true => self.move_on(keys).await,
            false => self.subject.delete(keys).await,
        }
    }

    async fn invalidate_tag(&mut self, rng: &mut Rng) {
        let n = rng.usize(..TAGS);
        self.log.push(format!("invalidate tag {n}"));
        self.namespace.records[n] = None;
        let record = self.namespace.names[n].clone();
        self.move_on(&[record]).await;
    }

    async fn move_on(&mut self, keys: &[Bytes]) {
        let before = self.namespace.here;
        self.subject.invalidate(keys, &self.namespace.counter).await;
        let here = self.subject.position(&self.namespace.counter).await;
        assert_eq!(here.incarnation, before.incarnation);
        assert!(here.count > before.count, "from {before:?} to {here:?}");
        self.namespace.here = here;
    }

    /// Records, and now and then the counter, are lost without an invalidation.
    async fn lose(&mut self, rng: &mut Rng) {
        let n = rng.usize(..TAGS + 1);
        self.log.push(format!("lose record {n} of {TAGS}"));
        if let Some(record) = self.namespace.records.get_mut(n) {
            *record = None;
            let key = self.namespace.names[n].clone();
            return self.subject.delete(&[key]).await;
        }
        let before = self.namespace.here;
        let counter = self.namespace.counter.clone();
        self.subject.delete(std::slice::from_ref(&counter)).await;
        self.namespace.here = self.subject.position(&counter).await;
        assert_ne!(self.namespace.here.incarnation, before.incarnation);
    }

    async fn compare_all(&self) {
        let found = self.subject.get(&self.names).await;
        for (n, found) in found.iter().enumerate() {
            assert!(
                self.slots[n].agrees_with(found),
                "{}",
                self.told(n, found, &self.slots[n])
            );
        }
        let found = self.subject.get(&self.namespace.names).await;
        for (n, found) in found.iter().enumerate() {
            let expected = self.namespace.records[n];
            let found = found.as_ref().map(|bytes| TagRecord::parse(bytes));
            assert_eq!(
                found,
                expected.map(Some),
                "tag {n}: {}",
                self.told(n, &found, &expected)
            );
        }
    }

    fn a_load(&self, rng: &mut Rng) -> (LeaseToken, Position) {
        self.loads[rng.usize(..self.loads.len())]
    }

    /// A value that is fresh, or stale, or stale from just now on; every other one has a version.
    fn a_value(&self, rng: &mut Rng) -> Bytes {
        let fresh_until = match rng.u8(..3) {
            0 => self.now + 3_600_000,
            1 => self.now,
            _ => self.now - rng.u64(..2_000),
        };
        let payload: Vec<u8> = (0..rng.usize(1..200)).map(|_| rng.u8(..)).collect();
        let value = envelope(fresh_until, self.now + 7_200_000, payload);
        with_version(&value, rng.u64(..6).saturating_sub(2))
    }

    /// Tags, the versions proposed for them, and the value with both.
    fn a_tagged_value(&self, rng: &mut Rng) -> (Vec<usize>, Vec<u64>, Bytes) {
        let count = rng.usize(..=TAGS);
        let tags = rng.choose_multiple(0..TAGS, count);
        let proposed: Vec<u64> = tags.iter().map(|_| rng.u64(..)).collect();
        let value = with_tags(&self.a_value(rng), &proposed);
        (tags, proposed, value)
    }

    fn told(
        &self,
        key: usize,
        found: &impl std::fmt::Debug,
        expected: &impl std::fmt::Debug,
    ) -> String {
        let steps = self.log.join("\n  ");
        format!("key {key}: found {found:?}\nexpected {expected:?}\nafter\n  {steps}")
    }
}

fn same_answer(found: &Leased, expected: &Leased) -> bool {
    let same = |found: &Option<Bytes>, expected: &Option<Bytes>| match (found, expected) {
        (Some(found), Some(expected)) => same_but_lease(found, expected),
        (None, None) => true,
        _ => false,
    };
    match (found, expected) {
        (Leased::Value(found), Leased::Value(expected)) => same_but_lease(found, expected),
        (
            Leased::Acquired {
                stale: found,
                since,
            },
            Leased::Acquired {
                stale: expected,
                since: here,
            },
        ) => same(found, expected) && since == here,
        (Leased::Held { stale: found }, Leased::Held { stale: expected }) => same(found, expected),
        _ => false,
    }
}
