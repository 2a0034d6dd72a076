//! Where pictures go: formats, standard output, links, and names that are refused before anything is drawn.

mod common;

use std::fs::{self, File};
use std::io::Cursor;
use std::path::Path;
use std::process::Stdio;

use tempfile::TempDir;
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;

use crate::common::{CAPTION, command, decode, draw, fails, files, golden, json, quick, stderr, text, xdit};

/// Mean difference in 8 bits of a JPEG of this quality to the picture itself.
const JPEG_ERROR: f64 = 1.0;

/// `parameters` as UTF-16, which is how other programs keep it in EXIF.
fn holds(bytes: &[u8], parameters: &str) -> bool {
    let units: Vec<u8> =
        b"UNICODE\0".iter().copied().chain(parameters.encode_utf16().flat_map(u16::to_be_bytes)).collect();
    bytes.windows(units.len()).any(|window| window == units)
}

#[test]
fn jpeg_and_webp_hold_the_picture_and_how_it_came_to_be() {
    let dir = TempDir::new().expect("a folder");
    for name in ["x.png", "x.jpg", "y.JPEG", "x.webp"] {
        let output = quick(&dir, &["-o", name, "--negative-prompt", "ein Würfel", "--quiet"]);
        assert!(output.status.success(), "{}", stderr(&output));
    }
    let (info, rgb) = decode(&dir.path().join("x.png"));
    let parameters = text(&info, "parameters");
    assert!(parameters.contains("Seed: 42") && parameters.contains("ein Würfel"), "{parameters}");

    for name in ["x.jpg", "y.JPEG"] {
        let bytes = fs::read(dir.path().join(name)).expect("a JPEG");
        assert!(holds(&bytes, &parameters), "{name}");
        let pixels = JpegDecoder::new(ZCursor::new(&bytes)).decode().expect("pixels");
        assert_eq!(pixels.len(), rgb.len());
        let error: f64 = pixels.iter().zip(&rgb).map(|(a, b)| f64::from(a.abs_diff(*b))).sum();
        assert!(error / (rgb.len() as f64) < JPEG_ERROR, "{}", error / rgb.len() as f64);
    }
    let bytes = fs::read(dir.path().join("x.webp")).expect("a WebP");
    assert!(holds(&bytes, &parameters));
    let mut decoder = image_webp::WebPDecoder::new(Cursor::new(&bytes)).expect("a WebP");
    let mut pixels = vec![0; decoder.output_buffer_size().expect("a size")];
    decoder.read_image(&mut pixels).expect("pixels");
    assert_eq!(pixels, rgb, "without loss");
}

#[test]
fn a_lower_quality_is_smaller_and_a_long_prompt_fits() {
    let dir = TempDir::new().expect("a folder");
    let long = "a cat and a dog and ".repeat(5000);
    for (name, quality) in [("q95.jpg", "95"), ("q10.jpg", "10")] {
        let output = quick(&dir, &["--prompt", &long, "-o", name, "--quality", quality, "--quiet"]);
        assert!(output.status.success(), "{}", stderr(&output));
    }
    let size = |name: &str| fs::metadata(dir.path().join(name)).expect("a file").len();
    assert!(size("q10-1.jpg") < size("q95-1.jpg"));
    let bytes = fs::read(dir.path().join("q10-1.jpg")).expect("a JPEG");
    let settings: Vec<u8> = "Seed: 42, Size: 256x256".encode_utf16().flat_map(u16::to_be_bytes).collect();
    assert!(bytes.windows(settings.len()).any(|window| window == settings), "the settings stay whole");
    fails(&dir, quick(&dir, &["--quality", "101", "-o", "x.jpg"]), 2, &["101", "1..=100"]);
}

