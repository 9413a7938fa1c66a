//! Every shape of function that `#[cached]` takes.

#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use larder::{Cache, CallKey, Larder, cached};

#[derive(Clone, Debug, PartialEq, Eq)]
struct User {
    id: u64,
    name: String,
}

fn user(id: u64) -> User {
    let name = format!("user {id}");
    User { id, name }
}

/// What functions ask, and how often they did.
#[derive(Clone, Default)]
struct Db {
    asked: Arc<AtomicU64>,
}

impl Db {
    fn ask(&self, id: u64) -> User {
        self.asked.fetch_add(1, SeqCst);
        user(id)
    }

    fn asked(&self) -> u64 {
        self.asked.load(SeqCst)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Failure {
    NoSuchUser(u64),
    Cache(larder::ErrorKind),
}

impl From<larder::Error> for Failure {
    fn from(error: larder::Error) -> Self {
        Self::Cache(error.kind())
    }
}

fn users() -> Cache<CallKey, User> {
    Larder::builder("t")
        .build()
        .unwrap()
        .cache("users")
        .in_memory()
        .unwrap()
}

mod companions {
    use super::*;

    #[cached(key = "user:{id}", ignore = [db], ttl = "1h")]
    async fn user_of(db: &Db, id: u64) -> User {
        db.ask(id)
    }

    #[tokio::test]
    async fn an_async_function_runs_once_for_a_key_until_it_is_invalidated_or_cleared() {
        let db = Db::default();
        for _ in 0..2 {
            assert_eq!(user_of(&db, 7).await, user(7));
            assert_eq!(user_of(&db, 8).await, user(8));
        }
        assert_eq!(db.asked(), 2);
        assert_eq!((user_of_info().misses, user_of_info().hits_memory), (2, 2));
        let _ = user_of_invalidate(7).await.unwrap();
        user_of(&db, 7).await;
        user_of(&db, 8).await;
        assert_eq!(db.asked(), 3, "one was invalidated");
        let _ = user_of_clear().await.unwrap();
        user_of(&db, 7).await;
        user_of(&db, 8).await;
        assert_eq!(db.asked(), 5, "all were cleared");
        assert_eq!(user_of_uncached(&db, 8).await, user(8));
        assert_eq!(db.asked(), 6);
    }

    #[cached(key = "{n}")]
    fn square(n: u64) -> Square {
        Square(n * n)
    }

    #[derive(Clone, Debug, PartialEq, Eq)]
    struct Square(u64);

    #[test]
    fn a_function_that_is_not_async_needs_no_runtime() {
        for _ in 0..2 {
            assert_eq!(square(7), Square(49));
        }
        assert_eq!((square_info().misses, square_info().hits_memory), (1, 1));
        square_invalidate(7);
        assert_eq!(square(7), Square(49));
        assert_eq!(square_info().misses, 2);
        square_clear();
        assert_eq!(square(7), Square(49));
        assert_eq!(square_info().misses, 3);
        assert_eq!(square_uncached(7), Square(49));
    }

    #[cached]
    #[expect(clippy::needless_return, reason = "lints see the body where it is")]
    fn expected(n: u64) -> u64 {
        return n;
    }

    #[test]
    fn what_is_expected_of_lints_goes_with_the_body() {
        assert_eq!(expected(1), 1);
    }

    #[cfg(any())]
    #[cached]
    fn not_built(n: Missing) -> u64 {
        n
    }

    #[cached]
    #[cfg(any())]
    fn not_built_either(n: Missing) -> u64 {
        n
    }

    mod inner {
        #![deny(missing_docs)]

        /// Documented, and so are its companions.
        #[larder::cached]
        #[must_use]
        pub(super) fn seen(n: u64) -> u64 {
            n
        }
    }

    #[test]
    fn companions_are_as_visible_as_the_function() {
        assert_eq!(inner::seen(1), 1);
        inner::seen_invalidate(1);
        inner::seen_clear();
        assert_eq!(inner::seen_info().misses, 1);
    }
}

mod returns {
    use super::*;

    #[cached(key = "user:{id}", cache = cache, ignore = [db])]
    async fn result(cache: &Cache<CallKey, User>, db: &Db, id: u64) -> Result<User, Failure> {
        match id {
            0 => Err(Failure::NoSuchUser(db.ask(0).id)),
            id => Ok(db.ask(id)),
        }
    }

    #[tokio::test]
    async fn a_result_is_cached_and_an_error_is_not() {
        let (cache, db) = (users(), Db::default());
        for _ in 0..2 {
            assert_eq!(result(&cache, &db, 7).await, Ok(user(7)));
            assert_eq!(result(&cache, &db, 0).await, Err(Failure::NoSuchUser(0)));
        }
        assert_eq!(db.asked(), 3);
        assert_eq!(result_info(&cache).load_errors, 2);
        let key = CallKey::new(["user", "7"]);
        assert_eq!(cache.get_in_memory(&key).as_deref(), Some(&user(7)));
        let _ = result_invalidate(&cache, 7).await.unwrap();
        assert_eq!(cache.get_in_memory(&key), None);
    }

    #[cached(key = "{id}", ignore = [db], negative = "1m")]
    async fn option(db: &Db, id: u64) -> Option<User> {
        Some(db.ask(id)).filter(|user| user.id > 0)
    }

    #[cached(key = "{id}", ignore = [db])]
    async fn forgetful(db: &Db, id: u64) -> Option<User> {
        Some(db.ask(id)).filter(|user| user.id > 0)
    }

    #[tokio::test]
    async fn that_there_is_nothing_is_remembered_if_that_is_wanted() {
        let db = Db::default();
        for _ in 0..2 {
            assert_eq!(option(&db, 0).await, None);
            assert_eq!(option(&db, 7).await, Some(user(7)));
        }
        assert_eq!(db.asked(), 2);
        for _ in 0..2 {
            assert_eq!(forgetful(&db, 0).await, None);
            assert_eq!(forgetful(&db, 7).await, Some(user(7)));
        }
        assert_eq!(db.asked(), 5);
    }

    #[cached(key = "{id}", ignore = [db], negative = "1m")]
    async fn both(db: &Db, id: u64) -> larder::Result<Option<User>> {
        Ok(Some(db.ask(id)).filter(|user| user.id > 0))
    }

    #[cached(key = "{id}", ignore = [db], negative = "1m")]
    fn both_now(db: &Db, id: u64) -> std::io::Result<Option<Arc<User>>> {
        match id {
            9 => Err(std::io::Error::other("no route")),
            id => Ok(Some(Arc::new(db.ask(id))).filter(|user| user.id > 0)),
        }
    }

    #[tokio::test]
    async fn a_result_of_an_option_is_both() {
        let db = Db::default();
        for _ in 0..2 {
            assert_eq!(both(&db, 0).await.unwrap(), None);
            assert_eq!(both(&db, 7).await.unwrap(), Some(user(7)));
            assert_eq!(both_now(&db, 0).unwrap(), None);
            assert_eq!(both_now(&db, 7).unwrap().as_deref(), Some(&user(7)));
            assert_eq!(both_now(&db, 9).unwrap_err().to_string(), "no route");
        }
        assert_eq!(db.asked(), 4);
    }

    /// Not `Clone`.
    #[derive(Debug)]
    struct Large(u64);

    #[cached(key = "{id}")]
    async fn shared(id: u64) -> Arc<Large> {
        Arc::new(Large(id))
    }

    #[tokio::test]
    async fn what_is_returned_as_an_arc_is_not_cloned() {
        let (first, second) = (shared(7).await, shared(7).await);
        assert!(Arc::ptr_eq(&first, &second));
        assert_eq!(first.0, 7);
    }
}

mod methods {
    use super::*;

    #[derive(Clone)]
    struct Service {
        users: Cache<CallKey, User>,
        tenant: String,
        db: Db,
    }

    impl Service {
        fn new(tenant: &str) -> Self {
            let (users, db) = (users(), Db::default());
            let tenant = tenant.to_owned();
            Self { users, tenant, db }
        }

        #[cached(key = "user:{id}", cache = self.users, ttl = "1h")]
        async fn user(&self, id: u64) -> Result<User, Failure> {
            Ok(self.db.ask(id))
        }

        #[cached(key = "{self.tenant}:{id}")]
        async fn of_tenant(&self, id: u64) -> String {
            self.db.ask(id);
            format!("{} {id}", self.tenant)
        }

        #[cached(key = "{id}", ignore = [self])]
        fn now(&self, id: u64) -> User {
            self.db.ask(id)
        }

        #[cached(ignore = [self])]
        async fn by_arc(self: Arc<Self>, id: u64) -> User {
            self.db.ask(id)
        }

        #[cached(cache = self.users)]
        async fn by_value(self, id: u64) -> User {
            self.db.ask(id)
        }

        #[cached(key = "{id}", associated)]
        async fn associated(id: u64) -> User {
            user(id)
        }

        #[cached(key = "{id}")]
        fn associated_and_known_to_be(id: u64) -> User {
            let Self { .. } = Self::new("t");
            user(id)
        }
    }

    #[tokio::test]
    async fn a_method_finds_its_cache_in_itself() {
        let (one, other) = (Service::new("one"), Service::new("other"));
        for _ in 0..2 {
            assert_eq!(one.user(7).await, Ok(user(7)));
        }
        assert_eq!(one.db.asked(), 1);
        assert_eq!(other.user(7).await, Ok(user(7)));
        assert_eq!(other.db.asked(), 1, "another service, another cache");
        let _ = one.user_invalidate(7).await.unwrap();
        let _ = one.user(7).await;
        assert_eq!(one.db.asked(), 2);
        let _ = one.user_clear().await.unwrap();
        let _ = one.user(7).await;
        assert_eq!(one.user_info().loads, 3);
        assert_eq!(one.user_uncached(7).await, Ok(user(7)));
        let elsewhere = tokio::spawn(async move { one.user(7).await });
        assert_eq!(
            elsewhere.await.unwrap(),
            Ok(user(7)),
            "its future is `Send`"
        );
    }

    #[tokio::test]
    async fn what_tells_two_services_apart_is_in_the_key() {
        let (one, other) = (Service::new("one"), Service::new("other"));
        for _ in 0..2 {
            assert_eq!(one.of_tenant(7).await, "one 7");
            assert_eq!(other.of_tenant(7).await, "other 7");
        }
        assert_eq!((one.db.asked(), other.db.asked()), (1, 1));
        let _ = one.of_tenant_invalidate(7).await.unwrap();
        one.of_tenant(7).await;
        other.of_tenant(7).await;
        assert_eq!((one.db.asked(), other.db.asked()), (2, 1));
    }

    #[tokio::test]
    async fn methods_of_other_kinds_are_methods_too() {
        let service = Arc::new(Service::new("one"));
        for _ in 0..2 {
            assert_eq!(service.now(7), user(7));
            assert_eq!(Arc::clone(&service).by_arc(7).await, user(7));
            assert_eq!(Service::clone(&service).by_value(7).await, user(7));
            assert_eq!(Service::associated(7).await, user(7));
            assert_eq!(Service::associated_and_known_to_be(7), user(7));
        }
        assert_eq!(service.db.asked(), 3);
        service.now_invalidate(7);
        service.now(7);
        assert_eq!(service.db.asked(), 4);
        let _ = Arc::clone(&service).by_arc_invalidate(7).await.unwrap();
        Arc::clone(&service).by_arc(7).await;
        assert_eq!(service.db.asked(), 5);
        let _ = Service::associated_invalidate(7).await.unwrap();
        assert_eq!(Service::associated_info().misses, 1);
        assert_eq!(Service::associated_and_known_to_be_info().misses, 1);
    }
}

mod arguments {
    use super::*;

    #[cached]
    async fn borrowed(text: &str, bytes: &[u8], owned: String, shared: Arc<str>) -> String {
        format!("{text} {bytes:?} {owned} {shared}")
    }

    #[tokio::test]
    async fn borrowed_arguments_are_carried_into_the_load() {
        for _ in 0..2 {
            let answer = borrowed("a", b"b", "c".to_owned(), "d".into()).await;
            assert_eq!(answer, "a [98] c d");
        }
        assert_eq!(borrowed_info().misses, 1);
        let _ = borrowed_invalidate("a", b"b", "c".to_owned(), "d".into())
            .await
            .unwrap();
        borrowed("a", b"b", "c".to_owned(), "d".into()).await;
        assert_eq!(borrowed_info().misses, 2);
    }

    #[cached]
    async fn mutable(mut n: u64, _: u64, (a, b): (u8, u8)) -> u64 {
        n += 1;
        n + u64::from(a) + u64::from(b)
    }

    #[cached(key = "{a}-x:{b}", tags = ["a:{a}"])]
    fn taken_apart((a, b): (u8, u8)) -> u8 {
        a + b
    }

    #[tokio::test]
    async fn arguments_can_be_mutable_nameless_or_taken_apart() {
        assert_eq!(mutable(1, 2, (3, 4)).await, 9);
        assert_eq!(mutable(1, 3, (3, 4)).await, 9);
        assert_eq!(
            mutable_info().misses,
            1,
            "the body never sees the nameless one"
        );
        assert_eq!(mutable(1, 2, (4, 3)).await, 9);
        assert_eq!(mutable_info().misses, 2);
        assert_eq!(taken_apart((1, 2)), 3);
        assert_eq!(taken_apart((1, 2)), 3);
        taken_apart_invalidate((1, 2));
        assert_eq!(taken_apart((1, 2)), 3);
        taken_apart_invalidate_tag("a:1");
        assert_eq!(taken_apart((1, 2)), 3);
        assert_eq!(taken_apart_info().misses, 3);
    }

    #[cached]
    fn with_lifetimes<'a, 'b>(one: &'a str, other: &'b str) -> String
    where
        'b: 'a,
    {
        format!("{one}{other}")
    }

    #[cached]
    async fn with_static(one: &'static str, n: u64) -> String {
        let one: &'static str = one;
        format!("{one}{n}")
    }

    #[tokio::test]
    async fn lifetimes_and_where_clauses_stay() {
        assert_eq!(with_lifetimes("a", "b"), "ab");
        assert_eq!(with_static("a", 1).await, "a1");
        assert_eq!(with_static("a", 1).await, "a1");
        assert_eq!(with_static_info().misses, 1);
    }

    #[cached(key = "{type}:{order.match}", tags = ["{type}"])]
    fn r#in(r#type: u8, order: Keyword) -> u8 {
        r#type + order.r#match
    }

    struct Keyword {
        r#match: u8,
    }

    #[test]
    fn names_can_be_keywords() {
        assert_eq!(r#in(1, Keyword { r#match: 2 }), 3);
        assert_eq!(r#in(1, Keyword { r#match: 3 }), 4);
        in_invalidate_tag("1");
        assert_eq!(r#in(1, Keyword { r#match: 3 }), 4);
        assert_eq!(in_info().misses, 3);
    }

    #[test]
    fn a_function_can_stand_in_another() {
        #[cached]
        fn inside(n: Option<u64>) -> Option<u64> {
            n
        }
        for n in [None, Some(1), Some(1)] {
            assert_eq!(inside(n), n);
        }
        assert_eq!(inside_info().misses, 2);
    }

    #[derive(Clone)]
    struct Order {
        id: u64,
        lines: (u8, u8),
    }

    #[cached(key = "order-{order.id}:{order.lines.1}")]
    async fn of_parts(order: &Order) -> u64 {
        order.id
    }

    #[tokio::test]
    async fn a_key_can_be_made_of_parts_of_an_argument() {
        let order = |id, lines| Order { id, lines };
        assert_eq!(of_parts(&order(1, (1, 2))).await, 1);
        assert_eq!(of_parts(&order(1, (2, 2))).await, 1);
        assert_eq!(of_parts_info().misses, 1);
        assert_eq!(of_parts(&order(1, (2, 1))).await, 1);
        assert_eq!(of_parts_info().misses, 2);
    }
}

mod generic {
    use std::fmt::Display;

    use larder::Key;

    use super::*;

    trait Named {
        const NAME: &'static str;
    }

    impl Named for u8 {
        const NAME: &'static str = "u8";
    }

    impl Named for u64 {
        const NAME: &'static str = "u64";
    }

    #[cached]
    fn named<T, const N: usize>(n: T) -> String
    where
        T: Named + Key + Display,
    {
        format!("{} {n} {N}", T::NAME)
    }

    #[test]
    fn instances_of_a_function_do_not_share_entries() {
        for _ in 0..2 {
            assert_eq!(named::<u8, 1>(7), "u8 7 1");
            assert_eq!(named::<u64, 1>(7), "u64 7 1");
            assert_eq!(named::<u64, 2>(7), "u64 7 2");
        }
        assert_eq!(named_info::<u8, 1>().misses, 3);
    }

    #[cached(key = "{n}", ignore = [T])]
    async fn made<T: Default + Clone + Send + Sync + 'static>(n: u64) -> (u64, T) {
        (n, T::default())
    }

    #[tokio::test]
    async fn a_function_owns_a_cache_for_each_type_of_value() {
        for _ in 0..2 {
            assert_eq!(made::<String>(1).await, (1, String::new()));
            assert_eq!(made::<u8>(1).await, (1, 0));
            assert_eq!(made::<bool>(1).await, (1, false));
        }
        assert_eq!(made_info::<String>().misses, 1);
        assert_eq!(made_info::<u8>().misses, 1);
        let _ = made_clear::<u8>().await.unwrap();
        made::<u8>(1).await;
        assert_eq!(
            (made_info::<u8>().misses, made_info::<bool>().misses),
            (2, 1)
        );
    }

    #[cached(key = "{T}:{N}:{n}", cache = cache)]
    async fn by_type<T: Named, const N: usize>(cache: &Cache<CallKey, String>, n: u64) -> String {
        format!("{} {N} {n}", T::NAME)
    }

    #[tokio::test]
    async fn the_names_of_types_can_be_in_the_key() {
        let cache = Larder::local().cache("c").in_memory().unwrap();
        for _ in 0..2 {
            assert_eq!(by_type::<u8, 1>(&cache, 7).await, "u8 1 7");
            assert_eq!(by_type::<u64, 1>(&cache, 7).await, "u64 1 7");
            assert_eq!(by_type::<u64, 2>(&cache, 7).await, "u64 2 7");
        }
        assert_eq!(cache.stats().loads, 3);
        assert!(
            cache
                .get_in_memory(&CallKey::new(["u64", "2", "7"]))
                .is_some()
        );
    }

    struct Of<T>(T);

    impl<T: Named> Of<T> {
        #[cached(key = "{n}", associated)]
        fn name(n: u64) -> String {
            format!("{} {n}", T::NAME)
        }
    }

    impl<T: Clone + Send + Sync + 'static> Of<T> {
        #[cached(key = "{n}", ignore = [self])]
        fn value(&self, n: u64) -> (u64, T) {
            (n, self.0.clone())
        }
    }

    #[test]
    fn types_that_only_the_impl_block_names_are_told_apart() {
        for _ in 0..2 {
            assert_eq!(Of::<u8>::name(7), "u8 7");
            assert_eq!(Of::<u64>::name(7), "u64 7");
            assert_eq!(Of(7_u8).value(1), (1, 7));
            assert_eq!(Of('x').value(1), (1, 'x'));
        }
        assert_eq!(Of::<u8>::name_info().misses, 2);
    }
}

mod keys {
    use super::*;

    #[cached(key = id, cache = cache, ignore = [db])]
    async fn typed(cache: &Cache<u64, User>, db: &Db, id: u64) -> User {
        db.ask(id)
    }

    #[cached(key = (org.to_owned(), page), cache = pages)]
    fn paged(pages: &Cache<(String, u32), String>, org: &str, page: u32) -> String {
        format!("{org} {page}")
    }

    #[cached(key = (a, b), cache = cache)]
    fn of_a_pattern(cache: &Cache<(String, u8), String>, (a, b): (String, u8)) -> String {
        format!("{a} {b}")
    }

    #[test]
    fn a_key_can_be_an_expression_of_what_a_pattern_binds() {
        let cache = Larder::local().cache("c").in_memory().unwrap();
        let call = || ("a".to_owned(), 7);
        assert_eq!(of_a_pattern(&cache, call()), "a 7");
        assert!(cache.get_in_memory(&call()).is_some());
        of_a_pattern_invalidate(&cache, call());
        assert!(cache.get_in_memory(&call()).is_none());
    }

    #[cached(key = name, cache = cache)]
    async fn by_name(cache: &Cache<String, usize>, name: &str) -> usize {
        name.len()
    }

    #[tokio::test]
    async fn a_key_can_be_an_expression_of_the_type_of_the_cache() {
        let larder = Larder::builder("t").build().unwrap();
        let (cache, db) = (larder.cache("users").in_memory().unwrap(), Db::default());
        for _ in 0..2 {
            assert_eq!(typed(&cache, &db, 7).await, user(7));
        }
        assert_eq!(cache.get_in_memory(&7).as_deref(), Some(&user(7)));
        let _ = typed_invalidate(&cache, 7).await.unwrap();
        assert_eq!(cache.get_in_memory(&7), None);
        let pages = larder.cache("pages").in_memory().unwrap();
        assert_eq!(paged(&pages, "acme", 2), "acme 2");
        let key = ("acme".to_owned(), 2);
        assert!(pages.get_in_memory(&key).is_some());
        paged_invalidate(&pages, "acme", 2);
        assert!(pages.get_in_memory(&key).is_none());
        let names = larder.cache("names").in_memory().unwrap();
        assert_eq!(by_name(&names, "Ada").await, 3);
        assert!(names.get_in_memory("Ada").is_some());
    }

    type Texts = Cache<String, u64>;

    macro_rules! joined {
        ($($part:expr);+) => { [$($part.to_string()),+].join(":") };
    }

    struct Doubled {
        id: u64,
    }

    impl From<Doubled> for String {
        fn from(doubled: Doubled) -> Self {
            (doubled.id * 2).to_string()
        }
    }

    #[cached(key = Doubled { id }, cache = texts)]
    fn by_shorthand(texts: &Texts, id: u64) -> u64 {
        id
    }

    #[cached(key = { let id = id + 1; id.to_string() }, cache = texts)]
    fn by_a_block(texts: &Texts, id: u64) -> u64 {
        id
    }

    #[cached(key = format!("{}:{:?}", id, other.map(|other| other + id)), cache = texts)]
    fn by_a_macro(texts: &Texts, id: u64, other: Option<u64>) -> u64 {
        id + other.unwrap_or(0)
    }

    #[cached(key = joined!(id; other), cache = texts)]
    fn by_a_macro_of_its_own_grammar(texts: &Texts, id: u64, other: u64) -> u64 {
        id + other
    }

    #[cached(key = if let Some(id) = id { id.to_string() } else { other.to_string() }, cache = texts)]
    fn by_a_condition(texts: &Texts, id: Option<u64>, other: u64) -> u64 {
        id.unwrap_or(other)
    }

    #[cached(key = format!("{}:{N}:{}", id, N), cache = texts)]
    fn by_a_parameter<const N: u64>(texts: &Texts, id: u64) -> u64 {
        id * N
    }

    #[test]
    fn a_key_reads_its_arguments_in_whatever_expression() {
        let texts = Larder::local().cache("c").in_memory().unwrap();
        let expected = ["14", "8", "7:Some(9)", "7:3", "5", "7:2:2"];
        for _ in 0..2 {
            assert_eq!(by_shorthand(&texts, 7), 7);
            assert_eq!(by_a_block(&texts, 7), 7);
            assert_eq!(by_a_macro(&texts, 7, Some(2)), 9);
            assert_eq!(by_a_macro_of_its_own_grammar(&texts, 7, 3), 10);
            assert_eq!(by_a_condition(&texts, None, 5), 5);
            assert_eq!(by_a_parameter::<2>(&texts, 7), 14);
        }
        for key in expected {
            assert!(texts.get_in_memory(key).is_some(), "{key}");
        }
    }

    #[cached(cache = cache, version = 2)]
    async fn without_a_template(cache: &Cache<CallKey, u64>, n: u64, text: &str) -> u64 {
        n + text.len() as u64
    }

    #[cached(key = "n:{n}", cache = &cache, version = 3)]
    async fn versioned(cache: Arc<Cache<CallKey, u64>>, n: u64) -> u64 {
        n
    }

    #[tokio::test]
    async fn without_a_template_the_key_is_the_path_and_the_arguments() {
        let cache = Larder::local().cache("c").in_memory().unwrap();
        assert_eq!(without_a_template(&cache, 7, "a:b").await, 10);
        let key = ["cached.keys.without_a_template", "@2", "7", "a:b"];
        assert!(cache.get_in_memory(&CallKey::new(key)).is_some());
        let cache = Arc::new(cache);
        assert_eq!(versioned(Arc::clone(&cache), 7).await, 7);
        assert!(
            cache
                .get_in_memory(&CallKey::new(["@3", "n", "7"]))
                .is_some()
        );
    }

    #[cached(key = "{a}:{b}")]
    fn of_two(a: CallKey, b: CallKey) -> String {
        format!("{a} | {b}")
    }

    #[test]
    fn keys_of_many_parts_do_not_run_into_each_other() {
        let keys = [
            &["a"] as &[&str],
            &["a", "a"],
            &["a:a"],
            &["%"],
            &["%%a"],
            &["a", "a", "a"],
        ];
        let all = || keys.map(CallKey::new);
        for a in all() {
            for b in all() {
                assert_eq!(of_two(a.clone(), b.clone()), format!("{a} | {b}"));
            }
        }
        assert_eq!(of_two_info().misses, 36);
    }
}
