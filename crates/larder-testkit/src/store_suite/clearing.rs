//! Properties of clearing by prefix.

use bytes::Bytes;
use larder::store::{Filled, Write};

use super::{HOUR, Subject, assert_acquired_absent, ok, token};

/// `clear` counts what it removed and touches no other prefix.
pub async fn clear_removes_its_prefix_and_nothing_else(subject: &Subject) {
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
pub async fn clear_takes_its_prefix_literally(subject: &Subject) {
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
pub async fn clear_removes_many_keys(subject: &Subject) {
    const MANY: usize = 5_000;
    if !subject.store.capabilities().clear {
        return;
    }
    let value = subject.fresh("v");
    let keys: Vec<_> = (0..2 * MANY)
        .map(|n| subject.key(format!("{}:{n}", if n % 2 == 0 { "many" } else { "kept" })))
        .collect();
    for keys in keys.chunks(500) {
        let write = |key: &Bytes| Write {
            key: key.clone(),
            value: value.clone(),
            ttl: HOUR,
        };
        let writes: Vec<_> = keys.iter().map(write).collect();
        ok("set", subject.store.set(&writes).await);
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

/// A cleared key can be leased at once, whatever lease was on it; the others' leases stand.
pub async fn clear_ends_leases(subject: &Subject) {
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
        Filled::Stored
    );
}
