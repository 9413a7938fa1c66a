use super::*;

fn fault(text: &str) -> String {
    let Fault { at, what } =
        parse_file(text, &Names::of_settings()).expect_err("this text is wrong");
    format!("shop.toml:{at}: {what}")
}

fn variable(name: &str, value: &str) -> String {
    read_variable(name, value, &Names::of_settings())
        .expect_err("this variable is wrong")
        .to_string()
}

fn read(args: DemoArgs, environment: &[(&str, &str)]) -> anyhow::Result<Config> {
    let environment = environment
        .iter()
        .map(|(name, value)| (String::from(*name), String::from(*value)));
    Config::read(args, environment)
}

#[test]
fn an_unknown_key_is_named_with_its_place_and_the_nearest_valid_one() {
    assert_eq!(
        fault("[demo]\nproducts = 5000\nprot = 1\n"),
        "shop.toml:3:1: unknown key `prot` in [demo]; did you mean `port`?"
    );
    assert_eq!(
        fault("[cache.product]\nttl = \"1h\"\n  capactiy = 5\n"),
        "shop.toml:3:3: unknown key `capactiy` in [cache.product]; did you mean `capacity`?"
    );
    assert_eq!(
        fault("[cache.products]\nttl = \"1h\"\n"),
        "shop.toml:1:8: unknown key `products` in [cache]; did you mean `product`?"
    );
    assert_eq!(
        fault("[cash]\n"),
        "shop.toml:1:2: unknown key `cash`; did you mean `cache`?"
    );
    assert_eq!(
        fault("cache = { product = { zzzzzzzz = 1 } }\n"),
        "shop.toml:1:23: unknown key `zzzzzzzz` in [cache.product]"
    );
}

#[test]
fn a_bad_duration_is_named_with_its_place_and_an_example() {
    let what = fault("[cache.price]\ngrace = \"1h\"\nttl = \"soon\"\n");
    assert!(
        what.starts_with("shop.toml:3:7: `soon` is not a duration"),
        "{what}"
    );
    assert!(
        what.ends_with("write for example \"1h 30m\" or \"250ms\""),
        "{what}"
    );
}

#[test]
fn values_of_the_wrong_type_and_broken_toml_are_named_with_their_place() {
    assert_eq!(
        fault("[demo]\nport = \"http\"\n"),
        "shop.toml:2:8: invalid type: string \"http\", expected u16"
    );
    let what = fault("[demo]\nport = \n");
    assert!(what.starts_with("shop.toml:2:"), "{what}");
    assert!(!what.contains('\n'), "{what}");
}

#[test]
fn variables_are_checked_like_the_file() {
    assert_eq!(
        variable("LARDER_CACHE_PRODUCT_TLL", "1h"),
        "unknown variable LARDER_CACHE_PRODUCT_TLL; did you mean `LARDER_CACHE_PRODUCT_TTL`?"
    );
    let what = variable("LARDER_CACHE_PRODUCT_TTL", "soon");
    assert!(
        what.starts_with("LARDER_CACHE_PRODUCT_TTL: `soon` is not a duration"),
        "{what}"
    );
    let what = variable("LARDER_DEMO_PORT", "70000");
    assert!(
        what.starts_with("LARDER_DEMO_PORT: invalid value: integer `70000`"),
        "{what}"
    );
}

#[test]
fn later_layers_win_and_leave_the_rest_alone() {
    let args = DemoArgs {
        seconds: Some(2),
        ..DemoArgs::default()
    };
    let environment = [
        ("LARDER_DEMO_SECONDS", "9"),
        ("LARDER_DEMO_CLIENTS", "8"),
        ("LARDER_DEMO_DATA", "123"),
        ("LARDER_CACHE_PRICE_TTL", "3s"),
        ("LARDER_CACHE_PRICE_JITTER", "0.5"),
        ("LARDER_TEST_REDIS", "belongs to the tests"),
        ("PATH", "/bin"),
    ];
    let config = read(args, &environment).expect("valid");
    assert_eq!(config.demo.seconds, 2);
    assert_eq!(config.demo.clients, 8);
    assert_eq!(config.demo.products, 200_000);
    assert_eq!(config.data, PathBuf::from("123"));
    let price = config.caches.price;
    assert_eq!(price.ttl, Some(std::time::Duration::from_secs(3)));
    assert_eq!(price.jitter, 0.5);
    assert_eq!(price.error_throttle, std::time::Duration::from_millis(500));
    assert_eq!(config.caches_json["price"]["ttl"], "3s");
}

#[test]
fn values_out_of_range_are_refused() {
    let error = |environment: &[(&str, &str)]| {
        let error = read(DemoArgs::default(), environment).expect_err("out of range");
        assert!(error.is::<Refusal>());
        error.to_string()
    };
    assert_eq!(
        error(&[("LARDER_DEMO_SECONDS", "0")]),
        "seconds is 0; it may be 1 to 60"
    );
    assert_eq!(
        error(&[("LARDER_DEMO_PRODUCTS", "5")]),
        "products is 5; it may be 100 to 5000000"
    );
    assert_eq!(
        error(&[("LARDER_DEMO_PORT", "0")]),
        "port is 0; choose one from 1 to 65535"
    );
}

#[test]
fn tiers_are_chosen_by_flag_or_setting() {
    let tier = |named: Option<&str>, environment: &[(&str, &str)]| {
        let args = DemoArgs {
            tier: named.map(String::from),
            data: Some("d".into()),
            ..DemoArgs::default()
        };
        read(args, environment).map(|config| config.tier)
    };
    let url = ("LARDER_TIER_REDIS_URL", "redis://h");
    let given = |url: &str| Tier::Redis(url.to_owned());
    assert_eq!(tier(None, &[]).expect("valid"), Tier::Memory);
    assert_eq!(
        tier(Some("disk"), &[]).expect("valid"),
        Tier::Disk("d/tier".into())
    );
    assert_eq!(tier(Some("redis"), &[]).expect("valid"), Tier::OwnRedis);
    assert_eq!(
        tier(Some("redis"), &[url]).expect("valid"),
        given("redis://h")
    );
    assert_eq!(tier(None, &[url]).expect("valid"), given("redis://h"));
    assert_eq!(tier(Some("memory"), &[url]).expect("valid"), Tier::Memory);
    assert_eq!(
        tier(Some("redis=redis://x"), &[url]).expect("valid"),
        given("redis://x")
    );
    let error = tier(Some("reddis"), &[]).expect_err("unknown");
    assert_eq!(
        error.to_string(),
        "unknown tier `reddis`; did you mean `redis`? (memory, disk, redis or redis=URL)"
    );
}
