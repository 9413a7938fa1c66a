//! The shop on HTTP: every page through larder, and the same pages without it for comparison.
//!
//! | route | what |
//! |---|---|
//! | `GET /product/{id}`, `GET /category/{id}` | from the database, cached |
//! | `GET /price/{id}` | from the third party, cached, stale when it is down |
//! | `PUT` or `POST /product/{id}/price` | a new price such as `19.99`: writes, then invalidates |
//! | `GET /stats` | what the caches did |
//! | `GET /direct/...` | the three pages without the cache |
//! | `/demo/...` | what the story needs to set its scenes |

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use larder::{Answered, Cache, ErrorKind, Larder, Load, Outcome, Read, Receipt};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::hold::Holds;
use super::note::Note;
use super::shop::{Category, Product, Shop};
use super::stats::Stats;
use super::vendor::{Quote, VendorClient};
use crate::config::Caches;

const X_CACHE: HeaderName = HeaderName::from_static("x-cache");
const X_CACHE_EXPLAIN: HeaderName = HeaderName::from_static("x-cache-explain");

/// What `GET /demo/hold/{id}` answers once a reader is held.
pub(crate) const HELD: &str = "held";

/// How long the end of the service waits for loads and refreshes.
const PATIENCE: Duration = Duration::from_secs(3);

/// The shop, its sources and its caches.
pub(crate) struct Service {
    shop: Shop,
    vendor: VendorClient,
    holds: Holds,
    larder: Larder,
    products: Cache<u64, Product>,
    categories: Cache<u64, Category>,
    prices: Cache<u64, Quote>,
}

impl Service {
    /// Puts `larder` in front of the shop and the third party.
    ///
    /// # Errors
    /// What the engine says about options that do not go together.
    pub(crate) fn new(
        larder: Larder,
        shop: Shop,
        vendor: VendorClient,
        caches: &Caches,
    ) -> larder::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            products: larder
                .cache("product")
                .options(caches.product.clone())
                .build()?,
            categories: larder
                .cache("category")
                .options(caches.category.clone())
                .build()?,
            prices: larder
                .cache("price")
                .options(caches.price.clone())
                .build()?,
            shop,
            vendor,
            holds: Holds::default(),
            larder,
        }))
    }

    /// The routes.
    pub(crate) fn router(self: &Arc<Self>) -> Router {
        Router::new()
            .route("/product/{id}", get(product))
            .route("/product/{id}/price", put(set_price).post(set_price))
            .route("/category/{id}", get(category))
            .route("/price/{id}", get(price))
            .route("/stats", get(stats))
            .route("/direct/product/{id}", get(direct_product))
            .route("/direct/category/{id}", get(direct_category))
            .route("/direct/price/{id}", get(direct_price))
            .route("/demo/hold/{id}", post(hold).get(held).delete(release))
            .route("/demo/cold/{id}", post(cold))
            .route("/demo/clear", post(clear))
            .with_state(Arc::clone(self))
    }

    /// Ends refreshes, closes tiers and database.
    pub(crate) async fn end(&self) {
        // What is not done by now has no reader any more; the demo makes nothing of the report.
        let _ = self.larder.shutdown(PATIENCE).await;
        self.shop.close().await;
    }
}

type App = State<Arc<Service>>;

async fn product(State(app): App, Path(id): Path<u64>) -> Result<Response, Failure> {
    let reader = app.products.with(Read::new());
    let load = |load: Load<u64, Product>| load_product(Arc::clone(&app), load.into_key());
    page(reader.get_or_load_explained(&id, load).await?)
}

async fn load_product(app: Arc<Service>, id: u64) -> sqlx::Result<Option<Product>> {
    let product = app.shop.product(id).await;
    app.holds.pass(id).await;
    product
}

async fn category(State(app): App, Path(id): Path<u64>) -> Result<Response, Failure> {
    let reader = app.categories.with(Read::new());
    let load = |load: Load<u64, Category>| load_category(Arc::clone(&app), load.into_key());
    page(reader.get_or_load_explained(&id, load).await?)
}

async fn load_category(app: Arc<Service>, id: u64) -> sqlx::Result<Option<Category>> {
    app.shop.category(id).await
}

async fn price(State(app): App, Path(id): Path<u64>) -> Result<Response, Failure> {
    let reader = app.prices.with(Read::new());
    let load = |load: Load<u64, Quote>| load_price(Arc::clone(&app), load.into_key());
    page(reader.get_or_load_explained(&id, load).await?)
}

async fn load_price(app: Arc<Service>, id: u64) -> anyhow::Result<Option<Quote>> {
    app.vendor.quote(id).await.map(Some)
}

/// The order matters: the new price is committed first, then the old one is invalidated. A load
/// that read the old price before the commit cannot store it after the invalidation.
async fn set_price(
    State(app): App,
    Path(id): Path<u64>,
    body: String,
) -> Result<Response, Failure> {
    let cents = cents(&body).ok_or(Failure::NoPrice)?;
    let changed = app
        .shop
        .set_price(id, cents)
        .await?
        .ok_or(Failure::Absent)?;
    let receipts = [
        app.products.invalidate(&id).await?,
        app.categories.expire(&changed.category).await?,
    ];
    let new = Updated {
        id,
        price_cents: cents,
        revision: changed.revision,
        invalidation: word(&receipts).to_owned(),
    };
    Ok(json_of(&new))
}

async fn stats(State(app): App) -> Response {
    let caches = [
        ("product", app.products.stats()),
        ("category", app.categories.stats()),
        ("price", app.prices.stats()),
    ];
    json_of(&Stats::gather(
        app.shop.queries(),
        app.vendor.calls(),
        &caches,
        &app.larder.tiers(),
    ))
}

