//! The limit table that the workers of one machine share.
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use forebay_core::limit::Region;
use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;

/// Rows of a process's own table.
const ROWS: usize = 1 << 20;

/// The table of a process: the one behind `fd`, or one of its own.
pub(crate) fn region(fd: Option<i32>, worker: usize) -> PyResult<Arc<Region>> {
    let region = match fd {
        None => Region::private(ROWS),
        Some(fd) if fd < 0 => return Err(PyValueError::new_err("limits_fd is no descriptor")),
        Some(fd) => {
            // SAFETY: borrowed for the length of one `dup`, which fails for a closed descriptor.
            let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
            let own = borrowed.try_clone_to_owned().map_err(PyOSError::new_err)?;
            Region::attach(own, worker)
        }
    };
    Ok(Arc::new(region.map_err(PyOSError::new_err)?))
}

/// A memory-mapped table of limits for `workers` processes of one machine.
#[pyclass(frozen, module = "forebay._core")]
pub(crate) struct SharedLimits {
    fd: OwnedFd,
    region: Region,
}

#[pymethods]
impl SharedLimits {
    #[new]
    #[pyo3(signature = (workers, rows=ROWS))]
    fn new(workers: usize, rows: usize) -> PyResult<Self> {
        let (fd, region) = Region::shared(workers, rows)?;
        Ok(Self { fd, region })
    }

    /// The descriptor to hand to workers; child processes inherit it.
    #[getter]
    fn fd(&self) -> i32 {
        self.fd.as_raw_fd()
    }

    /// Gives back what a dead worker held: permits and reserved money.
    fn reclaim(&self, worker: usize) -> PyResult<()> {
        if worker >= self.region.workers() {
            return Err(PyValueError::new_err("there is no such worker"));
        }
        self.region.reclaim(worker);
        Ok(())
    }
}
