//! The price book by itself.
use forebay_core::price;
use forebay_core::usage::Usage;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

/// Every version of every price.
#[pyclass(frozen, module = "forebay._core")]
pub(crate) struct PriceBook(price::PriceBook);

#[pymethods]
impl PriceBook {
    #[new]
    fn new(records: &[u8]) -> PyResult<Self> {
        let specs =
            serde_json::from_slice(records).map_err(|e| PyValueError::new_err(e.to_string()))?;
        price::PriceBook::of(specs)
            .map(Self)
            .map_err(PyValueError::new_err)
    }

    /// The price that holds for a request, and its cost by it: `(id, pico-USD)`.
    #[pyo3(signature = (model, account, upstream, admitted_us, *, prompt=0, cached=0, cache_write=0, completion=0, reasoning=0, duration_us=0))]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments of one call")]
    fn rate(
        &self,
        model: &str,
        account: &str,
        upstream: &str,
        admitted_us: i64,
        prompt: u64,
        cached: u64,
        cache_write: u64,
        completion: u64,
        reasoning: u64,
        duration_us: u64,
    ) -> Option<(i64, u64)> {
        let usage = Usage {
            prompt,
            completion,
            cached,
            reasoning,
            cache_write,
        };
        let price = self.0.rates(model, account).at(upstream, admitted_us)?;
        Some((price.id, price.cost(&usage, duration_us)))
    }
}
