//! A suite that every store passes proves nothing. Each store here breaks one promise, and the
//! property that names it must say so.

use std::panic::{AssertUnwindSafe, catch_unwind};

mod entries;
mod records;

/// Each property, and the flaws that it must find: those of the enum and the `open` in scope.
#[macro_export]
macro_rules! finds {
    ($($property:ident: $($flaw:ident)+;)+) => {
        $(
            #[test]
            fn $property() {
                for flaw in [$(Flaw::$flaw),+] {
                    $crate::must_fail(&format!("{flaw:?}"), || {
                        larder_testkit::store_suite::check(
                            open(flaw),
                            larder_testkit::store_suite::$property,
                        );
                    });
                }
            }
        )+

        pub(crate) const TESTED: &[&str] = &[$(stringify!($property)),+];
    };
}

fn must_fail(flaw: &str, checked: impl FnOnce()) {
    let found = catch_unwind(AssertUnwindSafe(checked));
    assert!(found.is_err(), "a store that {flaw} passes");
}

#[test]
fn every_property_is_in_the_suite_and_has_a_store_that_breaks_it() {
    let suite = include_str!("../../src/store_suite.rs");
    let sources = [
        include_str!("../../src/store_suite/reading.rs"),
        include_str!("../../src/store_suite/leasing.rs"),
        include_str!("../../src/store_suite/waking.rs"),
        include_str!("../../src/store_suite/filling.rs"),
        include_str!("../../src/store_suite/releasing.rs"),
        include_str!("../../src/store_suite/writing.rs"),
        include_str!("../../src/store_suite/touching.rs"),
        include_str!("../../src/store_suite/versioning.rs"),
        include_str!("../../src/store_suite/counting.rs"),
        include_str!("../../src/store_suite/tagging.rs"),
        include_str!("../../src/store_suite/sweeping.rs"),
        include_str!("../../src/store_suite/enlisting.rs"),
        include_str!("../../src/store_suite/whole.rs"),
    ];
    let listed = |name: &str| suite.lines().any(|line| line.trim() == name);
    let name = |line: &'static str| Some(line.strip_prefix("pub async fn ")?.split_once('(')?.0);
    let defined: Vec<&str> = sources
        .iter()
        .flat_map(|source| source.lines())
        .filter_map(name)
        .collect();
    assert!(defined.len() > 80, "{defined:?}");
    for property in defined {
        assert!(listed(property), "store_suite! leaves {property} out");
        let is_broken = [entries::TESTED, records::TESTED]
            .concat()
            .contains(&property);
        assert!(is_broken, "nothing here breaks {property}");
    }
}
