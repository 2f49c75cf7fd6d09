//! Reranking. Engines answer with an object (Jina, vLLM) or with the results alone (SGLang).
use super::shared::USAGE;
use super::{Form, Kind, Message, filled, list, optional, repeated, required};

pub(in super::super) static RERANK_REQUEST: Message = Message::object(
    "RerankRequest",
    &[
        filled(1, "model", Kind::Text),
        filled(2, "query", Kind::Text),
        repeated(3, "documents", Kind::Text),
        optional(4, "top_n", Kind::Int32),
        optional(5, "return_documents", Kind::Bool),
        optional(6, "user", Kind::Text),
    ],
);

pub(in super::super) static RERANK_RESPONSE: Message = Message::object(
    "RerankResponse",
    &[
        optional(1, "id", Kind::Text),
        optional(2, "model", Kind::Text),
        list(3, "results", Kind::Message(&RERANK_RESULT)),
        optional(4, "usage", Kind::Message(&USAGE)),
    ],
)
.form(Form::ObjectOrArray);

static RERANK_RESULT: Message = Message::object(
    "RerankResult",
    &[
        required(1, "index", Kind::Int32),
        required(2, "relevance_score", Kind::Double).alias("score"),
        optional(3, "document", Kind::Message(&RERANK_DOCUMENT)),
    ],
);

static RERANK_DOCUMENT: Message =
    Message::object("RerankDocument", &[required(1, "text", Kind::Text)]).form(Form::ObjectOrText);
