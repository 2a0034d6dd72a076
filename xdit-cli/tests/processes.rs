//! One process per rank, started by mpirun: the files of ranks that are threads, and one error whoever fails.
//! `.ci/mpi_tests` runs these.
#![cfg(feature = "mpi")]

mod common;

use std::fs;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use common::{CAPTION, command, decode, golden};
use tempfile::TempDir;

/// What a launcher's script may do to look like torchrun: what Open MPI says, in torchrun's words.
const AS_TORCHRUN: &str = "RANK=$OMPI_COMM_WORLD_RANK WORLD_SIZE=$OMPI_COMM_WORLD_SIZE \
    LOCAL_RANK=$OMPI_COMM_WORLD_LOCAL_RANK LOCAL_WORLD_SIZE=$OMPI_COMM_WORLD_LOCAL_SIZE \
    MASTER_ADDR=localhost MASTER_PORT=29500 TORCHELASTIC_ERROR_FILE=error-$OMPI_COMM_WORLD_RANK.json exec \"$0\" \"$@\"";

fn mpirun(dir: &TempDir, n: usize, options: &[&str], args: &[&str]) -> Command {
    // whatever goes wrong, nothing is left behind
    let mut command = Command::new("timeout");
    command.args(["-s", "KILL", "120", "mpirun"]);
    command.args(["--oversubscribe", "--bind-to", "none", "--allow-run-as-root", "-n", &n.to_string()]).args(options);
    command.arg(env!("CARGO_BIN_EXE_xdit")).args(args).current_dir(dir).stdin(Stdio::null());
    command.env("HF_HUB_OFFLINE", "1").env("HF_HOME", dir.path().join("hub"));
    command
}

fn run(mut command: Command) -> Output {
    command.output().expect("the program runs")
}

/// A request of 15 image tokens and 19 text tokens, which hardly any degree divides.
fn request<'a>(model: &'a str, parallel: &[&'a str]) -> Vec<&'a str> {
    let mut args = vec!["generate", "--model", model, "--prompt", "a photo of a red cat", "--negative-prompt", "a dog"];
    args.extend(["--height", "80", "--width", "48", "--steps", "3", "--max-sequence-length", "19", "--seed", "7"]);
    args.extend(["--no-resolution-binning", "--num-images", "3", "--output-type", "latent"]);
    if model.contains("flux") {
        args.extend(["--true-cfg-scale", "2"]);
    }
    args.extend(parallel);
    args
}

/// All files below, by name.
fn written(dir: &TempDir, folder: &str) -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(dir.path().join(folder)).expect("a folder").map(|entry| entry.expect("an entry").path());
    let name = |path: &std::path::Path| path.file_name().expect("a name").to_string_lossy().into_owned();
    let mut all: Vec<_> = entries.map(|path| (name(&path), fs::read(&path).expect("a file"))).collect();
    all.sort();
    all
}

#[track_caller]
fn check(model: &str, parallel: &[&str]) {
    let dir = TempDir::new().expect("a folder");
    let model = golden(model);
    let args = |folder| [&request(&model, parallel)[..], &["--output", folder]].concat();
    let threads = run(command(&dir, &args("threads/")));
    assert!(threads.status.success(), "{parallel:?} {threads:?}");
    let expected = written(&dir, "threads");
    assert_eq!(expected.len(), 3);
    let processes = run(mpirun(&dir, 4, &[], &args("processes/")));
    assert!(processes.status.success(), "{model} {parallel:?} {processes:?}");
    assert!(written(&dir, "processes") == expected, "{model} {parallel:?}");
    // the first process alone prints
    let lines = String::from_utf8_lossy(&processes.stdout).lines().count();
    assert_eq!(lines, 3, "{processes:?}");
}

const MESHES: [&[&str]; 6] = [
    &["--ulysses-degree", "2", "--use-cfg-parallel"],
    &["--ulysses-degree", "2", "--ring-degree", "2"],
    &["--data-parallel-degree", "2", "--ring-degree", "2"],
    &["--data-parallel-degree", "4"],
    &["--pipefusion-parallel-degree", "2", "--use-cfg-parallel"],
    &["--pipefusion-parallel-degree", "2", "--ulysses-degree", "2", "--warmup-steps", "1"],
];

