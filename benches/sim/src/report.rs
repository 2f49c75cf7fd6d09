//! Tables and plots of outcomes.

use std::fmt::Write;

use crate::play::Outcome;
use crate::setting::Of;
use crate::svg::{Plot, Scale, Series, number};
use crate::sweep::OUTAGE;

/// Outcomes of one group.
pub(crate) struct Done {
    pub(crate) name: &'static str,
    pub(crate) outcomes: Vec<Outcome>,
}

fn percent(part: u64, whole: u64) -> f64 {
    100.0 * part as f64 / whole.max(1) as f64
}

/// The Markdown table of a group.
pub(crate) fn table(done: &Done) -> String {
    let first = match done.name {
        "near" | "far" => "limit, participants",
        "keys" => "limits, participants",
        "distance" => "to the store and back",
        "servers" => "requests, servers",
        "permits" => "permits, participants, demand",
        _ => "what happens",
    };
    let mut out = format!(
        "| {first} | asked | admitted / ideal | overshoot (allowed) | more, less % | waited % (p99 ms) \
         | calls/s | keys/s | failed/s | leases |\n|---|---|---|---|---|---|---|---|---|---|\n"
    );
    for one in &done.outcomes {
        let overshoot = if let Of::Permits { capacity, .. } = one.setting.of
            && one.overshoot < 0.0
        {
            format!("none, {} in use", number(one.overshoot + capacity as f64))
        } else if one.overshoot <= 0.0 {
            "none".to_owned()
        } else {
            number(one.overshoot.ceil())
        };
        let allowed = one.allowed.map_or("–".to_owned(), number);
        let _ = writeln!(
            out,
            "| {} | {} | {} / {} | {overshoot} ({allowed}) | {:.1}, {:.1} | {:.1} ({:.1}) | {} | {} | {} | {} |",
            one.setting.name,
            number(one.asked as f64),
            number(one.admitted as f64),
            number(one.ideal as f64),
            percent(one.more, one.ideal),
            percent(one.less, one.ideal),
            percent(one.waited, one.admitted),
            one.wait_p99 as f64 / 1e6,
            number(one.calls_per_s.round()),
            number(one.keys_per_s.round()),
            number(one.failed_per_s.round()),
            number(one.leases as f64),
        );
    }
    out
}

/// Files with plots of what was played.
pub(crate) fn plots(all: &[Done]) -> Vec<(&'static str, String)> {
    let group = |name| {
        all.iter()
            .find(|done| done.name == name)
            .map_or(&[][..], |done| &done.outcomes)
    };
    let (near, far) = (group("near"), group("far"));
    let mut plots = Vec::new();
    if !near.is_empty() {
        plots.push((
            "limits-calls.svg",
            Plot {
                title: "Calls of the store for one limit, at five times the limit",
                x: ("participants", Scale::Log),
                y: ("calls/s", Scale::Log),
                series: by_limit(near, |one| one.calls_per_s),
            },
        ));
        plots.push((
            "limits-overshoot.svg",
            Plot {
                title: "Overshoot of a limit of 6,000 a minute, burst 1,000",
                x: ("participants", Scale::Log),
                y: ("requests", Scale::Linear),
                series: overshoot(near),
            },
        ));
    }
    if !far.is_empty() {
        let waits = |one: &Outcome| percent(one.waited, one.admitted);
        plots.push((
            "limits-waits.svg",
            Plot {
                title: "Admissions that waited for the store, at a fifth of the limit",
                x: ("participants", Scale::Log),
                y: ("% of admissions", Scale::Linear),
                series: by_limit(far, waits),
            },
        ));
    }
    let distance = group("distance");
    if !distance.is_empty() {
        let of = |name: &str, value: fn(&Outcome) -> f64| Series {
            name: name.to_owned(),
            points: distance
                .iter()
                .map(|one| (one.setting.round_trip as f64 / 1e6, value(one)))
                .collect(),
        };
        plots.push((
            "limits-distance.svg",
            Plot {
                title: "A store farther away: 10 participants, 600 a minute, five times the limit",
                x: ("to the store and back, ms", Scale::Linear),
                y: ("%", Scale::Linear),
                series: vec![
                    of("admitted, % of ideal", |one| {
                        percent(one.admitted, one.ideal)
                    }),
                    of("waited", |one| percent(one.waited, one.admitted)),
                ],
            },
        ));
    }
    let outage = group("faults")
        .iter()
        .find(|one| one.setting.name == OUTAGE);
    if let Some(one) = outage {
        let seconds = |from: f64| (0_u32..).map(move |i| f64::from(i) + from);
        let limit = one.setting.per_nano() * 1e9;
        let count = one.by_second.len().saturating_sub(2);
        plots.push((
            "limits-outage.svg",
            Plot {
                title: "The store is away from second 22 to 42: 10 participants, 100 a second",
                x: ("second", Scale::Linear),
                y: ("admitted in that second", Scale::Linear),
                series: vec![
                    Series {
                        name: "admitted".to_owned(),
                        points: seconds(8.0)
                            .zip(one.by_second.iter().skip(8).map(|n| *n as f64))
                            .take(count.saturating_sub(8))
                            .collect(),
                    },
                    Series {
                        name: "limit".to_owned(),
                        points: vec![(8.0, limit), (count as f64, limit)],
                    },
                ],
            },
        ));
    }
    plots
        .into_iter()
        .map(|(name, plot)| (name, plot.render()))
        .collect()
}

/// A line per limit over the number of participants.
fn by_limit(outcomes: &[Outcome], value: impl Fn(&Outcome) -> f64) -> Vec<Series> {
    let mut series: Vec<Series> = Vec::new();
    for one in outcomes {
        let Of::Rate { rpm, .. } = one.setting.of else {
            continue;
        };
        let name = format!("{} a minute", number(rpm as f64));
        let point = (one.setting.nodes as f64, value(one));
        match series.iter_mut().find(|known| known.name == name) {
            Some(known) => known.points.push(point),
            None => series.push(Series {
                name,
                points: vec![point],
            }),
        }
    }
    series
}

fn overshoot(outcomes: &[Outcome]) -> Vec<Series> {
    let chosen = |value: fn(&Outcome) -> f64| {
        outcomes
            .iter()
            .filter(|one| matches!(one.setting.of, Of::Rate { rpm: 6_000, .. }))
            .map(|one| (one.setting.nodes as f64, value(one)))
            .collect()
    };
    vec![
        Series {
            name: "allowed".to_owned(),
            points: chosen(|one| one.allowed.unwrap_or(0.0)),
        },
        Series {
            name: "worst window".to_owned(),
            points: chosen(|one| one.overshoot.max(0.0)),
        },
    ]
}
