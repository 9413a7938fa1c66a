//! Templates and keys that cannot work, or that would give one caller the result of another.

use larder::cached;

#[cached(key = "user:{user}")]
fn unknown(user_id: u64) -> u64 {
    user_id
}

#[cached(key = "user:{id}", ignore = [databse], tags = ["org:{og}"])]
fn unknown_elsewhere(id: u64, org: u64, database: u64) -> u64 {
    id
}

#[cached(key = "user:{id}")]
fn left_out(id: u64, viewer: u64) -> u64 {
    id + viewer
}

#[cached(key = "user:{id}", ignore = [id])]
fn both(id: u64) -> u64 {
    id
}

#[cached(key = "{a}{b}")]
fn run_together(a: String, b: String) -> String {
    a + &b
}

#[cached(key = "user:{id")]
fn open(id: u64) -> u64 {
    id
}

#[cached(key = "user:id}")]
fn not_open(id: u64) -> u64 {
    id
}

#[cached(key = "user:{}")]
fn nameless(id: u64) -> u64 {
    id
}

#[cached(key = "user:{id:?}")]
fn formatted(id: u64) -> u64 {
    id
}

#[cached(key = "user:{id + 1}")]
fn computed(id: u64) -> u64 {
    id
}

#[cached(key = "user::{id}")]
fn empty_part(id: u64) -> u64 {
    id
}

#[cached(key = "")]
fn empty() -> u64 {
    1
}

#[cached(key = 7)]
fn constant() -> u64 {
    1
}

#[cached(key = (id, 1))]
fn of_no_cache(id: u64) -> u64 {
    id
}

#[cached(key = id, cache = cache)]
fn expression_without(cache: &larder::Cache<u64, u64>, id: u64, viewer: u64) -> u64 {
    id + viewer
}

struct Shop {
    id: u64,
}

struct OrderKey {
    shop: u64,
    id: u64,
}

#[cached(key = OrderKey { shop: shop.id, id: shop.id }, cache = cache)]
fn a_field_of_its_name(cache: &larder::Cache<OrderKey, u64>, shop: Shop, id: u64) -> u64 {
    shop.id + id
}

#[cached(key = { let id = shop.id; id }, cache = cache)]
fn a_binding_of_its_name(cache: &larder::Cache<u64, u64>, shop: Shop, id: u64) -> u64 {
    shop.id + id
}

#[cached(key = shop.ids.iter().map(|id| id + 1).sum(), cache = cache)]
fn an_input_of_its_name(cache: &larder::Cache<u64, u64>, shop: Shop, id: u64) -> u64 {
    shop.id + id
}

#[cached(key = match shop.owner { Some(id) => id, None => 0 }, cache = cache)]
fn an_arm_of_its_name(cache: &larder::Cache<u64, u64>, shop: Shop, id: u64) -> u64 {
    shop.id + id
}

#[cached(key = if let Some(id) = shop.owner && id > 0 { id } else { 0 }, cache = cache)]
fn a_condition_of_its_name(cache: &larder::Cache<u64, u64>, shop: Shop, id: u64) -> u64 {
    shop.id + id
}

#[cached(key = format!("{id}:{}", shop.id, id = shop.id), cache = cache)]
fn an_input_of_a_macro(cache: &larder::Cache<String, u64>, shop: Shop, id: u64) -> u64 {
    shop.id + id
}

#[cached(key = made!(of shop.id => OrderKey { id: shop.id }), cache = cache)]
fn a_label_in_a_macro(cache: &larder::Cache<OrderKey, u64>, shop: Shop, id: u64) -> u64 {
    shop.id + id
}

#[cached(key = "{n}", cache = cache)]
fn for_any<T: Default, const N: usize>(cache: &larder::Cache<larder::CallKey, u64>, n: u64) -> u64 {
    n
}

struct Service;

impl Service {
    #[cached(key = "user:{id}")]
    fn of_any(&self, id: u64) -> u64 {
        id
    }

    #[cached]
    fn of_any_without_key(&self, id: u64) -> u64 {
        id
    }
}

fn main() {}
