//! More attempts beside one whose first token is late: the first to come answers, the others are
//! stopped.
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::time::{Instant, Sleep};

use super::Job;
use super::course::{Course, Failed};
use super::open::{Opened, Try, open};
use crate::alarm::Alarm;
use crate::dispatch;
use crate::error::Error;
use crate::record::{Hedge, Record};
use crate::snapshot::Target;

/// Makes an attempt, with others beside it where the model's hedging says so and other targets have a
/// place free.
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

type Running<'a> = Pin<Box<dyn Future<Output = Result<Opened, Failed>> + Send + 'a>>;

/// An attempt that was made beside the first.
struct Beside {
    target: Target,
    began: Instant,
    failed: Option<(Error, Instant)>,
}

/// Attempts that run at once. The first one is number 0, those beside it follow.
struct Race<'a> {
    running: Vec<(usize, Running<'a>)>,
    /// When the next one is due; nothing once there is to be none.
    late: Option<Pin<Box<Sleep>>>,
}

impl Race<'_> {
    /// The attempt that has come to its end, and how; None when no first token is there in time.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<(usize, Result<Opened, Failed>)>> {
        for at in 0..self.running.len() {
            let Some((number, attempt)) = self.running.get_mut(at) else {
                break;
            };
            if let Poll::Ready(opened) = attempt.as_mut().poll(cx) {
                let ended = (*number, opened);
                drop(self.running.remove(at));
                return Poll::Ready(Some(ended));
            }
        }
        match &mut self.late {
            Some(late) => late.as_mut().poll(cx).map(|()| None),
            None => Poll::Pending,
        }
    }
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
    let first = attempt.number;
    let opening = open(job, attempt, total, &mut course.alarm, Some(record));
    let mut race = Race {
        running: vec![(0, Box::pin(opening))],
        late: Some(Box::pin(tokio::time::sleep(after))),
    };
    let mut others: Vec<Beside> = Vec::new();
    let mut lost: Option<(Failed, Instant)> = None;
    let (opened, winner) = loop {
        match std::future::poll_fn(|cx| race.poll(cx)).await {
            Some((number, Ok(opened))) => break (Ok(opened), number),
            Some((number, Err(failed))) => {
                let now = Instant::now();
                match number.checked_sub(1).and_then(|at| others.get_mut(at)) {
                    Some(other) => other.failed = Some((failed.error, now)),
                    None => lost = Some((failed, now)),
                }
                // Who is left may still answer; what the first one came to is told if nobody does.
                if race.running.is_empty()
                    && let Some((failed, _)) = lost.take()
                {
                    break (Err(failed), 0);
                }
            }
            None => {
                let may = || hedge.budget.spend(job.gateway.now().mono);
                let placed = dispatch::beside(&mut course.trail, &course.model, &job.ask, may);
                let Some(placed) = placed else {
                    race.late = None;
                    continue;
                };
                let began = Instant::now();
                others.push(Beside {
                    target: placed.target.clone(),
                    began,
                    failed: None,
                });
                let number = first.saturating_add(u32::try_from(others.len()).unwrap_or(u32::MAX));
                let attempt = Try::of(placed, &course.model, number);
                let beside = async move {
                    let due = (began + attempt.timeouts.first_byte).min(total);
                    let mut alarm = Alarm::new(due);
                    open(job, attempt, total, &mut alarm, None).await
                };
                race.running.push((others.len(), Box::pin(beside)));
                race.late = Some(Box::pin(tokio::time::sleep(after)));
            }
        }
    };
    drop(race);
    if let Some(other) = winner.checked_sub(1).and_then(|at| others.get(at)) {
        let failed = lost.map(|(failed, at)| (failed.error, at.into_std()));
        record.hedged(&told(other, true, failed));
    }
    for (at, other) in others.iter().enumerate() {
        if at + 1 != winner {
            let failed = other.failed.clone();
            record.hedged(&told(
                other,
                false,
                failed.map(|(e, at)| (e, at.into_std())),
            ));
        }
    }
    if let Some(other) = winner.checked_sub(1).and_then(|at| others.get(at))
        && !job.slot.lingers(record.linger(&other.target.upstream))
    {
        // Its client has left meanwhile, and this upstream is not read on for that.
        return Err(Failed::left());
    }
    opened
}

fn told(other: &Beside, won: bool, failed: Option<(Error, std::time::Instant)>) -> Hedge<'_> {
    Hedge {
        target: &other.target,
        began: other.began.into_std(),
        won,
        failed,
    }
}
