//! Embeddings.
use super::shared::{TOKEN_IDS, USAGE};
use super::{Field, Kind, Message, Shape, filled, list, optional, repeated, required};

pub(in super::super) static EMBED_REQUEST: Message = Message::object(
    "EmbedRequest",
    &[
        filled(1, "model", Kind::Text),
        optional(2, "input", Kind::Text),
        repeated(3, "inputs", Kind::Text).json("input"),
        repeated(4, "input_tokens", Kind::Int32).json("input"),
        repeated(5, "input_token_lists", Kind::Message(&TOKEN_IDS)).json("input"),
        optional(6, "dimensions", Kind::Int32),
        optional(7, "user", Kind::Text),
    ],
);

pub(in super::super) static EMBED_RESPONSE: Message = Message::object(
    "EmbedResponse",
    &[
        list(1, "data", Kind::Message(&EMBEDDING)),
        required(2, "model", Kind::Text),
        optional(3, "usage", Kind::Message(&USAGE)),
    ],
)
.fixed("object", "list");

static EMBEDDING: Message = Message::object(
    "Embedding",
    &[
        required(1, "index", Kind::Int32),
        Field::new(2, "values", Kind::Double, Shape::Vector).json("embedding"),
    ],
)
.fixed("object", "embedding");