#[test]
fn standard_output_takes_one_picture_and_nothing_else() {
    let dir = TempDir::new().expect("a folder");
    assert!(quick(&dir, &["-o", "x.png"]).status.success());
    let output = quick(&dir, &["--output", "-", "--seed", "42"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(output.stdout, fs::read(dir.path().join("x.png")).expect("a file"));
    assert_eq!(files(dir.path()).len(), 1, "no file");

    let dir = TempDir::new().expect("a folder");
    let output = draw(&dir, &golden("flux-dev"), &["--output-type", "latent", "-o", "-"]);
    let latents = safetensors::SafeTensors::deserialize(&output.stdout).expect("safetensors");
    assert!(latents.tensor("latents").is_ok());
    fails(&dir, quick(&dir, &["-o", "-", "-n", "2"]), 1, &["standard output takes one picture, not 2"]);
    fails(&dir, quick(&dir, &["-o", "-", "--json"]), 1, &["--json and --output - both want standard output"]);
}

#[test]
fn equal_latents_are_equal_files() {
    let dir = TempDir::new().expect("a folder");
    let latents = || draw(&dir, &golden("flux-dev"), &["--output-type", "latent", "--negative-prompt", "x", "-o", "-"]);
    let first = latents().stdout;
    // that ten entries come in the same order twice by chance is out of the question
    assert_eq!(latents().stdout, first);

    let (header, metadata) = safetensors::SafeTensors::read_metadata(&first).expect("safetensors");
    assert_eq!(header % 8, 0, "the data is aligned");
    let texts = metadata.metadata().as_ref().expect("metadata");
    assert_eq!((texts["prompt"].as_str(), texts["negative_prompt"].as_str()), ("a red cat", "x"));
    assert!(texts["parameters"].contains("Negative prompt: x"), "{}", texts["parameters"]);
    let file = safetensors::SafeTensors::deserialize(&first).expect("safetensors");
    let tensor = file.tensor("latents").expect("latents");
    assert_eq!((tensor.dtype(), tensor.data().len()), (safetensors::Dtype::F32, first.len() - 8 - header));
}

#[cfg(target_os = "linux")]
#[test]
fn a_terminal_takes_no_picture() {
    let dir = TempDir::new().expect("a folder");
    let terminal = File::options().read(true).write(true).open("/dev/ptmx").expect("a terminal");
    let output = command(&dir, &["generate", "-p", "x", "-o", "-"]).stdout(Stdio::from(terminal)).output();
    fails(&dir, output.expect("the program runs"), 1, &["standard output is a terminal"]);
}

#[test]
fn names_that_cannot_be_written_are_refused_before_anything_is_read() {
    let dir = TempDir::new().expect("a folder");
    fs::create_dir(dir.path().join("taken-1.webp")).expect("a folder");
    fs::write(dir.path().join("plain"), "").expect("a file");
    let long = format!("{}.png", "x".repeat(300));
    for (args, parts) in [
        (&["-o", "x.gif"][..], &["x.gif", "pictures are written as .png, .jpg, .jpeg or .webp"][..]),
        (&["-o", "x.png", "--output-type", "latent"], &["x.png", "latents are written as .safetensors"]),
        (&["-o", "no/x.png"], &["cannot write to no: the folder is not there"]),
        (&["-o", "taken.webp", "-n", "2"], &["cannot write taken-1.webp: it is a folder"]),
        (&["-o", "plain"], &["cannot write to plain: it is no folder"]),
        (&["-o", "plain/x.png"], &["cannot write to plain: it is no folder"]),
        (&["-o", &long], &["cannot write", "name"]),
    ] {
        // a model that is not there: nobody looks for it
        let output = quick(&dir, &[&["--model", "./nowhere"], args].concat());
        fails(&dir, output, 1, parts);
    }
    fails(&dir, xdit(&dir, &["schedule", "--svg", "taken-1.webp"]), 1, &["it is a folder"]);
}

#[cfg(target_os = "linux")]
#[test]
fn folders_that_take_no_file_are_refused() {
    let dir = TempDir::new().expect("a folder");
    for place in ["/proc/x.png", "/proc/x/y/", "/dev/null"] {
        let output = quick(&dir, &["--model", "./nowhere", "-o", place]);
        fails(&dir, output, 1, &["cannot write to /"]);
    }
}

#[cfg(unix)]
#[test]
fn a_link_is_followed() {
    use std::os::unix::fs::symlink;
    let dir = TempDir::new().expect("a folder");
    let at = |name: &str| dir.path().join(name);
    fs::create_dir(at("real")).expect("a folder");
    fs::write(at("real/old.png"), "old").expect("a file");
    symlink("real/old.png", at("old.png")).expect("a link");
    symlink("old.png", at("twice.png")).expect("a link");
    symlink("real/new.png", at("new.png")).expect("a link");
    for name in ["old.png", "new.png", "twice.png"] {
        let output = quick(&dir, &["-o", name]);
        assert!(output.status.success(), "{}", stderr(&output));
        let link = fs::symlink_metadata(at(name)).expect("a link");
        assert!(link.is_symlink(), "{name} is still a link");
    }
    assert_eq!(decode(&at("real/old.png")).1, decode(&at("real/new.png")).1);
    symlink("b.svg", at("a.svg")).expect("a link");
    symlink("a.svg", at("b.svg")).expect("a link");
    let output = xdit(&dir, &["schedule", "--svg", "a.svg"]);
    assert!(stderr(&output).contains("cannot write a.svg: its links go in a circle"), "{}", stderr(&output));
}

#[cfg(target_os = "linux")]
#[test]
fn names_need_not_be_text() {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let dir = TempDir::new().expect("a folder");
    let name = std::ffi::OsString::from_vec(b"n\xff.png".to_vec());
    let mut command = command(&dir, &["generate", "-p", CAPTION, "--steps", "1", "-n", "2", "-o"]);
    let output = command.arg(&name).output().expect("the program runs");
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(output.stdout, b"n\xff-0.png\nn\xff-1.png\n");
    assert!(dir.path().join(Path::new(std::ffi::OsStr::from_bytes(b"n\xff-1.png"))).is_file());
    let output = command.arg("--json").output().expect("the program runs");
    assert!(json(&output)["files"][0]["path"].is_string());
}
