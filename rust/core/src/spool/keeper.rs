//! The thread that brings a spool's records to the disk, in groups.
use std::io;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::Spool;

/// Records are brought to the disk in groups this far apart.
const GROUP: Duration = Duration::from_millis(50);

#[derive(Default)]
struct Rung {
    soon: bool,
    now: bool,
    stop: bool,
}

/// Wakes the keeper.
#[derive(Default)]
pub(super) struct Bell {
    rung: Mutex<Rung>,
    heard: Condvar,
}

impl Bell {
    /// There is something to do, `now` or with the next group.
    pub(super) fn ring(&self, now: bool) {
        let mut rung = self.rung.lock();
        let news = if now { !rung.now } else { !rung.soon };
        rung.soon = true;
        rung.now |= now;
        drop(rung);
        if news {
            self.heard.notify_one();
        }
    }

    /// Tells the keeper to end.
    pub(super) fn stop(&self) {
        self.rung.lock().stop = true;
        self.heard.notify_one();
    }

    /// Waits for something to do; `busy`: no longer than for the next group. False: it is over.
    fn wait(&self, busy: bool) -> bool {
        let mut rung = self.rung.lock();
        if !busy {
            while !(rung.soon || rung.stop) {
                self.heard.wait(&mut rung);
            }
        }
        let mut waits = true;
        while waits && !(rung.now || rung.stop) {
            waits = !self.heard.wait_for(&mut rung, GROUP).timed_out();
        }
        rung.soon = false;
        rung.now = false;
        !rung.stop
    }
}

/// The keeper's thread.
pub(super) struct Keeper(JoinHandle<()>);

impl Keeper {
    /// Starts it. It ends when the spool is dropped, too.
    pub(super) fn start(spool: &Arc<Spool>, bell: Arc<Bell>) -> io::Result<Self> {
        let spool = Arc::downgrade(spool);
        let thread = std::thread::Builder::new()
            .name("forebay-spool".to_owned())
            .spawn(move || run(&spool, &bell))?;
        Ok(Self(thread))
    }

    /// Ends it and waits for that.
    pub(super) fn stop(self, bell: &Bell) {
        bell.stop();
        // A keeper that panicked has ended too.
        let _ = self.0.join();
    }
}

fn run(spool: &Weak<Spool>, bell: &Bell) {
    let mut busy = true;
    while bell.wait(busy) {
        let Some(spool) = spool.upgrade() else { return };
        busy = spool.keep();
    }
}
