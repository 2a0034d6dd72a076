//! `xdit models`.

use anyhow::Result;
use xdit_models::pipeline::registry::ARCHITECTURES;

pub fn run() -> Result<()> {
    println!("{:<24} models", "pipeline");
    for architecture in ARCHITECTURES {
        println!("{:<24} {}", architecture.class_name(), architecture.about());
    }
    Ok(())
}
