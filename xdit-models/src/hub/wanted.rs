//! What to fetch.

/// A pipeline on the hub, and which of its weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted<'a> {
    /// `"organisation/name"`
    pub id: &'a str,
    /// A branch, a tag or a commit; `main` by default.
    pub revision: Option<&'a str>,
    /// Such as `"fp16"`: its weights are taken, and the plain ones of components that lack it.
    pub variant: Option<&'a str>,
    /// Classes of pipelines that are of use, all if this is empty. Nothing large is fetched of another one.
    pub classes: &'a [&'a str],
}

impl<'a> Wanted<'a> {
    /// The plain weights on the branch `main`, whatever the class.
    pub fn new(id: &'a str) -> Self {
        Self { id, revision: None, variant: None, classes: &[] }
    }

    pub(super) fn revision(&self) -> &'a str {
        self.revision.unwrap_or("main")
    }
}
