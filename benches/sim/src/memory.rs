//! What limits take in the gateway's memory, as the kernel counts it.

use std::sync::Arc;
use std::time::Duration;

use forebay_core::limit::lease::{LeaseCounters, Leases, OnStoreLoss, Terms};
use forebay_core::limit::{Limits, Meter, Region};

const COUNT: usize = 500_000;

/// A line a thing, with bytes of each of half a million.
pub(crate) fn measure() -> std::io::Result<String> {
    let lease = {
        let leases = Leases::new(LeaseCounters::default());
        let terms = Terms::rate(600, Duration::from_secs(60), 100, OnStoreLoss::Share);
        let before = resident()?;
        for key in 0..COUNT {
            let account = format!("account{key:08}");
            leases.get_or_create(&format!("key:{key:012}/requests/minute"), &account, terms);
        }
        resident()?.saturating_sub(before) / COUNT
    };
    let meter = {
        let limits = Limits {
            rpm: Some(600),
            tpm: Some(100_000),
            ..Limits::default()
        };
        let before = resident()?;
        let region = Arc::new(Region::private(COUNT)?);
        let meters: Vec<_> = (0..COUNT)
            .map(|key| Arc::new(Meter::of(&region, &format!("key:{key:012}"), &limits)))
            .collect();
        (resident()?.saturating_sub(before)) / meters.len()
    };
    Ok(format!(
        "| a lease of one limit, with its id and tag | {lease} bytes |\n\
         | a meter of two limits, on one machine, with its row of the table | {meter} bytes |\n"
    ))
}

/// Bytes of this process in memory.
fn resident() -> std::io::Result<usize> {
    let statm = std::fs::read_to_string("/proc/self/statm")?;
    let pages = statm
        .split(' ')
        .nth(1)
        .and_then(|text| text.parse::<usize>().ok());
    Ok(pages.unwrap_or(0) * 4096)
}
