//! Functions that have nothing to cache, or cannot be called from a load.

use std::borrow::Cow;
use std::fmt::Display;

use larder::cached;

#[cached]
fn returns_nothing(id: u64) {
    let _ = id;
}

#[cached]
fn returns_no_value(id: u64) -> () {
    let _ = id;
}

#[cached]
fn returns_a_reference(text: &str) -> &str {
    text
}

#[cached]
async fn returns_what_borrows<'a>(text: &'a str) -> Option<Cow<'a, str>> {
    Some(text.into())
}

#[cached]
fn returns_no_name(id: u64) -> impl Display {
    id
}

#[cached]
fn takes_no_name(id: impl Display) -> String {
    id.to_string()
}

#[cached]
fn changes(list: &mut Vec<u8>) -> usize {
    list.len()
}

#[cached]
async fn takes_what_borrows(text: Cow<'_, str>) -> usize {
    text.len()
}

#[cached]
async fn takes_what_borrows_behind_a_reference(text: &Cow<'_, str>) -> usize {
    text.len()
}

#[cached(ignore = [text])]
async fn takes_an_object(text: &dyn Display) -> String {
    text.to_string()
}

#[cached]
fn takes_too_much(&(a, b): &(u8, u8)) -> u8 {
    a + b
}

#[cached]
const fn is_const(id: u64) -> u64 {
    id
}

#[cached]
unsafe fn is_unsafe(id: u64) -> u64 {
    id
}

#[cached]
extern "C" fn is_foreign(id: u64) -> u64 {
    id
}

struct Counter(u64);

impl Counter {
    #[cached(ignore = [self])]
    fn changes_itself(&mut self, id: u64) -> u64 {
        self.0 += id;
        self.0
    }
}

#[cached]
struct NoFunction;

fn main() {}