async fn direct_product(State(app): App, Path(id): Path<u64>) -> Result<Response, Failure> {
    uncached(app.shop.product(id).await?)
}

async fn direct_category(State(app): App, Path(id): Path<u64>) -> Result<Response, Failure> {
    uncached(app.shop.category(id).await?)
}

async fn direct_price(State(app): App, Path(id): Path<u64>) -> Result<Response, Failure> {
    uncached(Some(app.vendor.quote(id).await?))
}

async fn hold(State(app): App, Path(id): Path<u64>) {
    app.holds.arm(id);
}

async fn held(State(app): App, Path(id): Path<u64>) -> &'static str {
    let arrived = app.holds.arrival(id).await;
    if arrived { HELD } else { "nobody" }
}

async fn release(State(app): App, Path(id): Path<u64>) {
    app.holds.release(id);
}

async fn cold(State(app): App, Path(id): Path<u64>) -> Result<Response, Failure> {
    let receipt = app.categories.invalidate(&id).await?;
    Ok(json_of(&json!({ "invalidation": word(&[receipt]) })))
}

async fn clear(State(app): App) -> Result<Response, Failure> {
    let receipts = [
        app.products.clear().await?,
        app.categories.clear().await?,
        app.prices.clear().await?,
    ];
    Ok(json_of(&json!({ "invalidation": word(&receipts) })))
}

/// What an update answers.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Updated {
    /// The product.
    pub(crate) id: u64,
    /// Its new price.
    pub(crate) price_cents: u64,
    /// Its new revision.
    pub(crate) revision: u64,
    /// `acked`, or `queued` where a tier could not be reached.
    pub(crate) invalidation: String,
}

/// The receipt of several invalidations is as good as the worst of them.
fn word(receipts: &[Receipt]) -> &'static str {
    let acked = |receipt| Receipt::is_acked(receipt);
    if receipts.iter().all(acked) {
        "acked"
    } else {
        "queued"
    }
}

/// Reads a price such as `19.99` or `20`.
fn cents(text: &str) -> Option<u64> {
    let (whole, fraction) = text.trim().split_once('.').unwrap_or((text.trim(), "00"));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(fraction) || fraction.len() != 2 {
        return None;
    }
    let whole: u64 = whole.parse().ok().filter(|whole| *whole < 10_000_000)?;
    Some(whole * 100 + fraction.parse::<u64>().ok()?)
}

fn page<T: Serialize>(answered: Answered<Option<Arc<T>>>) -> Result<Response, Failure> {
    let Answered { value, outcome, .. } = answered;
    let mut response = match value {
        Some(value) => json_of(&*value),
        None => Failure::Absent.into_response(),
    };
    mark(&mut response, &outcome);
    Ok(response)
}

fn mark(response: &mut Response, outcome: &Outcome) {
    let note = Note::of(outcome).to_string();
    for (name, text) in [(X_CACHE, note), (X_CACHE_EXPLAIN, outcome.to_string())] {
        if let Ok(value) = HeaderValue::try_from(text) {
            response.headers_mut().insert(name, value);
        }
    }
}

fn uncached<T: Serialize>(value: Option<T>) -> Result<Response, Failure> {
    let mut response = json_of(&value.ok_or(Failure::Absent)?);
    let off = HeaderValue::from_static("off");
    response.headers_mut().insert(X_CACHE, off);
    Ok(response)
}

fn json_of(value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(body) => {
            let json = HeaderValue::from_static("application/json");
            ([(CONTENT_TYPE, json)], body).into_response()
        }
        Err(error) => Failure::Source(error.into()).into_response(),
    }
}

/// Why there is no page.
enum Failure {
    /// There is no such thing.
    Absent,
    /// The body of an update is not a price.
    NoPrice,
    /// The cache could not get it.
    Cache(larder::Error),
    /// The database or the third party failed, with no cache in between.
    Source(anyhow::Error),
}

impl From<larder::Error> for Failure {
    fn from(error: larder::Error) -> Self {
        Self::Cache(error)
    }
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        Self::Source(error.into())
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Source(error)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let (status, what) = match self {
            Self::Absent => (StatusCode::NOT_FOUND, "there is no such thing".to_owned()),
            Self::NoPrice => {
                let what = "the body is not a price such as 19.99".to_owned();
                (StatusCode::BAD_REQUEST, what)
            }
            Self::Cache(error) => {
                let status = match error.kind() {
                    ErrorKind::Load | ErrorKind::LoadTimeout => StatusCode::BAD_GATEWAY,
                    ErrorKind::Overloaded | ErrorKind::Closed => StatusCode::SERVICE_UNAVAILABLE,
                    _ => StatusCode::INTERNAL_SERVER_ERROR,
                };
                (status, format!("{:#}", anyhow::Error::from(error)))
            }
            Self::Source(error) => (StatusCode::BAD_GATEWAY, format!("{error:#}")),
        };
        let body = json!({ "error": what }).to_string();
        let json = HeaderValue::from_static("application/json");
        (status, [(CONTENT_TYPE, json)], body).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prices_are_read_and_nonsense_is_not() {
        assert_eq!(cents("19.99"), Some(1_999));
        assert_eq!(cents(" 20 \n"), Some(2_000));
        for wrong in [
            "",
            "x",
            "-1.00",
            "1.5",
            "1.234",
            "1.-5",
            "99999999999999999999",
        ] {
            assert_eq!(cents(wrong), None, "{wrong}");
        }
    }
}
