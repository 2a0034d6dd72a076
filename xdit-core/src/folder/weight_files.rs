//! The names under which diffusers and transformers save weights.

use std::collections::BTreeSet;

/// Which files hold a component's weights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightFiles {
    /// The checkpoint, or the index that names its shards.
    pub file: String,
    /// Whether `file` is an index.
    pub sharded: bool,
    /// The variant that this is.
    pub variant: Option<String>,
}

/// How one library saves weights.
struct Convention {
    /// The files' name without suffix.
    base: &'static str,
    /// Whether shards are preferred to a single file.
    index_first: bool,
}

/// <https://github.com/huggingface/diffusers/blob/v0.42.1/src/diffusers/models/modeling_utils.py#L1286>
const DIFFUSERS: Convention = Convention { base: "diffusion_pytorch_model", index_first: true };
/// <https://github.com/huggingface/transformers/blob/v5.23.0/src/transformers/modeling_utils.py#L591>
const TRANSFORMERS: Convention = Convention { base: "model", index_first: false };

/// A class that is neither diffusers' nor transformers' lives in some pipeline's own module and is saved the way its
/// base class is.
fn conventions(library: &str) -> &'static [Convention] {
    match library {
        "diffusers" => &[DIFFUSERS],
        "transformers" => &[TRANSFORMERS],
        _ => &[TRANSFORMERS, DIFFUSERS],
    }
}

impl WeightFiles {
    /// The weights of one component in all forms that it has them in, the preferred one first; given the component's
    /// library and a test for the files of its folder.
    ///
    /// With a `variant` these are its files, or the plain ones if there are none. Without one these are the plain
    /// ones, or else those of `bf16`, or of `fp16`. Where a single file and shards are both there, diffusers takes
    /// the shards and transformers the single file.
    ///
    /// # Errors
    ///
    /// Gives the names that it has looked for.
    pub fn find(library: &str, variant: Option<&str>, exists: impl Fn(&str) -> bool) -> Result<Vec<Self>, Vec<String>> {
        let variants = match variant {
            Some(variant) => [Some(variant), None, None],
            None => [None, Some("bf16"), Some("fp16")],
        };
        let mut looked_for = Vec::new();
        for convention in conventions(library) {
            for variant in variants {
                let all = convention.names(variant);
                let found: Vec<_> = all.iter().filter(|set| exists(&set.file)).cloned().collect();
                if !found.is_empty() {
                    return Ok(found);
                }
                for set in all {
                    if !looked_for.contains(&set.file) {
                        looked_for.push(set.file);
                    }
                }
            }
        }
        Err(looked_for)
    }

    /// The first of these that `open` accepts, and what is wrong with those before it.
    ///
    /// # Errors
    ///
    /// If it accepts none: what is wrong with the first.
    pub fn first_good<T, E>(sets: &[Self], open: impl Fn(&Self) -> Result<T, E>) -> Result<(T, Vec<E>), E> {
        let mut refused = Vec::new();
        for set in sets {
            match open(set) {
                Ok(good) => return Ok((good, refused)),
                Err(error) => refused.push(error),
            }
        }
        Err(refused.into_iter().next().expect("at least one was found"))
    }
}

impl Convention {
    /// The files that `variant` may be in, the preferred one first.
    fn names(&self, variant: Option<&str>) -> Vec<WeightFiles> {
        let base = self.base;
        let (single, indexes) = match variant {
            None => (format!("{base}.safetensors"), vec![format!("{base}.safetensors.index.json")]),
            Some(variant) => (
                format!("{base}.{variant}.safetensors"),
                vec![
                    format!("{base}.safetensors.index.{variant}.json"),
                    // As diffusers wrote it before 0.24.
                    format!("{base}.safetensors.{variant}.index.json"),
                    format!("{base}.{variant}.safetensors.index.json"),
                ],
            ),
        };
        let of = |sharded| move |file| WeightFiles { file, sharded, variant: variant.map(String::from) };
        let mut all: Vec<_> = indexes.into_iter().map(of(true)).collect();
        all.insert(if self.index_first { all.len() } else { 0 }, of(false)(single));
        all
    }
}

/// The variants that a component's folder has weights of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Variants {
    /// Whether there are plain files.
    pub plain: bool,
    /// The others, by name.
    pub named: BTreeSet<String>,
}

