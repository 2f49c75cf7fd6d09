"""Rules of error that several kinds share.

What a status means where no rule fits is `scrub.rs`'s `kind_of_status`; rules are for what a status
does not say. Texts are in lower case, as the core compares them, and come from the servers' sources
and issues: SGLang 0.5.23 `managers/tokenizer_manager.py` (recorded in tests/data), vLLM
`entrypoints/openai/serving_engine.py`, TGI `router/src/validation.rs`.
"""

from collections.abc import Iterable

from forebay.upstreams.kind import ErrorRule, Reason


def refusals(
    status: int, reason: Reason, texts: Iterable[str] = (), codes: Iterable[str] = ()
) -> tuple[ErrorRule, ...]:
    """The request's own fault, which another model may see otherwise: by text, by code."""
    return (
        *(ErrorRule(status, "invalid_request", code=c, retry=False, reason=reason) for c in codes),
        *(
            ErrorRule(status, "invalid_request", contains=t, retry=False, reason=reason)
            for t in texts
        ),
    )


NO_MODEL = ErrorRule(404, "model_not_found", retry=True)
"""The model is not there, but a sibling may have it: the client named one that we know."""

NO_MONEY = ErrorRule(402, "upstream_error", retry=True, reason="quota")
"""Our account there is empty: no fault of the client's, and no matter of waiting."""

BAD_KEY = (
    ErrorRule(401, "upstream_error", retry=True),
    ErrorRule(403, "upstream_error", retry=True),
)
"""Our credentials there will not do: no fault of the client's, and a sibling has its own."""

OPENAI_OVERFLOW = refusals(
    400,
    "context_overflow",
    codes=("context_length_exceeded",),
    texts=("maximum context length", "exceeds the context window"),
)
"""OpenAI's own code and texts, which most who speak its dialect repeat."""

SGLANG_OVERFLOW = refusals(
    400,
    "context_overflow",
    # 108 and 110 in tests/data/sglang-0.5.23.
    texts=("longer than the model's context length", "maximum context length"),
)
VLLM_OVERFLOW = refusals(
    400,
    "context_overflow",
    texts=("maximum context length", "maximum model length", "longer than the maximum model"),
)
TGI_OVERFLOW = refusals(
    422,
    "context_overflow",
    texts=("`inputs` tokens + `max_new_tokens` must be", "`inputs` must have less than"),
)
ENGINES = (*SGLANG_OVERFLOW, *VLLM_OVERFLOW[1:], *TGI_OVERFLOW)
"""Of whatever engine stands behind a platform that passes its answers on."""
