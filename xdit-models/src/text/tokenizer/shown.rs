//! How texts are shown in messages.

/// The part of `text` that fits a message.
pub fn shown(text: &str) -> String {
    const MOST: usize = 40;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}..", &text[..end]),
        None => text.into(),
    }
}
