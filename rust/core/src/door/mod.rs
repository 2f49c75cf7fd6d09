//! The ways in: what a client speaks, turned into OpenAI's and back.
pub mod grpc;
