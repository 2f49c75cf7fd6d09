//! Machines that share nothing: each has the whole limit.

use std::sync::Arc;

use forebay_core::limit::{Limits, Meter, Region};

use crate::demand::Demand;
use crate::setting::Setting;

/// How many of the requests of a setting machines admit that know nothing of each other, and of how
/// many.
pub(crate) fn play(setting: &Setting, rpm: u64, seed: u64) -> (u64, u64) {
    let limits = Limits {
        rpm: Some(rpm),
        ..Limits::default()
    };
    let machine = || {
        let region = Arc::new(Region::small(1, 1, 0));
        Meter::of(&region, "key:0", &limits)
    };
    let machines: Vec<Meter> = (0..setting.nodes).map(|_| machine()).collect();
    let mut demand = Demand::new(setting, seed);
    let (mut asked, mut admitted) = (0, 0);
    loop {
        let next = demand.next();
        if next.at >= setting.span {
            return (admitted, asked);
        }
        asked += 1;
        if let Some(meter) = machines.get(next.node)
            && meter.admit(next.at, 0).is_ok()
        {
            meter.release();
            admitted += 1;
        }
    }
}
