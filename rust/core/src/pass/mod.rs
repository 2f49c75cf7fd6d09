//! What is passed on as it goes by, and not read whole: forms with files in them, and answers that are
//! sound, images or events of other kinds than a chat's.
pub mod finder;
pub mod multipart;
pub mod object;
mod part;
pub mod upload;