#[test]
#[ignore = "needs mpirun"]
fn golden_models_are_drawn_by_processes_as_by_threads() {
    for model in ["flux-dev", "sd3", "pixart-alpha", "hunyuan-v11"] {
        for mesh in MESHES {
            check(model, mesh);
        }
    }
}

#[test]
#[ignore = "needs mpirun"]
fn pictures_come_from_all_replicas_and_any_seed_is_the_same() {
    let dir = TempDir::new().expect("a folder");
    let args = ["generate", "--prompt", CAPTION, "--steps", "1", "--num-images", "2", "--data-parallel-degree", "2"];
    let drawn = run(mpirun(&dir, 2, &[], &[&args[..], &["--seed", "random", "--json", "--output", "a/"]].concat()));
    let record: serde_json::Value = serde_json::from_slice(&drawn.stdout).expect("one record");
    let seed = record["seed"].to_string();
    let threads = run(command(&dir, &[&args[..], &["--seed", &seed, "--output", "b/"]].concat()));
    assert!(drawn.status.success() && threads.status.success(), "{drawn:?} {threads:?}");
    let [a, b] = ["a", "b"].map(|folder| written(&dir, folder));
    assert!(a.len() == 2 && a == b);
}

/// The processes of a replica decode a band of its pictures each, which is equal but for what lies between two levels of
/// brightness.
#[test]
#[ignore = "needs mpirun"]
fn pictures_of_a_replica_are_decoded_by_all_its_processes() {
    let model = golden("sd3");
    for mesh in [MESHES[0], MESHES[2], MESHES[4]] {
        let dir = TempDir::new().expect("a folder");
        let mut drawing = request(&model, mesh);
        drawing.iter_mut().filter(|arg| **arg == "latent").for_each(|arg| *arg = "picture");
        let args = |folder| [&drawing[..], &["--output", folder]].concat();
        let drawn = run(mpirun(&dir, 4, &[], &args("processes/")));
        let threads = run(command(&dir, &args("threads/")));
        assert!(drawn.status.success() && threads.status.success(), "{mesh:?} {drawn:?} {threads:?}");
        let (got, want) = (written(&dir, "processes"), written(&dir, "threads"));
        assert_eq!(got.len(), 3, "{mesh:?}");
        for ((got, _), (want, _)) in got.into_iter().zip(want) {
            assert_eq!(got, want);
            let [a, b] = ["processes", "threads"].map(|folder| decode(&dir.path().join(folder).join(&got)).1);
            let away: Vec<_> = a.iter().zip(&b).map(|(a, b)| a.abs_diff(*b)).filter(|d| *d > 0).collect();
            assert_eq!(a.len(), b.len());
            assert!(away.iter().all(|d| *d == 1) && away.len() * 1000 <= a.len(), "{mesh:?}: {} differ", away.len());
        }
    }
}

#[test]
#[ignore = "needs mpirun"]
fn variables_of_torchrun_are_taken_before_those_of_mpirun() {
    let dir = TempDir::new().expect("a folder");
    let model = golden("sd3");
    let args = |folder| [&request(&model, MESHES[0])[..], &["--output", folder]].concat();
    let drawn = run(mpirun(&dir, 4, &["sh", "-c", AS_TORCHRUN], &args("processes/")));
    let threads = run(command(&dir, &args("threads/")));
    assert!(drawn.status.success() && threads.status.success(), "{drawn:?} {threads:?}");
    assert!(written(&dir, "processes") == written(&dir, "threads"));
}

/// One line, by the first process, and a code other than 0.
#[track_caller]
fn one_error(output: &Output, parts: &[&str]) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{text}");
    let errors: Vec<_> = text.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "{text}");
    parts.iter().for_each(|part| assert!(errors[0].contains(part), "no {part:?} in {text}"));
}

