//! A stream after its commit point: from the engine to the client, to its end or its cut.
use bytes::BytesMut;
use tokio::time::Instant;

use super::Job;
use super::open::{Into, Open};
use super::read::drain;
use super::refuse::logged_all;
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
            let last = std::mem::take(&mut open.early);
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
pub(super) async fn close(job: &Job, finish: Option<&str>, last: BytesMut, record: &mut Record) {
    record.close(Outcome::Ok, 200, None, finish);
    logged_all(record, &last);
    record.book_durably().await;
    job.slot.write(|out| out.extend_from_slice(&last));
    job.slot.finish();
}

/// Gives the client what it is to get.
fn deliver(job: &Job, open: &mut Open, record: &mut Record) {
    if open.early.is_empty() {
        return;
    }
    let early: BytesMut = std::mem::take(&mut open.early);
    logged_all(record, &early);
    job.slot.write(|out| out.extend_from_slice(&early));
}
