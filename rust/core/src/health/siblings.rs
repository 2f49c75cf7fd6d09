//! The upstreams that stand beside one in a tier of a model.
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;

use super::state::Health;
use crate::limit::Nanos;

/// The upstreams of one tier of one model, each once.
pub type Group = Arc<[Weak<Health>]>;

/// Held while it is decided whether one more may go out, so that two cannot take the last place.
static DECIDING: Mutex<()> = Mutex::new(());

/// Ejects by `eject` if each of the groups bears one more: none of them is out yet, or fewer than
/// `percent` of its upstreams (Envoy's `max_ejection_percent`). Whether it did.
///
/// An upstream is ejected as a whole, so every tier that it serves in has to bear it. Those count that
/// requests have ejected, until they are back in; what a probe found down counts in no percentage, as
/// it is a fact, not a guess.
pub(super) fn eject_if_borne(groups: &[Group], percent: u32, eject: impl FnOnce()) -> bool {
    let _deciding = DECIDING.lock();
    let borne = groups.iter().all(|group| {
        let out = group
            .iter()
            .filter_map(Weak::upgrade)
            .filter(|health| health.is_ejected())
            .count();
        out == 0 || out as u64 * 100 < u64::from(percent) * group.len() as u64
    });
    if borne {
        eject();
    }
    borne
}

/// What the others of a group took to their first tokens in their last intervals, none that is older
/// than `since`.
pub(super) fn first_tokens(group: &Group, own: &Health, since: Nanos) -> Vec<Duration> {
    group
        .iter()
        .filter_map(Weak::upgrade)
        .filter(|health| !std::ptr::eq(Arc::as_ptr(health), own))
        .filter_map(|health| health.interval_first_token(since))
        .collect()
}
