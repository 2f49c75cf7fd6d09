//! A stream after its commit point: from the engine to the client, to its end or its cut.
use tokio::time::Instant;

use super::Job;
use super::keep::keep;
use super::open::{Into, Open};
use super::read::drain;
use super::refuse::{Last, logged_all};
use crate::alarm::Alarm;
use crate::error::{Error, Kind};
use crate::record::{Outcome, Record};

/// Relays a stream. An error means that it broke off: the client has had what came before, but for
/// what is left in [`Open::early`], and does not know.
pub(super) async fn relay(
    job: &Job,
    open: &mut Open,
    total: Instant,
    alarm: &mut Alarm,
    record: &mut Record,
) -> Result<(), Error> {
    // The last bytes wait until the end is recorded for good.
    let holds = record.is_held();
    let into = if holds { Into::Early } else { Into::Client };
    if !(holds && open.is_over()) {
        deliver(job, open, record);
    }
    loop {
        let until = (Instant::now() + open.timeouts.idle).min(total);
        let (result, ended) = open.next(job, until, alarm, record, into).await;
        record.advance(open.progress());
        open.charge();
        if !(holds && ended) {
            deliver(job, open, record);
        }
        result?;
        if let Some(trouble) = job.slot.trouble() {
            return Err(trouble);
        }
        if ended {
            open.whole();
            let last = Last {
                said: std::mem::take(&mut open.early),
                told: open.relay.told(),
            };
            let finish = open.relay.finish_reason();
            close(job, finish, last, record).await;
            drain(&mut open.incoming).await;
            return Ok(());
        }
        alarm
            .within(total, std::future::poll_fn(|cx| job.slot.poll_room(cx)))
            .await
            .map_err(|_| {
                Error::new(
                    Kind::UpstreamTimeout,
                    "The request took longer than it may.",
                )
            })?;
    }
}

/// Gives the client the end of a stream that is whole.
pub(super) async fn close(job: &Job, finish: Option<&str>, last: Last, record: &mut Record) {
    record.close(Outcome::Ok, 200, None, finish);
    logged_all(record, &last.said);
    record.book_durably().await;
    last.give(job);
    if let Some(trouble) = job.slot.trouble() {
        record.note(&trouble, &job.answer_headers);
    }
    keep(job, None).await;
    job.slot.finish();
}

/// Gives the client what it is to get.
fn deliver(job: &Job, open: &mut Open, record: &mut Record) {
    if open.early.is_empty() && !open.relay.is_native() {
        return;
    }
    let early = Last {
        said: std::mem::take(&mut open.early),
        told: open.relay.told(),
    };
    logged_all(record, &early.said);
    early.give(job);
}
