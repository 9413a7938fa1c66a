use super::build::{Found, build, find};
use super::*;

const PRODUCTS: u64 = 1_000;

#[tokio::test]
async fn a_small_shop_is_built_found_and_queried() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("shop.db");
    assert_eq!(find(&path, PRODUCTS).await, Found::Nothing);
    let mut told = Vec::new();
    build(&path, PRODUCTS, |done| told.push(done))
        .await
        .expect("built");
    assert_eq!(told.last(), Some(&PRODUCTS));
    assert_eq!(find(&path, PRODUCTS).await, Found::Whole);
    assert_eq!(find(&path, PRODUCTS + 1).await, Found::Other);

    let shop = Shop::open(&path).await.expect("open");
    let product = shop.product(17).await.expect("a query").expect("a product");
    assert_eq!((product.id, product.revision), (17, 1));
    assert!(product.reviews == 0 || (1.0..=5.0).contains(&product.rating));
    assert_eq!(shop.product(PRODUCTS + 1).await.expect("a query"), None);
    let category = shop
        .category(CATEGORIES)
        .await
        .expect("a query")
        .expect("a category");
    assert_eq!(category.products, PRODUCTS / CATEGORIES);
    assert!(category.lowest_cents <= category.highest_cents);
    assert_eq!(shop.category(CATEGORIES + 1).await.expect("a query"), None);
    assert_eq!(shop.queries(), 4);
    shop.close().await;
}

#[tokio::test]
async fn a_new_price_is_seen_by_the_next_query_and_has_the_next_revision() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("shop.db");
    build(&path, PRODUCTS, |_| {}).await.expect("built");
    let shop = Shop::open(&path).await.expect("open");
    let changed = shop
        .set_price(17, 4_242)
        .await
        .expect("an update")
        .expect("a product");
    assert_eq!(
        (changed.revision, changed.category),
        (2, 17 % CATEGORIES + 1)
    );
    let product = shop.product(17).await.expect("a query").expect("a product");
    assert_eq!((product.price_cents, product.revision), (4_242, 2));
    assert!(
        shop.set_price(PRODUCTS + 1, 1)
            .await
            .expect("an update")
            .is_none()
    );
    shop.close().await;
}

#[tokio::test]
async fn what_is_half_built_or_foreign_is_noticed_and_built_again() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("shop.db");
    std::fs::write(path.with_extension("unfinished"), "cut short").expect("written");
    assert_eq!(find(&path, PRODUCTS).await, Found::HalfBuilt);
    std::fs::write(&path, "no database").expect("written");
    assert_eq!(find(&path, PRODUCTS).await, Found::Other);
    build(&path, PRODUCTS, |_| {}).await.expect("built");
    assert_eq!(find(&path, PRODUCTS).await, Found::Whole);
    assert!(!path.with_extension("unfinished").exists());
}
