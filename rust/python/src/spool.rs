//! The usage spool, as the shipper sees it.
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use forebay_core::gateway::Gateway;
use forebay_core::spool::{self, Config, Disk, Durability, OnFull, System};
use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

/// How long the prompt logs that are being made may take at the end.
const LOGS_END: Duration = Duration::from_secs(2);

/// The spool of this process: what was admitted, until the database has it.
#[pyclass(frozen, module = "forebay._core")]
pub(crate) struct Spool {
    gateway: Arc<Gateway>,
    spool: Arc<spool::Spool>,
}

impl Spool {
    pub(crate) fn open(
        gateway: &Arc<Gateway>,
        root: PathBuf,
        node: String,
        segment_bytes: u64,
        max_bytes: u64,
        durability: &str,
        on_full: &str,
    ) -> PyResult<Self> {
        let durability = match durability {
            "process" => Durability::Process,
            "machine" => Durability::Machine,
            _ => return Err(PyValueError::new_err("durability is process or machine")),
        };
        let on_full = match on_full {
            "refuse" => OnFull::Refuse,
            "serve_unmetered" => OnFull::ServeUnmetered,
            _ => {
                return Err(PyValueError::new_err(
                    "on_full is refuse or serve_unmetered",
                ));
            }
        };
        let config = Config {
            root,
            node,
            segment_bytes,
            max_bytes,
            durability,
            on_full,
        };
        let disk: Arc<dyn Disk> = Arc::new(System);
        let counters = gateway.spool_counters.clone();
        let id = *uuid::Uuid::now_v7().as_bytes();
        let spool =
            spool::Spool::create(config, id, &disk, counters).map_err(PyOSError::new_err)?;
        gateway
            .record_in(Arc::clone(&spool))
            .map_err(PyOSError::new_err)?;
        Ok(Self {
            gateway: Arc::clone(gateway),
            spool,
        })
    }
}

#[pymethods]
impl Spool {
    /// Usage that waits for the database.
    #[getter]
    fn usage(&self) -> SpoolSource {
        SpoolSource {
            spool: Arc::clone(&self.spool),
            logs: false,
        }
    }

    /// Prompt logs that wait for the database.
    #[getter]
    fn logs(&self) -> SpoolSource {
        SpoolSource {
            spool: Arc::clone(&self.spool),
            logs: true,
        }
    }

    /// Takes over what processes that have gone left. Gives how many spools.
    fn adopt(&self, py: Python<'_>) -> PyResult<usize> {
        py.detach(|| self.gateway.adopt_spools())
            .map_err(PyOSError::new_err)
    }

    /// Bytes of usage on the disk, and the most that there may be.
    #[getter]
    fn size(&self) -> (u64, u64) {
        let standing = self.spool.standing();
        (standing.bytes, standing.max_bytes)
    }

    /// Nothing more is taken in.
    #[getter]
    fn full(&self) -> bool {
        self.spool.standing().full
    }

    /// Why the disk does not take what it should.
    #[getter]
    fn trouble(&self) -> Option<String> {
        self.spool.trouble()
    }

    /// Waits until the prompt logs that are being made are in the spool.
    fn finish(&self, py: Python<'_>) {
        if let Some(log) = self.gateway.prompt_log() {
            py.detach(|| log.stop(LOGS_END));
        }
    }

    /// The end of recording: what is not shipped waits for the next process.
    fn close(&self, py: Python<'_>) {
        py.detach(|| self.spool.close());
    }
}

/// Rows that wait for the database.
#[pyclass(frozen, module = "forebay._core")]
pub(crate) struct SpoolSource {
    spool: Arc<spool::Spool>,
    logs: bool,
}

#[pymethods]
impl SpoolSource {
    /// Up to `limit` rows of one spool; `None`: none waits. The same again until `done`.
    fn batch(&self, py: Python<'_>, limit: usize) -> Option<SpoolBatch> {
        py.detach(|| {
            if self.logs {
                self.spool.log_batch(limit)
            } else {
                self.spool.batch(limit)
            }
        })
        .map(SpoolBatch)
    }

    /// The rows are in the database, for good.
    fn done(&self, py: Python<'_>, batch: &Bound<'_, SpoolBatch>) {
        let batch = &batch.get().0;
        py.detach(|| self.spool.done(batch));
    }

    /// How many wait.
    #[getter]
    fn waiting(&self) -> u64 {
        if self.logs {
            self.spool.log_standing().waiting
        } else {
            self.spool.standing().waiting
        }
    }

    /// Seconds since the request ended whose usage has waited longest; 0 if none waits.
    #[getter]
    fn lag_s(&self) -> f64 {
        if self.logs {
            return 0.0;
        }
        self.spool.lag().as_secs_f64()
    }
}

/// Rows of one spool.
#[pyclass(frozen, module = "forebay._core")]
pub(crate) struct SpoolBatch(spool::Batch);

#[pymethods]
impl SpoolBatch {
    fn __len__(&self) -> usize {
        self.0.len()
    }

    /// The spool's id, 16 bytes.
    #[getter]
    fn boot<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.0.spool)
    }

    /// The machine that wrote them.
    #[getter]
    fn node(&self) -> &str {
        &self.0.node
    }

    /// Rows of the spool that are shipped once these are.
    #[getter]
    fn position(&self) -> u64 {
        self.0.position
    }

    /// A complete binary COPY of the rows from `start` to before `stop`.
    fn copy<'py>(&self, py: Python<'py>, start: usize, stop: usize) -> Bound<'py, PyBytes> {
        let bytes = py.detach(|| self.0.copy(start, stop));
        PyBytes::new(py, &bytes)
    }

    /// One row as a JSON object.
    fn json(&self, index: usize) -> PyResult<String> {
        self.0
            .json(index)
            .ok_or_else(|| PyValueError::new_err("there is no such row"))
    }
}
