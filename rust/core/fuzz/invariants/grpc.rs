//! What holds of every input that gRPC's door turns; shared by fuzzing and tests.
use forebay_core::door::grpc::{self, Method};
use serde_json::Value;

/// Whatever the bytes: an error, or a JSON object that is a message again, which says the same.
pub(crate) fn check(method: Method, bytes: &[u8]) {
    if let Ok(json) = grpc::request(method, bytes) {
        let value: Value = serde_json::from_slice(&json).expect("what is written is JSON");
        assert!(value.is_object());
        let again = grpc::request_from_json(method, &json).expect("a message again");
        // `stream` has no field: it lands in `extra`, where it is refused.
        if !method.streams() {
            grpc::request(method, &again).expect("the same again");
        }
    }
    if let Ok(json) = grpc::answer_to_json(method, bytes) {
        serde_json::from_slice::<Value>(&json).expect("what is written is JSON");
        grpc::answer_from_json(method, &json).expect("a message again");
    }
    let _ = grpc::answer_from_json(method, bytes);
    let _ = grpc::request_from_json(method, bytes);
}
