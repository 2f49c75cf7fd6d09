//! Texts that end an answer, where one lies across the join.

/// What a client's body says of the join of two answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Stops {
    /// Texts that end an answer.
    pub(super) stops: Vec<String>,
    /// The answer keeps the one that ended it.
    pub(super) kept: bool,
}

/// Finds a text that ends the answer where one half of it lies on each side of the join: neither
/// engine has seen it whole.
#[derive(Clone, Debug)]
pub(super) struct Straddle {
    stops: Stops,
    /// The end of what was delivered, then what came since.
    window: String,
    /// How much of it was delivered before.
    before: usize,
    /// Longest text that ends it, bytes.
    longest: usize,
}

impl Straddle {
    pub(super) fn new(stops: Stops, delivered: &str) -> Option<Self> {
        let longest = stops.stops.iter().map(String::len).max()?;
        let mut from = delivered.len().saturating_sub(longest - 1);
        while !delivered.is_char_boundary(from) {
            from += 1;
        }
        let window = delivered.get(from..).unwrap_or_default().to_owned();
        Some(Self {
            stops,
            before: window.len(),
            window,
            longest,
        })
    }

    /// How many bytes of `piece` still belong to the answer, if it ends it.
    pub(super) fn end(&mut self, piece: &str) -> Option<usize> {
        let seen = self.window.len();
        self.window.push_str(piece);
        let found = self.stops.stops.iter().filter_map(|stop| {
            self.window
                .match_indices(stop.as_str())
                .map(|(start, _)| (start, start + stop.len()))
                .find(|(start, end)| *start < self.before && *end > seen)
        });
        let (start, end) = found.min()?;
        let end = if self.stops.kept { end } else { start };
        Some(end.saturating_sub(seen))
    }

    /// Nothing that comes can begin before the join any more.
    pub(super) fn is_past(&self) -> bool {
        self.window.len() - self.before >= self.longest
    }
}
