//! What is left of a request where only its size and its kind count.
use super::chat::{Content, Media, Message, Part, Request, Role, Spot};

impl Request<'_> {
    /// Leaves out what not every dialect can say: what is left tells how much is asked, not what.
    pub(crate) fn plain(&mut self) {
        let common = |content: &Content<'_>| {
            !matches!(
                content,
                Content::Image(Media::File(_)) | Content::Document { .. } | Content::Audio(_)
            )
        };
        self.other.clear();
        for message in &mut self.messages {
            message.parts.retain(|part| common(&part.content));
            for part in &mut message.parts {
                if let Content::ToolResult(result) = &mut part.content {
                    result.content.retain(common);
                }
            }
        }
        self.messages.retain(|message| !message.parts.is_empty());
        if self.messages.is_empty() {
            self.messages.push(Message {
                role: Role::User,
                parts: vec![Part::new(Content::Text("".into()), Spot::default())],
                name: None,
                index: 0,
            });
        }
    }
}