#[test]
#[ignore = "needs mpirun"]
fn a_mesh_of_another_size_is_one_error() {
    let dir = TempDir::new().expect("a folder");
    let args = ["generate", "--prompt", CAPTION, "--ulysses-degree", "2"];
    one_error(&run(mpirun(&dir, 4, &[], &args)), &["2 ranks", "4"]);
    one_error(&run(mpirun(&dir, 4, &[], &[&args[..], &["--no-such-flag"]].concat())), &["--no-such-flag"]);
    let dir_is_empty = fs::read_dir(dir.path()).expect("a folder").next().is_none();
    assert!(dir_is_empty);
}

/// The third process finds no model, and says so by the first; torchrun would name it.
#[test]
#[ignore = "needs mpirun"]
fn what_one_process_finds_wrong_is_told_by_the_first() {
    let dir = TempDir::new().expect("a folder");
    let model = golden("sd3");
    let args = request(&model, MESHES[0]);
    let elsewhere =
        format!("test $OMPI_COMM_WORLD_RANK = 2 && shift 3 && set -- generate --model nowhere/ \"$@\"; {AS_TORCHRUN}");
    let output = run(mpirun(&dir, 4, &["sh", "-c", &elsewhere], &args));
    one_error(&output, &["because rank 2 gave up", "nowhere"]);
    let record = |rank: usize| {
        let text = fs::read_to_string(dir.path().join(format!("error-{rank}.json"))).expect("an error file");
        let record: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let date: u64 = record["message"]["extraInfo"]["timestamp"].as_str().expect("a date").parse().expect("seconds");
        (record["message"]["message"].as_str().expect("a message").to_string(), date)
    };
    let (message, date) = record(2);
    assert!(message.contains("nowhere") && !message.contains("rank"), "{message}");
    for rank in [0, 1, 3] {
        let (told, later) = record(rank);
        assert!(told.contains("because rank 2 gave up") && later > date, "{told} at {later}, {date}");
    }
}

/// The real one starts processes that MPI knows nothing of.
#[test]
#[ignore = "needs MPI"]
fn processes_that_mpi_does_not_know_are_refused() {
    let dir = TempDir::new().expect("a folder");
    let alone = |rank: &str| {
        let args = ["generate", "--prompt", CAPTION, "--ulysses-degree", "2"];
        run({
            let mut command = command(&dir, &args);
            command.env("RANK", rank).env("WORLD_SIZE", "2");
            command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
            command
        })
    };
    one_error(&alone("0"), &["torchrun started 2 processes", "rank 0 of 1", "mpirun or srun"]);
    let second = alone("1");
    assert!(!second.status.success() && second.stderr.is_empty(), "{second:?}");
}

/// In the middle of the denoising; the launcher kills the rest only later.
#[test]
#[ignore = "needs mpirun"]
fn a_killed_process_is_one_error_within_ten_seconds() {
    for victim in ["2", "0"] {
        let dir = TempDir::new().expect("a folder");
        let pids = "echo $$ > pid-$OMPI_COMM_WORLD_RANK; exec \"$0\" \"$@\"";
        let args = [
            "generate",
            "--prompt",
            CAPTION,
            "--steps",
            "1000",
            "--num-images",
            "50",
            "--ulysses-degree",
            "4",
            "--quiet",
        ];
        let mut command = mpirun(&dir, 4, &["sh", "-c", pids], &args);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("mpirun");
        thread::sleep(Duration::from_secs(8));
        let pid = fs::read_to_string(dir.path().join(format!("pid-{victim}"))).expect("a process");
        Command::new("kill").args(["-KILL", pid.trim()]).status().expect("kill");
        let start = Instant::now();
        let output = child.wait_with_output().expect("the end");
        let took = start.elapsed();
        println!("rank {victim}: {took:?}");
        let text = String::from_utf8_lossy(&output.stderr);
        // where the first process died, mpirun may end the second before it has said so, and then says it itself
        let mpirun_says = "mpirun noticed that process rank 0";
        if victim == "0" && !text.contains("error: ") && text.contains(mpirun_says) {
            assert!(!output.status.success() && text.contains("Killed"), "{text}");
        } else {
            one_error(&output, &[&format!("because rank {victim} died: its process is gone")]);
        }
        assert!(took < Duration::from_secs(10), "{took:?}");
    }
}
