//! Generations of models.

/// Generations of Gemini that are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Generation {
    /// Up to 2.5: thinking is bounded in tokens.
    Two,
    /// From 3 on: thinking has levels, and a turn's first call has to come back signed.
    Three,
    /// No Gemini by its name (Gemma, tuned models): what both take.
    Other,
}

impl Generation {
    /// By the model's name at the upstream.
    pub(super) fn of(model: &str) -> Self {
        let Some((_, version)) = model.rsplit_once("gemini-") else {
            return Self::Other;
        };
        let digits = version.split(|c: char| !c.is_ascii_digit()).next();
        match digits.and_then(|digits| digits.parse::<u32>().ok()) {
            Some(0..=2) => Self::Two,
            // Names without a number (`gemini-flash-latest`) mean the newest.
            _ => Self::Three,
        }
    }
}
