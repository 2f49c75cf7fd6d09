//! What is asked for: what its body tells, whichever form it comes in, and which model it is for.
use std::sync::Arc;

use bytes::Bytes;

use crate::door::Native;
use crate::error::{Error, Kind};
use crate::gateway::Endpoint;
use crate::keys::Key;
use crate::pass::object::{Act, Object};
use crate::pass::upload::Upload;
use crate::peek::{Peek, peek};
use crate::refusals::{complete, find_model, json_content, permitted, unreadable};
use crate::snapshot::{Model, Snapshot};

/// What is asked for, as its door has read it.
pub(super) struct Asked {
    pub(super) endpoint: Endpoint,
    /// OpenAI's JSON.
    pub(super) body: Bytes,
    /// The client's own request.
    pub(super) native: Option<Native>,
    /// In place of a body that is there, one that still comes.
    pub(super) upload: Option<Arc<Upload>>,
    /// The file or batch that it is about.
    pub(super) object: Option<Object>,
}

/// The model that a body asks for, if the key may use it, and its name as it was asked for.
pub(crate) fn permitted_model<'s>(
    snapshot: &'s Snapshot,
    key: &Key,
    body: &Peek<'_>,
) -> Result<(String, &'s Arc<Model>), Error> {
    let (asked, model) = find_model(snapshot, body)?;
    permitted(key, &asked, model)?;
    Ok((asked, model))
}

impl Asked {
    /// What is known of the request.
    pub(super) fn read(&self, key: &Key, content_type: Option<&[u8]>) -> Result<Peek<'_>, Error> {
        if let Some(object) = &self.object {
            may_touch(key, object, content_type)?;
            return Ok(Peek::default());
        }
        if let Some(upload) = &self.upload {
            return Ok(uploaded(self.endpoint, upload));
        }
        json_content(content_type)?;
        let body = peek(&self.body).map_err(|error| unreadable(&error))?;
        complete(self.endpoint, &body)?;
        Ok(body)
    }

    /// The model that it is for, by the name that the client has for it.
    pub(super) fn model<'s>(
        &self,
        key: &Key,
        snapshot: &'s Snapshot,
        body: &Peek<'_>,
    ) -> Result<(String, &'s Arc<Model>), Error> {
        if self.object.is_some() {
            let files = snapshot.files.as_ref().ok_or_else(no_files)?;
            return Ok((files.name.to_string(), files));
        }
        permitted_model(snapshot, key, body)
    }
}

/// Refuses what a key may not do with files and batches.
///
/// A batch asks for models that only its file names, so a key that may not use all of them may make
/// none.
fn may_touch(key: &Key, object: &Object, content_type: Option<&[u8]>) -> Result<(), Error> {
    if object.endpoint != Endpoint::Batches || object.act != Act::Create {
        return Ok(());
    }
    if key.is_restricted() {
        return Err(Error::new(
            Kind::Forbidden,
            "This API key may use some models only, so it may not make batches.",
        )
        .code("batches_not_allowed"));
    }
    json_content(content_type)
}

fn no_files() -> Error {
    Error::new(
        Kind::NotFound,
        "Files and batches are not kept here: no upstream is configured for them.",
    )
    .code("files_not_configured")
}

/// Bytes of sound that are taken for an input token: of an MP3 of 128 kbit/s, a tenth of a second.
const SOUND_A_TOKEN: u64 = 1600;

/// The input of a file of sound, by what is known of its size.
pub(crate) fn sound_tokens(upload: &Upload) -> u64 {
    upload.size() / SOUND_A_TOKEN
}

/// What is known of a request whose body still comes.
fn uploaded(endpoint: Endpoint, upload: &Upload) -> Peek<'_> {
    let is_sound = matches!(endpoint, Endpoint::Transcriptions | Endpoint::Translations);
    Peek {
        model: Some(upload.model().into()),
        prompt_token_ids: if is_sound { sound_tokens(upload) } else { 0 },
        prompt_items: 1,
        ..Peek::default()
    }
}
