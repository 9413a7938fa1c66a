//! What the README says of cached functions, as a program.

use larder::{Cache, CallKey, Larder, cached};

#[derive(Clone)]
struct Db;

#[derive(Clone, Debug)]
struct DbError;

impl Db {
    async fn name(&self, id: u64) -> Result<String, DbError> {
        std::future::ready((id == 7).then(|| "Ada".to_owned()).ok_or(DbError)).await
    }
}

#[derive(Clone)]
struct Users {
    db: Db,
    names: Cache<CallKey, String>,
}

// In the README from here
impl Users {
    #[cached(cache = self.names, key = "user:{id}", ttl = "1h", grace = "6h", tags = ["users"])]
    async fn name(&self, id: u64) -> Result<String, DbError> {
        self.db.name(id).await
    }
}

#[cached(max_entries = 1_000)] // a cache in memory of its own
fn slug(title: &str) -> String {
    title.to_lowercase().replace(' ', "-")
}
// to here

async fn shown() -> Result<(), Box<dyn std::error::Error>> {
    let larder = Larder::builder("shop").build()?;
    let (db, names) = (Db, larder.cache("users").build()?);
    let users = Users { db, names };
    let name = users.name(7).await.map_err(|_| "no such user")?;
    assert_eq!(name, "Ada");
    let _ = users.name_invalidate(7).await?;
    let slug = slug("Espresso Machine");
    assert_eq!(slug, "espresso-machine");
    Ok(())
}

#[tokio::test]
async fn the_readme_is_right() {
    shown().await.unwrap();
    let (this, readme) = (
        include_str!("readme.rs"),
        include_str!("../../../README.md"),
    );
    let from = this.split_once("// In the README from here\n").unwrap().1;
    let code = from.split_once("// to here").unwrap().0;
    assert!(
        readme.contains(code),
        "the README has another program:\n{code}"
    );
}
