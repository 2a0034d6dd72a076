//! What a hub that refuses or is silent comes to.

use super::*;

#[test]
fn refusals_say_what_to_do() {
    let case = Case::new();
    for prefix in ["/api", "/org", "/cdn"] {
        case.set(|state| state.status = Some((prefix, 403)));
        case.assert_fails("access denied (status 403)");
        case.set(|state| state.status = Some((prefix, 404)));
        case.assert_fails("does not exist");
    }
    case.set(|state| state.status = Some(("/api", 503)));
    case.assert_fails("status 503; org/tiny is not complete in the cache");
    case.set(|state| state.status = Some(("/cdn", 503)));
    case.assert_fails("after 5 tries without progress: status 503");
    case.set(|state| state.status = Some(("/cdn", 200)));
    case.assert_fails("after 5 tries without progress: the connection closed after 0 bytes");
    case.set(|state| state.status = Some(("/cdn", 206)));
    case.assert_fails("gives no useful answer: a part of unknown place");
    case.set(|state| state.status = None);
    #[cfg(target_os = "linux")]
    {
        std::os::unix::fs::symlink("/dev/full", case.part()).unwrap();
        case.assert_fails(".part: No space left on device");
    }
    case.set(|state| drop(state.files.remove("model_index.json")));
    case.assert_fails("org/tiny is not a pipeline: it has no model_index.json");
    for repo in ["", "a/b/c", "../a", "a//b", "a b", "a\\b"] {
        assert!(matches!(case.hub.fetch_observed(Wanted { id: repo, ..TINY }, &mut ()), Err(HubError::RepoId(_))));
    }
}

#[test]
fn refusals_name_the_way_in() {
    let mut case = Case::new();
    let page = format!("{}/org/tiny", case.hub.settings.endpoint);
    case.set(|state| (state.status, state.header) = (Some(("/api", 401)), "X-Error-Code: GatedRepo\r\n"));
    case.assert_fails(&format!(
        "it is gated: ask for access at {page}; then give a token: HF_TOKEN=.., or `hf auth login`"
    ));
    case.hub.settings.token = Some("t".into());
    case.assert_fails("the token that was sent must be of an account with access");
    case.set(|state| (state.status, state.header) = (Some(("/api", 404)), "X-Error-Code: RevisionNotFound\r\n"));
    case.assert_fails("/api/models/org/tiny/revision/main does not exist: the repository has no revision \"main\"");
    // The hub names a time: a short one is waited for, a long one told.
    case.set(|state| (state.status, state.header) = (Some(("/", 429)), "Retry-After: 3600\r\n"));
    case.assert_fails("too many requests (status 429); try again in 3600 s, or with a token in HF_TOKEN");
    case.set(|state| state.header = "ratelimit: \"api\";r=0;t=120\r\n");
    case.assert_fails("try again in 120 s");
    case.set(|state| (state.header, state.times) = ("Retry-After: 1\r\n", Some(1)));
    let mut log = Log(Vec::new(), 0, u64::MAX);
    let start = Instant::now();
    case.hub.fetch_observed(TINY, &mut log).unwrap();
    assert!(log.0[0].contains("too many requests (status 429), waiting for 1 s; trying again"), "{:?}", log.0);
    assert!(start.elapsed() > Duration::from_secs(1));
    // All is there: a hub that refuses is no obstacle.
    case.set(|state| (state.status, state.times) = (Some(("/", 401)), None));
    let mut log = Log(Vec::new(), 0, u64::MAX);
    case.hub.fetch_observed(TINY, &mut log).unwrap();
    assert!(log.0[0].contains("access denied") && log.0[0].ends_with("using the copy in the cache"), "{:?}", log.0);
}

#[test]
fn a_token_goes_to_the_hub_alone() {
    let mut case = Case::new();
    case.hub.settings.token = Some("secret".into());
    case.fetch().unwrap();
    let tokens = std::mem::take(&mut case.state.lock().unwrap().tokens);
    assert!(tokens.iter().any(|(path, token)| path.starts_with("/api/") && token == "bearer secret"));
    assert!(tokens.iter().any(|(path, _)| path.contains(LARGE)), "{tokens:?}");
    assert!(!tokens.iter().any(|(path, _)| path.starts_with("/cdn/")), "{tokens:?}");
}

#[test]
fn a_silent_hub_is_told_within_its_timeout() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut case = Case::new();
    case.hub.settings.endpoint = format!("http://{}", listener.local_addr().unwrap());
    case.hub.settings.answer_timeout = Duration::from_millis(300);
    let start = Instant::now();
    case.assert_fails("cannot be reached: timeout");
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
}

#[test]
fn the_space_is_checked_before() {
    let case = Case::new();
    case.set(|state| state.claims = Some(1 << 60));
    case.assert_fails("more bytes in ");
    // Configurations are small, and needed to know what is large.
    assert!(!case.state.lock().unwrap().log.iter().any(|asked| asked.contains("safetensors ")));
}
