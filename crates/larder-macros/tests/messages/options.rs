//! Options that are unknown, out of range, or without a meaning where they stand.

use larder::{Cache, CallKey, cached};

#[cached(tl = "1h")]
fn unknown(id: u64) -> u64 {
    id
}

#[cached(size = 100)]
fn unlike_any(id: u64) -> u64 {
    id
}

#[cached(ttl = "1h", ttl = "2h")]
fn twice(id: u64) -> u64 {
    id
}

#[cached(ttl = "0s")]
fn zero(id: u64) -> u64 {
    id
}

#[cached(ttl = "-1h")]
fn negative_ttl(id: u64) -> u64 {
    id
}

#[cached(ttl = "soon")]
fn garbage(id: u64) -> u64 {
    id
}

#[cached(ttl = 60)]
fn without_unit(id: u64) -> u64 {
    id
}

#[cached(tags = "users")]
fn one_tag(id: u64) -> u64 {
    id
}

#[cached(tags = [""])]
fn empty_tag(id: u64) -> u64 {
    id
}

#[cached(ignore = id)]
fn one_ignored(id: u64) -> u64 {
    id
}

#[cached(version = -1, cache = cache)]
fn version(cache: &Cache<CallKey, u64>) -> u64 {
    1
}

#[cached(max_entries = 0)]
fn no_entries(id: u64) -> u64 {
    id
}

#[cached(max_entries = 10, cache = cache)]
fn entries_of_another(cache: &Cache<CallKey, u64>) -> u64 {
    1
}

#[cached(ttl = "none", cache = cache)]
fn never_of_another(cache: &Cache<CallKey, u64>) -> u64 {
    1
}

#[cached(key = id, version = 2, cache = cache)]
fn version_of_another(cache: &Cache<u64, u64>, id: u64) -> u64 {
    id
}

#[cached(negative = "1m")]
fn nothing_negative(id: u64) -> u64 {
    id
}

#[cached(grace = "1h")]
fn nothing_to_stand_in_for(id: u64) -> u64 {
    id
}

fn main() {}
