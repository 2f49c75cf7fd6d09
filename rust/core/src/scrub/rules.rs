//! What an upstream's answers mean where that is not what they usually do.
use crate::error::Kind;
use crate::snapshot::{ErrorRule, Reason};

use super::said::Said;

/// An upstream's rules, in the order in which they are tried.
#[derive(Clone, Debug, Default)]
pub struct ErrorRules(Box<[Rule]>);

#[derive(Clone, Debug)]
struct Rule {
    status: u16,
    code: Option<String>,
    contains: Option<String>,
    verdict: Verdict,
}

/// What a rule says of an answer that fits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Verdict {
    pub(super) kind: Kind,
    pub(super) retry: Option<bool>,
    pub(super) reason: Option<Reason>,
}

impl ErrorRules {
    /// Fails on a kind that there is none of.
    pub fn compile(rules: &[ErrorRule]) -> Result<Self, String> {
        rules
            .iter()
            .map(|rule| {
                let kind = Kind::from_name(&rule.kind)
                    .ok_or_else(|| format!("errors: no kind is named {:?}", rule.kind))?;
                Ok(Rule {
                    status: rule.status,
                    code: rule.code.clone(),
                    contains: rule.contains.as_deref().map(str::to_lowercase),
                    verdict: Verdict {
                        kind,
                        retry: rule.retry,
                        reason: rule.reason,
                    },
                })
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// What the first rule says that fits.
    pub(super) fn find(&self, status: u16, said: &Said<'_>) -> Option<Verdict> {
        self.0
            .iter()
            .filter(|rule| rule.status == status)
            .find(|rule| {
                let code = rule.code.as_deref();
                let words = rule.contains.as_deref();
                code.is_none_or(|code| said.has_code(code))
                    && words.is_none_or(|words| said.body().contains(words))
            })
            .map(|rule| rule.verdict)
    }
}
