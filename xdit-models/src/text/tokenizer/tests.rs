use std::path::Path;

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

use super::*;

/// What transformers 5.23 makes of prompts: `xdit-testing/golden`.
fn golden(rel: &str) -> File {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../xdit-testing/golden").join(rel);
    let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    File { path, bytes }
}

fn file(name: &str, bytes: impl Into<Vec<u8>>) -> File {
    File { path: name.into(), bytes: bytes.into() }
}

fn settings(config: &str) -> Settings {
    Settings::new("tokenizer".into(), Some(&file("tokenizer_config.json", config)), None, None).expect("settings")
}

fn clip(config: &str) -> Tokenizer {
    let (vocab, merges) = (golden("flux-dev/tokenizer/vocab.json"), golden("flux-dev/tokenizer/merges.txt"));
    clip::from_vocab(&vocab, &merges, settings(config)).expect("a tokenizer")
}

fn bert(config: &str) -> Tokenizer {
    bert::from_vocab(&golden("hunyuan-v11/tokenizer/vocab.txt"), settings(config)).expect("a tokenizer")
}

fn t5(config: &str) -> Tokenizer {
    t5::from_spiece(&golden("flux-dev/tokenizer_2/spiece.model"), settings(config)).expect("a tokenizer")
}

#[test]
fn a_long_prompt_keeps_its_end_token_and_tells_what_was_cut() {
    let clip = clip("{}");
    let SpecialIds { bos, eos, pad, .. } = clip.special();
    assert_eq!(pad, eos);
    let whole = clip.encode("a cat on the lazy dog", 77).expect("ids");
    assert_eq!((&whole.cut, whole.mask().iter().sum::<u32>() as usize), (&None, whole.tokens.len()));
    let short = clip.encode("a cat on the lazy dog", 6).expect("ids");
    assert_eq!((short.ids.len(), short.tokens.len()), (6, 6));
    assert_eq!((Some(short.ids[0]), short.ids[5]), (bos, eos));
    assert_eq!(short.ids[..5], whole.ids[..5]);
    let cut = short.cut.expect("cut");
    assert!("a cat on the lazy dog".ends_with(&cut), "{cut:?}");

    let exact = clip.encode("a cat on the lazy dog", whole.tokens.len()).expect("ids");
    assert_eq!((exact.cut, exact.tokens.len()), (None, whole.tokens.len()));
    assert_eq!(clip.encode("a cat", 2).expect("ids").ids, [bos.expect("a start"), eos]);
    assert!(matches!(clip.encode("", 1), Err(TokenizerError::MaxLength { max_length: 1, n_special: 2, .. })));
    assert_eq!(t5("{}").encode("", 1).expect("ids").ids, [1]);
}

