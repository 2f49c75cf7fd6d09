//! A moving average that believes bad news at once.
use std::time::Duration;

use super::nanos;
use crate::limit::Nanos;

/// How long what was seen counts: after so long without a worse sample, a value weighs 1/e.
const DECAY: Duration = Duration::from_secs(10);

/// Peak-sensitive, exponentially weighted average of a time, as Finagle's Peak EWMA: a sample above
/// the average takes its place, one below draws it down by how much time has passed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Peak {
    average: Option<(Duration, Nanos)>,
}

impl Peak {
    /// Takes a sample in; the average with it.
    pub fn add(&mut self, sample: Duration, now: Nanos) -> Duration {
        let next = match self.average {
            Some((average, at)) if sample < average => {
                let gone = now.saturating_sub(at) as f64 / nanos(DECAY) as f64;
                let kept = average.saturating_sub(sample).mul_f64((-gone).exp());
                sample + kept
            }
            _ => sample,
        };
        self.average = Some((next, now));
        next
    }

    /// The average; none before the first sample.
    pub fn get(&self) -> Option<Duration> {
        self.average.map(|(average, _)| average)
    }
}
