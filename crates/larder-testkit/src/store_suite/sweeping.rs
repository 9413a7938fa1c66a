//! Properties of removing by prefix.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use larder::store::{Swept, Tagged, Write};

use super::{HOUR, Subject, assert_acquired_absent, ok, stored, token, with_tags, write};

/// `sweep` counts what it removed and touches no other prefix.
pub async fn sweep_removes_its_prefix_and_nothing_else(subject: &Subject) {
    let value = subject.fresh("v");
    let names = [
        "ns:a:1",
        "ns:a:10",
        "ns:a:2",
        "ns:ab",
        "ns:b:1",
        "other:ns:a:1",
        "ns",
    ];
    let keys = names.map(|name| subject.key(name));
    for key in &keys {
        subject.set(key, &value).await;
    }
    let Some(removed) = subject.clear("ns:a:1").await else {
        return;
    };
    assert_eq!(removed, 2, "byte by byte, ns:a:1 is the start of ns:a:10");
    assert_eq!(subject.clear("ns:a:").await, Some(1));
    assert_eq!(subject.clear("ns:a:").await, Some(0));
    let left: Vec<_> = subject
        .get(&keys)
        .await
        .iter()
        .map(Option::is_some)
        .collect();
    assert_eq!(left, [false, false, false, true, true, true, true]);
}

/// A prefix is bytes: no character of it is a pattern, and none ends it.
pub async fn sweep_takes_its_prefix_literally(subject: &Subject) {
    let prefixes: [&[u8]; 10] = [
        b"p*:",
        b"p?:",
        b"p[a-z]:",
        b"p[^a]:",
        b"p\\:",
        b"p\\*:",
        b"p\0:",
        b"p\r\n:",
        b"\xff\xfe:",
        b"\xff\xff",
    ];
    let value = subject.fresh("v");
    // What the prefixes would match, were they patterns, and their neighbours in byte order.
    let decoys: [&[u8]; 11] = [
        b"pp:x",
        b"pq:x",
        b"p:x",
        b"pa:x",
        b"p",
        b"p*",
        b"pxyz:x",
        b"p\\\\:x",
        b"\xff",
        b"\xff\xfd:x",
        b"\xff\xfe",
    ];
    let decoys = decoys.map(|name| subject.key(name));
    for key in &decoys {
        subject.set(key, &value).await;
    }
    for prefix in prefixes {
        let ours = [&b"1"[..], b"\xff", b"*"].map(|end| subject.key([prefix, end].concat()));
        for key in &ours {
            subject.set(key, &value).await;
        }
        let Some(removed) = subject.clear(prefix).await else {
            return;
        };
        assert_eq!(removed, 3, "under {prefix:?}");
        assert_eq!(
            subject.get(&ours).await,
            [None, None, None],
            "under {prefix:?}"
        );
        let left = subject.get(&decoys).await.iter().flatten().count();
        assert_eq!(left, decoys.len(), "under {prefix:?}");
    }
}

/// Thousands of keys go in one call, more than a store looks at in one step.
pub async fn sweep_removes_many_keys(subject: &Subject) {
    const MANY: usize = 5_000;
    if !subject.store.capabilities().sweep {
        return;
    }
    let value = subject.fresh("v");
    let keys: Vec<_> = (0..2 * MANY)
        .map(|n| subject.key(format!("{}:{n}", if n % 2 == 0 { "many" } else { "kept" })))
        .collect();
    for keys in keys.chunks(500) {
        let writes: Vec<_> = keys.iter().map(|key| write(key, &value)).collect();
        assert_eq!(subject.set_all(&writes).await, vec![stored(); keys.len()]);
    }
    assert_eq!(subject.clear("many:").await, Some(MANY as u64));
    for keys in keys.chunks(500) {
        let left: Vec<_> = subject
            .get(keys)
            .await
            .iter()
            .map(Option::is_some)
            .collect();
        let expected: Vec<_> = (0..keys.len()).map(|n| n % 2 == 1).collect();
        assert_eq!(left, expected);
    }
}

/// A swept key can be leased at once, whatever lease was on it; the others' leases stand.
pub async fn sweep_ends_leases(subject: &Subject) {
    let keys = ["gone:absent", "gone:stale", "kept:absent"].map(|name| subject.key(name));
    subject.set(&keys[1], &subject.stale("old")).await;
    let holder = token();
    subject
        .lease_all(&keys, &subject.request(holder, HOUR))
        .await;
    if subject.clear("gone:").await.is_none() {
        return;
    }
    for key in &keys[..2] {
        assert_acquired_absent(&subject.lease(key, token()).await);
    }
    assert_eq!(
        subject.fill(&keys[2], holder, &subject.fresh("v")).await,
        stored()
    );
}

