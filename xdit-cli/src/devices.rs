//! `xdit devices`.

use anyhow::Result;
use serde_json::{Value, json};

use crate::args::Devices;
use crate::console::Stdout;

pub fn run(args: &Devices, out: &mut Stdout) -> Result<()> {
    let cpu = json!({ "device": "cpu", "threads": std::thread::available_parallelism()?.get() });
    let cuda = cuda();
    if args.json {
        out.line(json!({ "cpu": cpu, "cuda": cuda }).to_string());
        return Ok(());
    }
    out.line(format!("cpu     {} threads", cpu["threads"]));
    for line in table(&cuda) {
        out.line(line);
    }
    Ok(())
}

/// What was found, or why nothing.
#[cfg(feature = "cuda")]
fn cuda() -> Value {
    use xdit_core::cuda::{devices, libraries};

    let libraries = match libraries::load() {
        Ok(libraries) => libraries,
        Err(error) => return json!({ "error": error.to_string() }),
    };
    let found = match devices() {
        Ok(found) => found,
        Err(error) => return json!({ "error": error.to_string() }),
    };
    let library = |found: &libraries::Found| json!({ "version": found.version, "path": found.path });
    let device = |device: &xdit_core::cuda::DeviceInfo| {
        json!({
            "device": format!("cuda:{}", device.index),
            "name": device.name,
            "memory": device.memory,
            "free": device.free,
            "compute_capability": format!("{}.{}", device.sm / 10, device.sm % 10),
            "multiprocessors": device.n_sms,
            "products": "cuBLASLt",
            "attention": device.attention(),
        })
    };
    json!({
        "libraries": {
            "driver": library(&libraries.driver),
            "nvrtc": library(&libraries.nvrtc),
            "cublaslt": library(&libraries.cublaslt),
            "cudnn": libraries.cudnn.as_ref().map(library),
        },
        "devices": found.iter().map(device).collect::<Vec<_>>(),
    })
}

#[cfg(not(feature = "cuda"))]
fn cuda() -> Value {
    json!({ "error": "this program was built without --features cuda" })
}

fn table(cuda: &Value) -> Vec<String> {
    if let Some(error) = cuda["error"].as_str() {
        return vec![format!("cuda    none: {error}")];
    }
    let text = |value: &Value| value.as_str().unwrap_or("none").to_owned();
    let gib = |value: &Value| value.as_u64().unwrap_or(0) as f64 / f64::from(1 << 30);
    let mut lines = Vec::new();
    for device in cuda["devices"].as_array().into_iter().flatten() {
        lines.push(format!(
            "{:<7} {}, {:.1} GiB ({:.1} free), compute capability {}, {} multiprocessors",
            text(&device["device"]),
            text(&device["name"]),
            gib(&device["memory"]),
            gib(&device["free"]),
            text(&device["compute_capability"]),
            device["multiprocessors"]
        ));
        lines.push(format!(
            "        products: {}; attention: {}",
            text(&device["products"]),
            text(&device["attention"])
        ));
    }
    if lines.is_empty() {
        lines.push("cuda    none: the driver sees no device".into());
    }
    for (name, what) in [("driver", "driver"), ("nvrtc", "NVRTC"), ("cublaslt", "cuBLASLt"), ("cudnn", "cuDNN")] {
        let found = &cuda["libraries"][name];
        match found["version"].as_str() {
            Some(version) => lines.push(format!("        {what} {version} ({})", text(&found["path"]))),
            None => lines.push(format!("        {what} not found")),
        }
    }
    lines
}