impl Variants {
    /// Those in the files `names` of a component of `library`.
    pub fn of<'a>(library: &str, names: impl IntoIterator<Item = &'a str>) -> Self {
        let mut variants = Self::default();
        for name in names {
            for convention in conventions(library) {
                match variant_of(convention.base, name) {
                    Some(None) => variants.plain = true,
                    Some(Some(variant)) => {
                        variants.named.insert(variant.into());
                    }
                    None => {}
                }
            }
        }
        variants
    }

    /// The names of the components in `all` whose weights lack `variant`, which some have. Those without any weights
    /// are passed over.
    ///
    /// # Errors
    ///
    /// If none has it: the variants that there are, quoted, and words for plain files.
    pub fn lacking(all: &[(String, Self)], variant: &str) -> Result<Vec<String>, Vec<String>> {
        let with_weights = || all.iter().filter(|(_, variants)| variants.plain || !variants.named.is_empty());
        if !with_weights().any(|(_, variants)| variants.named.contains(variant)) {
            let named: BTreeSet<_> = all.iter().flat_map(|(_, variants)| &variants.named).collect();
            let plain = all.iter().any(|(_, variants)| variants.plain).then(|| "plain files without a variant".into());
            return Err(named.into_iter().map(|name| format!("{name:?}")).chain(plain).collect());
        }
        let lacking = with_weights().filter(|(_, variants)| !variants.named.contains(variant));
        Ok(lacking.map(|(name, _)| name.clone()).collect())
    }
}

/// The variant of the weights in the file `name`, if that is one: `Some(None)` for plain ones.
fn variant_of<'a>(base: &str, name: &'a str) -> Option<Option<&'a str>> {
    let rest = name.strip_prefix(base)?;
    // indexes: `.safetensors.index[.fp16].json`, `.safetensors.fp16.index.json`, `.fp16.safetensors.index.json`
    if let Some(rest) = rest.strip_suffix(".json") {
        let words: Vec<_> = rest.strip_prefix('.')?.split('.').collect();
        return match words[..] {
            ["safetensors", "index"] => Some(None),
            ["safetensors", "index", variant]
            | ["safetensors", variant, "index"]
            | [variant, "safetensors", "index"] => Some(Some(variant)),
            _ => None,
        };
    }
    // `[.fp16][-00001-of-00002].safetensors`, and of old `-00001-of-00002.fp16.safetensors`
    let rest = without_shard(rest.strip_suffix(".safetensors")?);
    match rest.strip_prefix('.') {
        None => rest.is_empty().then_some(None),
        Some(variant) => Some(Some(without_shard(variant))),
    }
}

/// `name` without a number of a shard at its start or end.
fn without_shard(name: &str) -> &str {
    let is_shard = |part: &str| {
        let b = part.as_bytes();
        b.len() == 15
            && b[0] == b'-'
            && &b[6..10] == b"-of-"
            && [&b[1..6], &b[10..]].concat().iter().all(u8::is_ascii_digit)
    };
    if let Some((rest, _)) =
        name.len().checked_sub(15).and_then(|at| name.split_at_checked(at)).filter(|p| is_shard(p.1))
    {
        return rest;
    }
    name.split_at_checked(15).filter(|p| is_shard(p.0)).map_or(name, |(_, rest)| rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(library: &str, variant: Option<&str>, there: &[&str]) -> String {
        let found = WeightFiles::find(library, variant, |name| there.contains(&name)).unwrap();
        found.iter().map(|set| set.file.as_str()).collect::<Vec<_>>().join(" ")
    }

    /// As measured with diffusers 0.42.1 and transformers 5.23.0.
    #[test]
    fn each_library_has_its_own_preference() {
        let there = ["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.safetensors.index.json"];
        assert_eq!(files("diffusers", None, &there), format!("{} {}", there[1], there[0]));
        let there = ["model.safetensors", "model.safetensors.index.json"];
        assert_eq!(files("transformers", None, &there), there.join(" "));
        assert_eq!(files("stable_diffusion", None, &there), there.join(" "));
        let there = ["model.safetensors", "model.fp16.safetensors", "model.safetensors.index.fp16.json"];
        assert_eq!(files("transformers", Some("fp16"), &there), there[1..].join(" "));
        assert_eq!(files("transformers", Some("ema"), &there), there[0]);
    }

    #[test]
    fn variants_are_read_off_the_names() {
        let of = |name: &str| {
            let Variants { plain, named } = Variants::of("transformers", [name]);
            (plain, named.into_iter().collect::<Vec<_>>().join(" "))
        };
        for plain in ["model.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json"] {
            assert_eq!(of(plain), (true, String::new()), "{plain}");
        }
        for fp16 in [
            "model.fp16.safetensors",
            "model.fp16-00001-of-00002.safetensors",
            "model-00001-of-00002.fp16.safetensors",
            "model.safetensors.index.fp16.json",
            "model.safetensors.fp16.index.json",
            "model.fp16.safetensors.index.json",
        ] {
            assert_eq!(of(fp16), (false, "fp16".into()), "{fp16}");
        }
        for other in ["model.fp16.bin", "config.json", "model", "modelx.safetensors", "model_é.safetensors", "LICENSE"]
        {
            assert_eq!(of(other), (false, String::new()), "{other}");
        }
    }
}
