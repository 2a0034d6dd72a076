//! `--device` and `--dtype`.

use std::str::FromStr;

use anyhow::{Result, bail};
use burn::tensor::{Device, FloatDType};

use crate::args::Dtype;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceArg {
    Cpu,
    Cuda(usize),
    Wgpu,
}

impl FromStr for DeviceArg {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s.split_once(':') {
            None if s == "cpu" => Ok(Self::Cpu),
            None if s == "wgpu" => Ok(Self::Wgpu),
            None if s == "cuda" => Ok(Self::Cuda(0)),
            Some(("cuda", n)) => n.parse().map(Self::Cuda).map_err(|_| format!("{n} is no device number")),
            _ => Err("expected cpu, cuda:N or wgpu".into()),
        }
    }
}

impl DeviceArg {
    /// The device, if this program was built for it and it is there.
    pub fn open(self) -> Result<Device> {
        match self {
            Self::Cpu => Ok(Device::flex()),
            Self::Cuda(index) => cuda(index),
            Self::Wgpu => wgpu(),
        }
    }

    /// What a user of this device expects.
    pub fn dtype(self, asked: Option<Dtype>) -> FloatDType {
        match (asked, self) {
            (Some(Dtype::F32), _) | (None, Self::Cpu | Self::Wgpu) => FloatDType::F32,
            (Some(Dtype::Bf16), _) | (None, Self::Cuda(_)) => FloatDType::BF16,
            (Some(Dtype::F16), _) => FloatDType::F16,
        }
    }
}

#[cfg(feature = "cuda")]
fn cuda(index: usize) -> Result<Device> {
    let n = Device::enumerate(burn::tensor::DeviceType::Cuda).len();
    if index >= n {
        bail!("cuda:{index} is not there; {n} CUDA devices were found");
    }
    Ok(Device::cuda(index))
}

#[cfg(not(feature = "cuda"))]
fn cuda(index: usize) -> Result<Device> {
    bail!("cuda:{index} needs a program built with --features cuda")
}

#[cfg(feature = "wgpu")]
fn wgpu() -> Result<Device> {
    let found = Device::enumerate(burn::tensor::DeviceType::Wgpu);
    match found.into_iter().next() {
        Some(device) => Ok(device),
        None => bail!("no device for wgpu was found (Vulkan, Metal or DX12)"),
    }
}

#[cfg(not(feature = "wgpu"))]
fn wgpu() -> Result<Device> {
    bail!("wgpu needs a program built with --features wgpu")
}
