//! Media types: what a file's name says of them, and Converse's names of them.

/// `(extension and Converse's name, media type)`; of names of one type the first is written.
const TYPES: [(&str, &str); 30] = [
    ("png", "image/png"),
    ("jpeg", "image/jpeg"),
    ("jpg", "image/jpeg"),
    ("gif", "image/gif"),
    ("webp", "image/webp"),
    ("heic", "image/heic"),
    ("heif", "image/heif"),
    ("pdf", "application/pdf"),
    ("csv", "text/csv"),
    ("html", "text/html"),
    ("txt", "text/plain"),
    ("md", "text/markdown"),
    ("doc", "application/msword"),
    (
        "docx",
        "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    ),
    ("xls", "application/vnd.ms-excel"),
    (
        "xlsx",
        "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    ),
    ("wav", "audio/wav"),
    ("mp3", "audio/mpeg"),
    ("mp3", "audio/mp3"),
    ("flac", "audio/flac"),
    ("ogg", "audio/ogg"),
    ("opus", "audio/opus"),
    ("aac", "audio/aac"),
    ("m4a", "audio/mp4"),
    ("webm", "audio/webm"),
    ("pcm", "audio/pcm"),
    ("x-aac", "audio/x-aac"),
    ("mka", "audio/x-matroska"),
    ("wav", "audio/x-wav"),
    ("aiff", "audio/aiff"),
];

/// The media type that a URL's path ends in, where it is one of the known.
pub(crate) fn type_of_url(url: &str) -> Option<&'static str> {
    let path = url.split(['?', '#']).next()?;
    let name = path.rsplit('/').next()?;
    let (_, extension) = name.rsplit_once('.')?;
    type_of_format(&extension.to_ascii_lowercase())
}

/// The media type by its extension, or by Converse's name.
pub(crate) fn type_of_format(format: &str) -> Option<&'static str> {
    let found = TYPES.iter().find(|(name, _)| *name == format);
    found.map(|(_, media_type)| *media_type)
}

/// Converse's name of a media type.
pub(crate) fn format_of_type(media_type: &str) -> Option<&'static str> {
    let found = TYPES.iter().find(|(_, known)| *known == media_type);
    found.map(|(name, _)| *name)
}