/// Only what is condemned goes, and nothing under another prefix is even shown.
pub async fn sweep_removes_what_is_condemned(subject: &Subject) {
    let names: [&[u8]; 7] = [
        b"ns:a",
        b"ns:b",
        b"ns:\xff\xfe",
        b"ns:held",
        b"nt:a",
        b"n",
        b"\xffns:a",
    ];
    let keys = names.map(|name| subject.key(name));
    for key in &keys {
        subject.set(key, &subject.fresh("v")).await;
    }
    subject.delete(&keys[3..4]).await;
    let holder = token();
    subject.lease(&keys[3], holder).await;
    let shown = Mutex::new(BTreeSet::new());
    let condemned = |key: &[u8]| {
        shown
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(Bytes::copy_from_slice(key));
        key == keys[1] || key == keys[2]
    };
    let Some(swept) = subject.sweep("ns:", condemned, |_| ()).await else {
        return;
    };
    let expected: BTreeSet<_> = keys[..4].iter().cloned().collect();
    assert_eq!(
        shown.into_inner().unwrap_or_else(PoisonError::into_inner),
        expected
    );
    assert_eq!(swept.removed, 2);
    assert!(swept.seen >= 4, "{swept:?}");
    let left: Vec<_> = subject
        .get(&keys)
        .await
        .iter()
        .map(Option::is_some)
        .collect();
    assert_eq!(left[..3], [true, false, false]);
    assert_eq!(left[4..], [true, true, true]);
    assert_eq!(
        subject.fill(&keys[3], holder, &subject.fresh("v")).await,
        stored(),
        "the lease of a key that stays is not touched"
    );
}

/// Counters, records and sets are keys as others are.
pub async fn sweep_removes_records_of_every_kind(subject: &Subject) {
    let [counter, record, set] =
        ["ns:counter", "ns:record", "ns:set"].map(|name| subject.key(name));
    subject.position(&counter).await;
    let tagged = Write {
        tags: Some(Tagged {
            counter: counter.clone(),
            records: vec![record.clone()],
            since: None,
        }),
        ..write(&subject.key("k"), &with_tags(&subject.fresh("v"), &[7]))
    };
    subject.set_all(&[tagged]).await;
    ok("enlist", subject.store.enlist(&set, 7, HOUR).await);
    let Some(removed) = subject.clear("ns:").await else {
        return;
    };
    assert_eq!(removed, 3);
    assert_eq!(subject.raw(&record).await, None);
    assert_eq!(ok("enlist", subject.store.enlist(&set, 8, HOUR).await), [8]);
}

/// A sweep of thousands of keys says in between how far it is, and never takes that back.
pub async fn sweep_tells_how_far_it_got(subject: &Subject) {
    const MANY: usize = 6_000;
    if !subject.store.capabilities().sweep {
        return;
    }
    let value = subject.fresh("v");
    let keys: Vec<_> = (0..MANY)
        .map(|n| subject.key(format!("many:{n}")))
        .collect();
    for keys in keys.chunks(500) {
        let writes: Vec<_> = keys.iter().map(|key| write(key, &value)).collect();
        subject.set_all(&writes).await;
    }
    let told: Mutex<Vec<Swept>> = Mutex::default();
    let progress = |swept| {
        told.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(swept)
    };
    let odd = |key: &[u8]| key.last().is_some_and(|digit| digit % 2 == 1);
    let Some(swept) = subject.sweep("many:", odd, progress).await else {
        return;
    };
    assert_eq!(swept.removed, MANY as u64 / 2);
    assert!(swept.seen >= MANY as u64, "{swept:?}");
    let mut told = told.into_inner().unwrap_or_else(PoisonError::into_inner);
    let early = told.iter().filter(|told| told.seen < swept.seen).count();
    assert!(early > 0, "told before it was done: {told:?}");
    told.push(swept);
    for (before, after) in told.iter().zip(&told[1..]) {
        assert!(
            before.seen <= after.seen && before.removed <= after.removed,
            "from {before:?} to {after:?}"
        );
    }
}
