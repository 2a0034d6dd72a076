//! What is fetched, continued and kept.

use super::*;

#[test]
fn takes_what_a_pipeline_needs_once() {
    let case = Case::new();
    let mut log = Log(Vec::new(), 0, u64::MAX);
    let dir = case.hub.fetch_observed(TINY, &mut log).unwrap();
    assert!(log.0[0].starts_with("download org/tiny 700"), "{:?}", log.0);
    assert_eq!(log.0[0].rsplit(' ').next(), log.0[1].rsplit(' ').next());
    let asked = std::mem::take(&mut case.state.lock().unwrap().log).join(" ");
    let files = "model_index.json 0- text_encoder/model.safetensors.index.json 0- xdit.json 0- \
        text_encoder/config.json 0- text_encoder/model-00001-of-00001.safetensors 0- tokenizer/vocab.json 0- \
        transformer/config.json 0- transformer/diffusion_pytorch_model.safetensors 0-";
    assert_eq!(asked, files);
    // Again, and at a later commit with the same contents: nothing is asked for.
    assert_eq!(case.fetch().unwrap(), dir);
    case.set(|state| state.commit = COMMIT.replace('0', "9"));
    assert!(cfg!(not(unix)) || case.assert_fetches().is_empty());
    let dir = case.hub.fetch_observed(Wanted { variant: Some("fp16"), ..TINY }, &mut ()).unwrap();
    assert!(dir.join(LARGE.replace(".safe", ".fp16.safe")).exists());
}

#[test]
fn a_cut_connection_is_taken_up_where_it_ended() {
    let case = Case::new();
    case.set(|state| state.cuts = vec![200_000; 3]);
    assert_eq!(case.assert_fetches(), ["0-", "200000-", "400000-", "600000-"]);
    let case = Case::new();
    case.set(|state| state.cuts = vec![0; 9]);
    case.assert_fails("bytes after 5 tries without progress");
    // A silent one, by this call or the next.
    let mut case = Case::new();
    case.hub.settings.read_timeout = Duration::from_millis(400);
    case.set(|state| (state.cuts, state.stalls) = (vec![200_000], true));
    assert_eq!(case.assert_fetches(), ["0-", "200000-"]);
    let case = Case::new();
    case.set(|state| (state.cuts, state.stalls) = (vec![200_000], true));
    let stopped = case.hub.fetch_observed(TINY, &mut Log(Vec::new(), 0, 200_000));
    assert!(matches!(stopped, Err(HubError::Cancelled)));
    assert_eq!(case.assert_fetches(), ["0-", "200000-"]);
}

#[test]
fn partial_files_that_are_none_are_no_obstacle() {
    let case = Case::new();
    for more in [0, 1] {
        fs::write(case.part(), vec![0; checkpoint(700_000).len() + more]).unwrap();
        assert_eq!(case.assert_fetches(), ["0-"]);
        fs::remove_file(case.part().with_extension("")).unwrap();
    }
    // A server that sends the whole instead of the rest.
    case.set(|state| (state.cuts, state.ignores_range) = (vec![200_000], true));
    assert_eq!(case.assert_fetches(), ["0-", "200000-"]);
}

#[test]
fn nothing_becomes_visible_that_has_another_hash() {
    let case = Case::new();
    let mut bad = checkpoint(700_000);
    *bad.last_mut().unwrap() ^= 1;
    case.set(|state| state.other = Some(bad.clone()));
    case.assert_fails(&format!("{LARGE}: what came has the hash {}, the hub lists ", id(LARGE, &bad)));
    let cache = case.dir.path().join("hub/models--org--tiny");
    assert!(!case.part().exists() && !case.part().with_extension("").exists());
    assert!(!cache.join("snapshots").join(COMMIT).join(LARGE).exists() && !cache.join("refs/main").exists());
    // A part of something else, from an earlier call: fetched anew.
    case.set(|state| state.other = None);
    fs::write(case.part(), vec![7; 1000]).unwrap();
    assert_eq!(case.assert_fetches(), ["0-", "0-", "1000-", "0-"]);
}

#[test]
fn offline_takes_the_cache_or_says_what_is_missing() {
    let mut case = Case::new();
    case.hub.settings.offline = true;
    let folder = format!("{}/hub/models--org--tiny/snapshots/", case.dir.path().display());
    case.assert_fails(&format!("{folder}: no model_index.json of main"));
    case.hub.settings.offline = false;
    let dir = case.fetch().unwrap();
    // Nothing may be asked for from here on.
    case.hub.settings.endpoint = "http://127.0.0.1:1".into();
    case.hub.settings.offline = true;
    assert_eq!(case.fetch().unwrap(), dir);
    assert_eq!(case.hub.fetch_observed(Wanted { revision: Some(COMMIT), ..TINY }, &mut ()).unwrap(), dir);
    // Nobody listens: the same, with a word about it.
    case.hub.settings.offline = false;
    let mut log = Log(Vec::new(), 0, u64::MAX);
    assert_eq!(case.hub.fetch_observed(TINY, &mut log).unwrap(), dir);
    assert!(log.0.len() == 1 && log.0[0].ends_with("using the copy in the cache"), "{:?}", log.0);
    fs::remove_file(dir.join(SHARD)).unwrap();
    fs::remove_file(dir.join("transformer/config.json")).unwrap();
    let missing = format!("no {SHARD}, transformer/config.json");
    case.assert_fails(&missing);
    case.assert_fails("http://127.0.0.1:1/api/models/org/tiny/revision/main cannot be reached: ");
    case.hub.settings.offline = true;
    case.assert_fails(&missing);
}

#[test]
fn headers_alone_are_enough_to_tell_what_is_there() {
    let mut case = Case::new();
    case.set(|state| drop(state.files.insert(LARGE.into(), checkpoint(9_000_000))));
    let headers = case.hub.fetch_headers(TINY, &mut ()).unwrap();
    assert!(matches!(headers, Headers::Temporary(_)));
    let folder = PipelineFolder::open(Source::Dir(headers.path().into())).unwrap();
    assert_eq!(folder.weights("transformer", None).unwrap().n_bytes(), 9_000_000);
    assert_eq!(folder.weights("text_encoder", None).unwrap().n_bytes(), 9);
    assert!(case.state.lock().unwrap().sent < 1_000_000);
    let dir = headers.path().to_path_buf();
    drop(headers);
    assert!(!dir.exists());
    // A header that is longer than what is asked for first.
    case.set(|state| {
        let file = checkpoint(9);
        let len = u64::from_le_bytes(*file.first_chunk().unwrap()) as usize;
        let spaces = 2 << 20;
        let header = [((len + spaces) as u64).to_le_bytes().to_vec(), file[8..8 + len].to_vec(), vec![b' '; spaces]];
        state.files.insert(LARGE.into(), [header.concat(), file[8 + len..].to_vec()].concat());
    });
    let headers = case.hub.fetch_headers(TINY, &mut ()).unwrap();
    let folder = PipelineFolder::open(Source::Dir(headers.path().into())).unwrap();
    assert_eq!(folder.weights("transformer", None).unwrap().n_bytes(), 9);
    case.fetch().unwrap();
    case.hub.settings.offline = true;
    assert!(matches!(case.hub.fetch_headers(TINY, &mut ()).unwrap(), Headers::Cached(_)));
}
