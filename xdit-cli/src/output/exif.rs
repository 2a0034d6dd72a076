//! EXIF for JPEG and WebP: the comment in which other programs keep and look for a picture's settings.

use crate::output::texts::{SOFTWARE, Texts};

/// Longest comment in UTF-16 units: a segment of a JPEG file has 64 KiB.
const MOST_UNITS: usize = 32_000;

const SHORT_HEADER: [u8; 8] = *b"MM\0\x2a\0\0\0\x08";
const ASCII: u16 = 2;
const LONG: u16 = 4;
const UNDEFINED: u16 = 7;

/// A TIFF file (big-endian, as `MM` says) of two directories, the second with `UserComment`, and no picture.
pub fn exif(texts: &Texts) -> Vec<u8> {
    let software = format!("{SOFTWARE}\0").into_bytes();
    let comment: Vec<u8> = [b"UNICODE\0".to_vec(), utf_16(&texts.parameters)].concat();
    // a directory is a count, entries of 12 bytes and the offset of the next one
    let (first, second) = (8, 8 + 2 + 2 * 12 + 4);
    let software_at = second + 2 + 12 + 4;
    let comment_at = software_at + software.len();
    debug_assert_eq!(SHORT_HEADER.len(), first);
    [
        &SHORT_HEADER[..],
        &directory(&[(0x0131, ASCII, software.len(), software_at), (0x8769, LONG, 1, second)]),
        &directory(&[(0x9286, UNDEFINED, comment.len(), comment_at)]),
        &software,
        &comment,
    ]
    .concat()
}

/// Entries are tag, type, count, and where the value lies or what it is.
fn directory(entries: &[(u16, u16, usize, usize)]) -> Vec<u8> {
    let mut bytes = (entries.len() as u16).to_be_bytes().to_vec();
    for (tag, kind, count, value) in entries {
        bytes.extend(tag.to_be_bytes());
        bytes.extend(kind.to_be_bytes());
        bytes.extend((*count as u32).to_be_bytes());
        bytes.extend((*value as u32).to_be_bytes());
    }
    bytes.extend(0_u32.to_be_bytes());
    bytes
}

/// Of what is too long the settings, which stand in the last line, stay whole.
fn utf_16(text: &str) -> Vec<u8> {
    let (prompt, settings) = text.rsplit_once('\n').unwrap_or((text, ""));
    let settings: Vec<u16> = format!("\n{settings}").encode_utf16().collect();
    let mut units: Vec<u16> = prompt.encode_utf16().collect();
    units.truncate(MOST_UNITS.saturating_sub(settings.len()));
    units.into_iter().chain(settings).flat_map(u16::to_be_bytes).collect()
}
