//! Types that a key, a load or a cache cannot take.

use std::io;

use larder::{Cache, CallKey, cached};

pub struct Opaque(pub u64);

#[cached(key = "{opaque}")]
fn no_key(opaque: Opaque) -> u64 {
    opaque.0
}

#[cached]
fn no_key_without_template(opaque: &Opaque) -> u64 {
    opaque.0
}

#[cached(key = "{id}", ignore = [opaque])]
async fn no_clone(opaque: Opaque, id: u64) -> u64 {
    opaque.0 + id
}

#[cached(key = "{id}", ignore = [opaque])]
async fn no_clone_behind_a_reference(opaque: &Opaque, id: u64) -> u64 {
    opaque.0 + id
}

#[cached]
async fn returns_no_clone(id: u64) -> Opaque {
    Opaque(id)
}

#[cached]
async fn error_for_one(id: u64) -> io::Result<u64> {
    Err(io::Error::other(id.to_string()))
}

pub type Answer<T> = Result<T, String>;

#[cached]
async fn error_under_another_name(id: u64) -> Answer<u64> {
    Ok(id)
}

#[cached(cache = 7)]
async fn no_cache(id: u64) -> u64 {
    id
}

#[cached(cache = cache)]
async fn cache_of_other_keys(cache: &Cache<u64, u64>, id: u64) -> u64 {
    id
}

#[cached(cache = cache)]
async fn cache_of_other_values(cache: &Cache<CallKey, String>, id: u64) -> u64 {
    id
}

pub struct Service {
    users: Cache<CallKey, u64>,
}

impl Service {
    #[cached(key = "{id}", cache = self.users)]
    async fn of_no_handle(&self, id: u64) -> u64 {
        id
    }
}

fn main() {}
