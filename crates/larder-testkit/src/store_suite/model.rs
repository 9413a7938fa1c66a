//! What a store must answer while no time passes, as plainly as it can be said.

use bytes::Bytes;
use fastrand::Rng;
use larder::clock::Millis;
use larder::envelope::Header;
use larder::store::{Fill, Filled, LeaseToken, Leased, Write};

use super::{HOUR, Subject, envelope, fill, lease_in, ok, same_but_lease, token};

#[derive(Clone, Debug, PartialEq)]
enum Slot {
    Absent,
    Placeholder(LeaseToken),
    Value {
        value: Bytes,
        lease: Option<LeaseToken>,
    },
}

impl Slot {
    fn lease(&mut self, token: LeaseToken, stale_at: Millis) -> Leased {
        match self {
            Slot::Absent => {
                *self = Slot::Placeholder(token);
                Leased::Acquired { stale: None }
            }
            Slot::Placeholder(_) => Leased::Held { stale: None },
            Slot::Value { value, .. } if fresh_until(value) > stale_at => {
                Leased::Value(value.clone())
            }
            Slot::Value { value, lease } => {
                let stale = Some(value.clone());
                match lease {
                    Some(_) => Leased::Held { stale },
                    None => {
                        *lease = Some(token);
                        Leased::Acquired { stale }
                    }
                }
            }
        }
    }

    fn holder(&self) -> Option<LeaseToken> {
        match self {
            Slot::Absent => None,
            Slot::Placeholder(token) => Some(*token),
            Slot::Value { lease, .. } => *lease,
        }
    }

    fn fill(&mut self, token: LeaseToken, value: &Bytes) -> Filled {
        if self.holder() != Some(token) {
            return Filled::Refused;
        }
        self.set(value);
        Filled::Stored
    }

    fn set(&mut self, value: &Bytes) {
        *self = Slot::Value {
            value: value.clone(),
            lease: None,
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
            let at = Header::FRESH_UNTIL_AT;
            let mut bytes = value.to_vec();
            let until = fresh_until(value).min(wall);
            bytes[at..at + 8].copy_from_slice(&until.to_be_bytes());
            *value = bytes.into();
        }
    }

    fn end_lease(&mut self) {
        match self {
            Slot::Value { lease, .. } => *lease = None,
            Slot::Placeholder(_) | Slot::Absent => *self = Slot::Absent,
        }
    }

    fn agrees_with(&self, found: &Option<Bytes>) -> bool {
        match (self, found) {
            (Slot::Absent, found) => found.is_none(),
            (Slot::Placeholder(_), found) => found
                .as_ref()
                .is_none_or(|found| found.len() == Header::LEN),
            (Slot::Value { value, lease }, Some(bytes)) => {
                same_but_lease(bytes, value) && lease_in(found) == *lease
            }
            (Slot::Value { .. }, None) => false,
        }
    }
}

fn fresh_until(value: &Bytes) -> Millis {
    Header::parse(value).map_or(0, |header| header.fresh_until)
}

const KEYS: usize = 4;

