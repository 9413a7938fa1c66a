//! The bus within a process keeps every promise of the contract, also behind switches that are off.

use std::sync::Arc;

use larder::backplane::LocalBus;
use larder_testkit::{BusSubject, FaultyBus, bus_suite};

mod by_itself {
    use super::*;

    async fn open() -> BusSubject {
        let bus = LocalBus::new();
        BusSubject::new(Arc::new(bus.clone())).with_peer(Arc::new(bus))
    }

    bus_suite!(open);
}

mod behind_switches {
    use super::*;

    async fn open() -> BusSubject {
        let bus = FaultyBus::new(LocalBus::new());
        BusSubject::new(Arc::new(bus.clone())).with_peer(Arc::new(bus))
    }

    bus_suite!(open);
}
