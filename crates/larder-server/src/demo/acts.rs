//! The acts. Each sets its scene, measures, and says whether its claim holds.

pub(crate) mod hang;
pub(crate) mod outage;
pub(crate) mod price_change;
pub(crate) mod restart;
pub(crate) mod speed;
pub(crate) mod stampede;