#[test]
fn roles_come_from_the_configuration() {
    // Stable Diffusion's second encoder
    let tokenizer = clip(r#"{"pad_token": "!"}"#);
    assert_eq!(tokenizer.special().pad, 0);
    // a role makes a token of its own: "!!" would be one word otherwise
    assert_eq!(tokenizer.encode("!!", 6).expect("ids").ids[1..3], [0, 0]);
    // a token that is nowhere gets the next id
    let next = clip("{}").special().eos + 1;
    assert_eq!(clip(r#"{"pad_token": {"content": "[PAD]", "special": true}}"#).special().pad, next);
    assert_eq!(clip(r#"{"unk_token": null}"#).special().unk, None);
}

/// As upstream: the roles of BERT's ends are others, and a token that is in no vocabulary gets the next id.
#[test]
fn berts_ends_have_roles_of_their_own() {
    let vocab = file("vocab.txt", "[PAD]\ncat\n[UNK]  \n[CLS]\u{3000}\r\n##s\ncat\n");
    let tokenizer = bert::from_vocab(&vocab, settings(r#"{"bos_token": "<s>", "eos_token": "</s>"}"#)).expect("ids");
    // in this order: <s>, </s>, [SEP], [MASK]
    let SpecialIds { bos, eos, pad, unk } = tokenizer.special();
    assert_eq!((bos, eos, pad, unk), (Some(3), 7, 0, Some(2)));
    let ids = tokenizer.encode("<s>cats [MASK] dog", 9).expect("ids").ids;
    assert_eq!(ids, [3, 5, 5, 4, 8, 2, 7, 0, 0]);
}

#[test]
fn a_vocabulary_that_lacks_the_unknown_is_an_error() {
    let tokenizer = bert::from_vocab(&file("vocab.txt", "[PAD]\n[CLS]\n[SEP]\ncat\n"), settings("{}")).expect("built");
    assert_eq!(tokenizer.encode("cat", 4).expect("ids").ids, [1, 3, 2, 0]);
    let error = tokenizer.encode("dog", 4).expect_err("no unknown token").to_string();
    assert!(error.contains("[UNK]"), "{error}");
    let latin = bert::from_vocab(&file("vocab.txt", [b'a', 0xe9]), settings("{}")).expect_err("not UTF-8");
    assert!(latin.to_string().contains("vocab.txt"), "{latin}");
}

/// Old folders write the end token with flags and the padding, which is the same, without; the last one counts.
#[test]
fn of_equal_tokens_with_different_flags_the_last_counts() {
    let (vocab, merges) = (golden("flux-dev/tokenizer/vocab.json"), golden("flux-dev/tokenizer/merges.txt"));
    let build = |map: &str| {
        let map = file("special_tokens_map.json", map);
        let settings = Settings::new("tokenizer".into(), None, Some(&map), None).expect("settings");
        let tokenizer = clip::from_vocab(&vocab, &merges, settings).expect("a tokenizer");
        let upper = tokenizer.encode("<|ENDOFTEXT|>", 77).expect("ids");
        upper.tokens.len() == 3
    };
    let full = r#"{"content": "<|endoftext|>", "normalized": true}"#;
    assert!(build(&format!(r#"{{"eos_token": {full}, "unk_token": {full}, "pad_token": {full}}}"#)));
    assert!(!build(&format!(r#"{{"eos_token": {full}, "unk_token": {full}, "pad_token": "<|endoftext|>"}}"#)));
}

#[test]
fn reserved_tokens_follow_the_pieces_backwards() {
    let t5 = t5(r#"{"extra_ids": 3}"#);
    let ids = t5.encode("<extra_id_2><extra_id_0>", 3).expect("ids").ids;
    assert_eq!(ids[0] + 2, ids[1]);
    let many = t5::from_spiece(&golden("flux-dev/tokenizer_2/spiece.model"), settings(r#"{"extra_ids": 4000000000}"#));
    assert!(matches!(many, Err(TokenizerError::ExtraIds { extra_ids: 4_000_000_000, .. })));
}

/// mT5's own reserved tokens stay what they are if the configuration asks for more.
#[test]
fn reserved_tokens_may_be_pieces() {
    let spiece = golden("hunyuan-v11/tokenizer_2/spiece.model");
    for config in [r#"{"extra_ids": 0}"#, r#"{"extra_ids": 10}"#] {
        let mt5 = t5::from_spiece(&spiece, settings(config)).expect("a tokenizer");
        let ids = mt5.encode("<extra_id_9><extra_id_0>", 20).expect("ids").ids;
        let own = mt5.encode("<extra_id_0> <extra_id_9>", 4).expect("ids");
        assert_eq!((own.ids[0], own.ids[2]), (own.ids[1] + 9, 1));
        assert_eq!(ids[0], own.ids[1]);
        // only the first stands at the start of a word
        assert_ne!(ids[1], own.ids[0]);
    }
}

#[test]
fn a_merge_that_does_not_fit_is_an_error_that_names_it() {
    let vocab = golden("flux-dev/tokenizer/vocab.json");
    for (merges, number) in
        [("a b c\n", 1), ("#version: 0.2\na t\nb\n", 2), ("a t\n\n", 2), ("photo</w> photo</w>\n", 1)]
    {
        match clip::from_vocab(&vocab, &file("merges.txt", merges), settings("{}")) {
            Err(TokenizerError::Merge { path, number: found, .. }) => {
                assert_eq!((path.to_str(), found), (Some("merges.txt"), number), "{merges:?}");
            }
            other => panic!("{merges:?}: {:?}", other.map(|_| ())),
        }
    }
    let huge = file("vocab.json", r#"{"a": 4294967295}"#);
    let error = clip::from_vocab(&huge, &file("merges.txt", ""), settings("{}")).expect_err("an id beyond any table");
    assert_eq!(error.to_string(), r#"vocab.json: token "a" has the id 4294967295, beyond 16777216"#);
}

/// Offset, in a `spiece.model`, of the map of characters.
fn charsmap_at(bytes: &[u8]) -> usize {
    let model = Spiece::parse(bytes).expect("a model");
    model.charsmap.as_ptr() as usize - bytes.as_ptr() as usize
}

use super::spiece::Spiece;

#[test]
fn a_map_of_characters_that_leads_astray_is_an_error() {
    let whole = golden("flux-dev/tokenizer_2/spiece.model");
    let at = charsmap_at(&whole.bytes);
    let with = |offset: usize, word: u32| {
        let mut bytes = whole.bytes.clone();
        bytes[at + offset..at + offset + 4].copy_from_slice(&word.to_le_bytes());
        let error = t5::from_spiece(&file("spiece.model", bytes), settings("{}")).expect_err("a broken map");
        match error {
            TokenizerError::Charsmap { source, .. } => source,
            other => panic!("{other}"),
        }
    };
    // 8 GiB if it were believed
    assert!(matches!(with(0, 0xffff_fffc), CharsmapError::Length { trie: 0xffff_fffc, .. }));
    assert!(matches!(with(4, 0x7fff_fe00), CharsmapError::Unit { unit: 0, .. }));
}

#[test]
fn base64_is_read() {
    for (text, bytes) in [("", ""), ("Zg==", "f"), ("Zm8=", "fo"), ("Zm9v", "foo"), ("Zm9vYg==", "foob"), ("+/+/", "")]
    {
        let got = charsmap::from_base64(text).expect("base64");
        assert!(got == bytes.as_bytes() || text == "+/+/" && got == [0xfb, 0xff, 0xbf], "{text}: {got:?}");
    }
    assert_eq!(charsmap::from_base64("Zm9*"), Err(CharsmapError::Base64 { at: 3 }));
}

/// A copy with some bytes changed, or cut off, or a piece taken out.
fn mutated(bytes: &[u8], changes: &[(prop::sample::Index, u8)], cut: Option<prop::sample::Index>) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for (at, value) in changes {
        let at = at.index(bytes.len());
        bytes[at] = *value;
    }
    if let Some(cut) = cut {
        bytes.truncate(cut.index(bytes.len()));
    }
    bytes
}

fn usable_or_refused(tokenizer: Result<Tokenizer, TokenizerError>, name: &str) -> Result<(), TestCaseError> {
    match tokenizer {
        Ok(tokenizer) => {
            for prompt in ["a photo of a red cat", "Ünï½ 一猫 🐈\u{301}\u{0}\t </s> <|endoftext|>"] {
                // an unknown token that is in no vocabulary shows here at the earliest
                if let Ok(encoded) = tokenizer.encode(prompt, 5) {
                    prop_assert_eq!(encoded.ids.len(), 5);
                }
            }
        }
        Err(error) => {
            let message = error.to_string();
            prop_assert!(message.contains(name) && !message.contains('\n'), "{}", message);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn a_broken_spiece_is_one_error(
        changes in prop::collection::vec(any::<(prop::sample::Index, u8)>(), 0..4),
        // the pieces and the head of the map, where most is at stake
        early in prop::collection::vec((0usize..8192, any::<u8>()), 0..4),
        cut in prop::option::weighted(0.2, any::<prop::sample::Index>()),
    ) {
        let mut bytes = mutated(&golden("flux-dev/tokenizer_2/spiece.model").bytes, &changes, cut);
        for (at, value) in early {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        }
        usable_or_refused(t5::from_spiece(&file("spiece.model", bytes), settings("{}")), "spiece.model")?;
    }

    #[test]
    fn a_broken_vocabulary_is_one_error(
        changes in prop::collection::vec(any::<(prop::sample::Index, u8)>(), 0..3),
        cut in prop::option::weighted(0.2, any::<prop::sample::Index>()),
        of_merges in any::<bool>(),
    ) {
        let mut vocab = golden("flux-dev/tokenizer/vocab.json");
        let mut merges = golden("flux-dev/tokenizer/merges.txt");
        let (broken, name) = if of_merges { (&mut merges, "merges.txt") } else { (&mut vocab, "vocab.json") };
        broken.bytes = mutated(&broken.bytes, &changes, cut);
        // a token that the vocabulary has lost shows at a merge
        let tokenizer = clip::from_vocab(&vocab, &merges, settings("{}"));
        usable_or_refused(tokenizer, if of_merges { name } else { "tokenizer/" })?;
    }

    #[test]
    fn a_broken_tokenizer_json_is_one_error(
        changes in prop::collection::vec(any::<(prop::sample::Index, u8)>(), 0..3),
        cut in prop::option::weighted(0.2, any::<prop::sample::Index>()),
        of in 0usize..3,
    ) {
        let (of, build): (_, fn(&File, Settings) -> _) = [
            ("flux-schnell/tokenizer_2", t5::from_json as _),
            ("flux-schnell/tokenizer", clip::from_json as _),
            ("hunyuan-v12/tokenizer", bert::from_json as _),
        ][of];
        let mut whole = golden(&format!("{of}/tokenizer.json"));
        whole.bytes = mutated(&whole.bytes, &changes, cut);
        usable_or_refused(build(&whole, settings("{}")), "tokenizer.json")?;
    }

    #[test]
    fn a_broken_list_of_pieces_is_one_error(
        changes in prop::collection::vec(any::<(prop::sample::Index, u8)>(), 0..8),
        cut in prop::option::weighted(0.5, any::<prop::sample::Index>()),
    ) {
        let mut vocab = golden("hunyuan-v11/tokenizer/vocab.txt");
        vocab.bytes = mutated(&vocab.bytes, &changes, cut);
        usable_or_refused(bert::from_vocab(&vocab, settings("{}")), "vocab.txt")?;
    }

    #[test]
    fn random_bytes_are_no_spiece(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        usable_or_refused(t5::from_spiece(&file("spiece.model", bytes), settings("{}")), "spiece.model")?;
    }

    #[test]
    fn any_prompt_has_its_length(prompt in any::<String>(), max_length in 2usize..40) {
        for tokenizer in [bert("{}"), clip("{}"), t5("{}")] {
            let encoded = tokenizer.encode(&prompt, max_length).expect("ids");
            prop_assert_eq!(encoded.ids.len(), max_length);
        }
    }
}
