//! Prompts from files, and words that were meant to be one prompt.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use anyhow::{Context, Result, bail};

/// Beyond this a file is something else than prompts.
const MOST_BYTES: u64 = 16 << 20;

/// One prompt a line; `-` is standard input. Blank lines are passed over, a byte order mark and CRLF are taken.
///
/// # Errors
/// A file that cannot be read, is too large, is not UTF-8 or holds no prompt.
pub fn read(path: &Path) -> Result<Vec<String>> {
    let is_stdin = path == Path::new("-");
    let name = if is_stdin { "standard input".into() } else { path.display().to_string() };
    let failed = || format!("cannot read prompts from {name}");
    let source: Box<dyn Read> = match is_stdin {
        true => Box::new(io::stdin().lock()),
        false => Box::new(File::open(path).with_context(failed)?),
    };
    let mut bytes = Vec::new();
    source.take(MOST_BYTES + 1).read_to_end(&mut bytes).with_context(failed)?;
    if bytes.len() as u64 > MOST_BYTES {
        bail!("{}: more than {} MiB", failed(), MOST_BYTES >> 20);
    }
    let prompts = lines(&bytes).with_context(failed)?;
    if prompts.is_empty() {
        bail!("{}: there is none", failed());
    }
    Ok(prompts)
}

fn lines(bytes: &[u8]) -> Result<Vec<String>> {
    let bytes = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(bytes);
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            let line = 1 + bytes[..error.valid_up_to()].iter().filter(|byte| **byte == b'\n').count();
            bail!("line {line} is not UTF-8")
        }
    };
    Ok(text.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned).collect())
}

/// Says that the values of one flag look like the words of one prompt.
///
/// - `occurrences`: the values that stand behind each `--prompt`
pub fn unquoted<'a>(
    flag: &str,
    mut occurrences: impl Iterator<Item = impl Iterator<Item = &'a String>>,
) -> Option<String> {
    let words: Vec<&str> = occurrences.find_map(|values| {
        let values: Vec<_> = values.map(String::as_str).collect();
        (values.iter().filter(|value| is_word(value)).count() > 1).then_some(values)
    })?;
    let (n, flag) = (words.len(), flag.replace('_', "-"));
    let mut text = words.join(" ");
    if let Some((end, _)) = text.char_indices().nth(60) {
        text.replace_range(end.., "...");
    }
    Some(format!(
        "--{flag} was given {n} texts, some of one word; if they are one, it needs quotes: --{flag} \"{text}\"; if not, \
         give --{flag} before each"
    ))
}

/// From Thai on, scripts are written without spaces, so that a prompt may well look like a word.
fn is_word(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| !c.is_whitespace() && c < '\u{e00}')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notice(occurrences: &[&[&str]]) -> Option<String> {
        let owned: Vec<Vec<String>> =
            occurrences.iter().map(|values| values.iter().map(|&v| v.into()).collect()).collect();
        unquoted("negative_prompt", owned.iter().map(|values| values.iter()))
    }

    #[test]
    fn words_behind_one_flag_are_noticed() {
        let said = notice(&[&["a", "red", "cat"]]).expect("a notice");
        assert!(said.contains("3 texts") && said.contains("--negative-prompt \"a red cat\""), "{said}");
        assert!(notice(&[&["'a", "red", "cat'"]]).is_some(), "quotes of another shell");
        assert!(notice(&[&["x y"], &["красный", "кот"]]).is_some());
        let long = notice(&[&["word"; 1000]]).expect("a notice");
        assert!(long.len() < 250, "{long}");
    }

    #[test]
    fn prompts_are_not() {
        assert_eq!(notice(&[&["cat"]]), None);
        assert_eq!(notice(&[&["cat"], &["dog"]]), None, "each has its flag");
        assert_eq!(notice(&[&["a red cat", "a dog", "tree"]]), None);
        assert_eq!(notice(&[&["一只红色的猫", "一只狗"]]), None);
    }

    #[test]
    fn files_as_people_have_them() {
        assert_eq!(lines(b"\xef\xbb\xbfa cat\r\n\r\n  \na dog").expect("lines"), ["a cat", "a dog"]);
        assert_eq!(lines(b"a\nb\xff").expect_err("not UTF-8").to_string(), "line 2 is not UTF-8");
        assert_eq!(lines(b"").expect("lines"), Vec::<String>::new());
    }
}