/// Does `steps` random operations on the subject and on the model, and compares every answer.
pub(super) async fn compare(subject: &Subject, rng: &mut Rng, prefix: &str, steps: usize) {
    let mut run = Run {
        subject,
        now: subject.now(),
        names: (0..KEYS)
            .map(|n| subject.key(format!("{prefix}{n}")))
            .collect(),
        slots: vec![Slot::Absent; KEYS],
        tokens: vec![token()],
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
    /// The last few tokens that asked for a lease.
    tokens: Vec<LeaseToken>,
    log: Vec<String>,
}

impl Run<'_> {
    async fn step(&mut self, rng: &mut Rng) {
        let count = rng.usize(1..=KEYS);
        let picked = rng.choose_multiple(0..KEYS, count);
        let keys: Vec<Bytes> = picked.iter().map(|&n| self.names[n].clone()).collect();
        match rng.u8(..10) {
            0..3 => self.lease(&picked, &keys).await,
            3..6 => self.fill(rng, &picked).await,
            6 => self.release(rng, &picked, &keys).await,
            7 => self.set(rng, &picked).await,
            8 => self.expire(rng, &picked, &keys).await,
            _ => self.delete(&picked, &keys).await,
        }
    }

    async fn lease(&mut self, picked: &[usize], keys: &[Bytes]) {
        let token = token();
        self.log.push(format!("lease {picked:?} with {token:?}"));
        self.tokens.push(token);
        if self.tokens.len() > 3 {
            self.tokens.remove(0);
        }
        let mut request = self.subject.request(token, HOUR);
        request.stale_at = self.now;
        let found = self.subject.lease_all(keys, &request).await;
        for (&n, found) in picked.iter().zip(&found) {
            let expected = self.slots[n].lease(token, self.now);
            assert!(
                same_answer(found, &expected),
                "{}",
                self.told(n, found, &expected)
            );
        }
    }

    async fn fill(&mut self, rng: &mut Rng, picked: &[usize]) {
        let token = self.a_token(rng);
        self.log.push(format!("fill {picked:?} with {token:?}"));
        let fills: Vec<Fill> = picked
            .iter()
            .map(|&n| fill(&self.names[n], token, &self.a_value(rng)))
            .collect();
        let found = self.subject.fill_all(&fills).await;
        for ((&n, found), fill) in picked.iter().zip(&found).zip(&fills) {
            let expected = self.slots[n].fill(token, &fill.value);
            assert_eq!(*found, expected, "{}", self.told(n, found, &expected));
        }
    }

    async fn release(&mut self, rng: &mut Rng, picked: &[usize], keys: &[Bytes]) {
        let token = self.a_token(rng);
        self.log.push(format!("release {picked:?} with {token:?}"));
        ok("release", self.subject.store.release(keys, token).await);
        picked.iter().for_each(|&n| self.slots[n].release(token));
    }

    async fn set(&mut self, rng: &mut Rng, picked: &[usize]) {
        self.log.push(format!("set {picked:?}"));
        let write = |n: &usize| Write {
            key: self.names[*n].clone(),
            value: self.a_value(rng),
            ttl: HOUR,
        };
        let writes: Vec<Write> = picked.iter().map(write).collect();
        ok("set", self.subject.store.set(&writes).await);
        for (&n, write) in picked.iter().zip(&writes) {
            self.slots[n].set(&write.value);
        }
    }

    async fn expire(&mut self, rng: &mut Rng, picked: &[usize], keys: &[Bytes]) {
        let wall = self.now - rng.u64(..2_000);
        self.log.push(format!("expire {picked:?} at {wall}"));
        ok("expire", self.subject.store.expire(keys, wall).await);
        picked.iter().for_each(|&n| self.slots[n].expire(wall));
    }

    async fn delete(&mut self, picked: &[usize], keys: &[Bytes]) {
        self.log.push(format!("delete {picked:?}"));
        self.subject.delete(keys).await;
        picked.iter().for_each(|&n| self.slots[n] = Slot::Absent);
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
    }

    fn a_token(&self, rng: &mut Rng) -> LeaseToken {
        self.tokens[rng.usize(..self.tokens.len())]
    }

    /// A value that is fresh, or stale, or stale from just now on.
    fn a_value(&self, rng: &mut Rng) -> Bytes {
        let fresh_until = match rng.u8(..3) {
            0 => self.now + 3_600_000,
            1 => self.now,
            _ => self.now - rng.u64(..2_000),
        };
        let payload: Vec<u8> = (0..rng.usize(1..200)).map(|_| rng.u8(..)).collect();
        envelope(fresh_until, self.now + 7_200_000, payload)
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
        (Leased::Acquired { stale: found }, Leased::Acquired { stale: expected })
        | (Leased::Held { stale: found }, Leased::Held { stale: expected }) => {
            same(found, expected)
        }
        _ => false,
    }
}
