//! Properties of reading values.

use bytes::Bytes;
use larder::envelope::Header;

use super::{HOUR, Subject, assert_acquired_absent, fill, ok, stored, token, write};
use crate::seeds;

/// `get` answers in the order of the keys, whatever order the store keeps.
pub async fn a_batch_is_answered_in_the_order_asked(subject: &Subject) {
    let keys: Vec<_> = (0..20).map(|n| subject.key(format!("order:{n}"))).collect();
    let values: Vec<_> = (0..20)
        .map(|n| subject.fresh(format!("value {n}")))
        .collect();
    for n in (0..20).filter(|n| n % 3 != 0) {
        subject.set(&keys[n], &values[n]).await;
    }
    for seed in seeds(20) {
        let mut order: Vec<usize> = (0..20).collect();
        seed.rng().shuffle(&mut order);
        // A key asked for twice is answered twice.
        order.push(order[0]);
        let asked: Vec<_> = order.iter().map(|&n| keys[n].clone()).collect();
        let expected: Vec<_> = order
            .iter()
            .map(|&n| (n % 3 != 0).then(|| values[n].clone()))
            .collect();
        assert_eq!(subject.get(&asked).await, expected);
    }
}

/// Nothing asked is nothing answered, and no error.
pub async fn an_empty_batch_is_answered_with_nothing(subject: &Subject) {
    assert!(subject.get(&[]).await.is_empty());
    assert!(
        subject
            .lease_all(&[], &subject.request(token(), HOUR))
            .await
            .is_empty()
    );
    assert!(subject.fill_all(&[]).await.is_empty());
    assert!(subject.set_all(&[]).await.is_empty());
    ok("release", subject.store.release(&[], token()).await);
    ok("expire", subject.store.expire(&[], subject.now()).await);
    subject.delete(&[]).await;
}

/// Batches of a thousand keys work in every operation.
pub async fn a_batch_may_be_large(subject: &Subject) {
    const MANY: usize = 1_000;
    let keys: Vec<_> = (0..MANY)
        .map(|n| subject.key(format!("large:{n}")))
        .collect();
    let value = |n: usize| subject.fresh(format!("value {n}"));
    let values: Vec<_> = (0..MANY).map(value).collect();
    let token = token();
    let leased = subject
        .lease_all(&keys, &subject.request(token, HOUR))
        .await;
    leased.iter().for_each(assert_acquired_absent);
    let fills: Vec<_> = keys
        .iter()
        .zip(&values)
        .map(|(k, v)| fill(k, token, v))
        .collect();
    assert_eq!(subject.fill_all(&fills).await, vec![stored(); MANY]);
    let expected: Vec<_> = values.into_iter().map(Some).collect();
    assert_eq!(subject.get(&keys).await, expected);
    subject.delete(&keys).await;
    assert_eq!(subject.get(&keys).await, vec![None; MANY]);
}

/// A key that nobody wrote is absent, and reading does not change that.
pub async fn an_absent_key_reads_as_none(subject: &Subject) {
    let key = subject.key("absent");
    assert_eq!(subject.raw(&key).await, None);
    assert_eq!(subject.raw(&key).await, None);
}

/// A longer value comes back one byte too long, and never whole.
pub async fn a_value_longer_than_the_limit_is_recognisable(subject: &Subject) {
    let (key, small) = (subject.key("long"), subject.key("small"));
    let value = subject.fresh(vec![7; 1_000]);
    subject.set(&key, &value).await;
    let beside = subject.fresh("small");
    subject.set(&small, &beside).await;
    let keys = [key, small];
    for limit in [0, 1, Header::LEN, 500, value.len() - 1] {
        let found = ok("get", subject.store.get(&keys, limit).await);
        assert!(
            found[0].as_deref() == Some(&value[..limit + 1]),
            "{:?} bytes at a limit of {limit}",
            found[0].as_ref().map(Bytes::len)
        );
        if limit >= beside.len() {
            assert_eq!(
                found[1],
                Some(beside.clone()),
                "the limit is one value's, not the batch's"
            );
        }
    }
    for limit in [value.len(), value.len() + 1, usize::MAX] {
        let found = ok("get", subject.store.get(&keys, limit).await);
        assert_eq!(found[0], Some(value.clone()), "at a limit of {limit}");
    }
}

