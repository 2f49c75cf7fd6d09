//! A second attempt beside one whose first token is late: the first of the two to come answers, the
//! other one is stopped.
use std::pin::pin;

use tokio::time::Instant;

use super::Job;
use super::course::{Course, Failed};
use super::open::{Opened, Try, open};
use crate::alarm::Alarm;
use crate::dispatch;
use crate::record::{Hedge, Record};

/// Makes an attempt, with a second one beside it where the model's hedging says so and another
/// target has a place free.
pub(super) async fn open_hedged(
    course: &mut Course,
    job: &Job,
    attempt: Box<Try>,
    record: &mut Record,
) -> Result<Opened, Failed> {
    // A whole answer has no first token to be late with.
    if job.stream && course.model.hedge.is_some() {
        // Rare, and large: apart, so that other requests do not carry its room.
        return Box::pin(race(course, job, attempt, record)).await;
    }
    open(job, attempt, course.total, &mut course.alarm, Some(record)).await
}

async fn race(
    course: &mut Course,
    job: &Job,
    attempt: Box<Try>,
    record: &mut Record,
) -> Result<Opened, Failed> {
    let Some(hedge) = &course.model.hedge else {
        return open(job, attempt, course.total, &mut course.alarm, Some(record)).await;
    };
    hedge.budget.earn();
    let (after, total) = (hedge.after, course.total);
    let number = attempt.number + 1;
    let first = open(job, attempt, total, &mut course.alarm, Some(record));
    // On the heap, so that it can be dropped before its scope ends.
    let mut first = Box::pin(first);
    tokio::select! {
        biased;
        opened = &mut first => return opened,
        () = tokio::time::sleep(after) => {}
    }
    if !hedge.budget.spend(job.gateway.now().mono) {
        return first.await;
    }
    let placed = dispatch::beside(&mut course.trail, &course.model, &job.ask);
    let Some(placed) = placed else {
        return first.await;
    };
    let beside = placed.target.clone();
    let second = Try::of(placed, &course.model, number);
    let mut alarm = Alarm::new((Instant::now() + second.timeouts.first_byte).min(total));
    let began = Instant::now();
    let mut second = pin!(open(job, second, total, &mut alarm, None));
    let failed = |failed: Failed| Some((failed.error, Instant::now()));
    let (opened, won, failed) = tokio::select! {
        biased;
        opened = &mut first => match opened {
            Ok(opened) => (Ok(opened), false, None),
            // The other one is all that is left.
            Err(lost) => {
                let at = Instant::now();
                match second.await {
                    Ok(opened) => (Ok(opened), true, Some((lost.error, at))),
                    Err(other) => (Err(lost), false, failed(other)),
                }
            }
        },
        opened = &mut second => match opened {
            Ok(opened) => (Ok(opened), true, None),
            Err(other) => {
                let failed = failed(other);
                (first.as_mut().await, false, failed)
            }
        },
    };
    drop(first);
    record.hedged(&Hedge {
        target: &beside,
        began: began.into_std(),
        won,
        failed: failed.map(|(error, at)| (error, at.into_std())),
    });
    if won && !job.slot.lingers(record.linger(&beside.upstream)) {
        // Its client has left meanwhile, and this upstream is not read on for that.
        return Err(Failed::left());
    }
    opened
}
