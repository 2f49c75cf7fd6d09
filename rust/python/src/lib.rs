//! `forebay._core`: PyO3 adapters over `forebay-core`, and the bridge to asyncio.
mod bridge;
mod convert;
mod core;
mod dialects;
mod exchange;
mod grpc;
mod leases;
mod limits;
mod notes;
mod port;
mod prices;
mod pure;
mod spool;
mod waits;

use pyo3::prelude::*;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The Rust core of Forebay.
#[pymodule]
mod _core {
    #[pymodule_export]
    use crate::core::Core;
    #[pymodule_export]
    use crate::dialects::{translate_answer, translate_request};
    #[pymodule_export]
    use crate::exchange::Exchange;
    #[pymodule_export]
    use crate::grpc::{grpc_table, grpc_to_json, json_to_grpc};
    #[pymodule_export]
    use crate::leases::{Lease, Leases};
    #[pymodule_export]
    use crate::limits::SharedLimits;
    #[pymodule_export]
    use crate::prices::PriceBook;
    #[pymodule_export]
    use crate::pure::{Limiter, SseDecoder, bad_pattern, peek, sign_v4};
    #[pymodule_export]
    use crate::spool::{Spool, SpoolBatch, SpoolSource};

    use pyo3::prelude::*;
    use pyo3::types::PyTuple;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        let paths = forebay_core::door::Way::all().iter().map(|way| way.path);
        module.add(
            "WAYS",
            PyTuple::new(module.py(), paths.collect::<Vec<_>>())?,
        )?;
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