/// Whatever stands behind the header comes back as it was.
pub async fn a_value_comes_back_byte_for_byte(subject: &Subject) {
    for seed in seeds(20) {
        let mut rng = seed.rng();
        let key = subject.key(format!("bytes:{}", seed.number()));
        let length = rng.usize(1..20_000);
        let payload: Vec<u8> = (0..length).map(|_| rng.u8(..)).collect();
        let value = subject.fresh(payload);
        subject.set(&key, &value).await;
        assert_eq!(subject.raw(&key).await, Some(value));
    }
}

/// Keys are bytes: no encoding, no pattern, no end at a NUL, up to 10 KB and distinct throughout.
pub async fn keys_are_any_bytes(subject: &Subject) {
    let names: [&[u8]; 21] = [
        b"plain",
        b"a",
        b"a\0",
        b"\0a",
        b"a:1",
        b"a:10",
        b"A",
        b"*",
        b"?",
        b"[a]",
        b"[^b]",
        b"a\\",
        b"{a}:b",
        b"sp ace",
        b"\r\n",
        b"\xff\xfe\x80",
        b"\xff\xff",
        b"\xfe\xff",
        "\u{fc}\u{1f980}".as_bytes(),
        &[b'k'; 10 << 10],
        &[0xff; 10 << 10],
    ];
    let keys: Vec<_> = names.iter().map(|name| subject.key(name)).collect();
    let token = token();
    let leased = subject
        .lease_all(&keys, &subject.request(token, HOUR))
        .await;
    leased.iter().for_each(assert_acquired_absent);
    let values: Vec<_> = (0..keys.len())
        .map(|n| subject.fresh(format!("value {n}")))
        .collect();
    let fills: Vec<_> = keys
        .iter()
        .zip(&values)
        .map(|(k, v)| fill(k, token, v))
        .collect();
    assert!(
        subject
            .fill_all(&fills)
            .await
            .iter()
            .all(|filled| *filled == stored())
    );
    for (gone, key) in keys.iter().enumerate() {
        let mut expected: Vec<_> = values.iter().cloned().map(Some).collect();
        expected[..gone].fill(None);
        assert_eq!(
            subject.get(&keys).await,
            expected,
            "before removing {key:?}"
        );
        subject.delete(std::slice::from_ref(key)).await;
    }
    assert_eq!(subject.get(&keys).await, vec![None; keys.len()]);
}

/// The longest value that the store claims to take is taken, by `set` and by `fill`, and one byte
/// more never damages what is there. Beyond 16 MiB the claim is believed.
pub async fn a_value_may_be_as_long_as_the_store_says(subject: &Subject) {
    const BELIEVED: usize = 16 << 20;
    let max = subject.store.capabilities().max_value_bytes;
    let longest = subject.fresh(vec![0xa5; max.min(BELIEVED) - Header::LEN]);
    let (set, filled) = (subject.key("longest set"), subject.key("longest filled"));
    subject.set(&set, &longest).await;
    assert!(
        subject.raw(&set).await == Some(longest.clone()),
        "the value comes back whole"
    );
    let token = token();
    subject.lease(&filled, token).await;
    assert_eq!(subject.fill(&filled, token, &longest).await, stored());
    assert!(
        subject.raw(&filled).await == Some(longest.clone()),
        "the value comes back whole"
    );
    if max >= BELIEVED {
        return;
    }
    let longer = subject.fresh(vec![0x5a; max + 1 - Header::LEN]);
    let write = write(&set, &longer);
    let expected = match subject.store.set(&[write]).await {
        Ok(_) => longer,
        Err(_) => longest,
    };
    assert!(
        subject.raw(&set).await == Some(expected),
        "a refused value leaves the old one"
    );
}
