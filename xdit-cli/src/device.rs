//! `--device` and `--dtype`.

use std::str::FromStr;

use anyhow::{Result, bail};
use burn::tensor::{Device, FloatDType};

use crate::args::Dtype;

/// `--device`: one for all ranks, or one for each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Devices(Vec<DeviceArg>);

impl FromStr for Devices {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        s.split(',').map(str::parse).collect::<Result<_, _>>().map(Self)
    }
}

impl Devices {
    /// Each rank's, if this program was built for it and it is there: one for all, one for each, or all GPUs dealt out.
    pub fn open_all(&self, n_ranks: usize) -> Result<Vec<Device>> {
        self.check(n_ranks)?;
        match self.0[..] {
            [DeviceArg::EveryCuda] => {
                let n = n_gpus()?.max(1);
                (0..n_ranks).map(|rank| cuda(rank % n)).collect()
            }
            [one] => Ok(vec![one.open()?; n_ranks]),
            ref all => all.iter().map(|device| device.open()).collect(),
        }
    }

    /// Whether there is one for each rank, which then shares it with no other, even where it is listed twice.
    pub fn are_apart(&self) -> bool {
        self.0.len() > 1
    }

    /// Whether all of them are the CPU.
    pub fn are_cpu(&self) -> bool {
        self.0.iter().all(|device| *device == DeviceArg::Cpu)
    }

    /// Whether there is one for all ranks or one for each; none need be there.
    pub fn check(&self, n_ranks: usize) -> Result<()> {
        match self.0.len() {
            1 => Ok(()),
            n if n == n_ranks => Ok(()),
            n => bail!("{n} devices for {n_ranks} ranks; give one for all or one for each"),
        }
    }

    /// As they were given.
    pub fn names(&self) -> impl Iterator<Item = String> + Clone {
        self.0.iter().map(|device| device.name())
    }

    /// Each device's name and its ranks.
    pub fn ranks(&self, n_ranks: usize) -> Vec<(String, Vec<usize>)> {
        let mut all: Vec<(String, Vec<usize>)> = Vec::new();
        // where there is no GPU, as when a machine is planned, there is one for each
        let n = n_gpus().ok().filter(|n| *n > 0).unwrap_or(n_ranks);
        for rank in 0..n_ranks {
            let name = match self.0[..] {
                [DeviceArg::EveryCuda] => DeviceArg::Cuda(rank % n).name(),
                ref all => all[rank % all.len()].name(),
            };
            match all.iter_mut().find(|(device, _)| *device == name) {
                Some((_, ranks)) => ranks.push(rank),
                None => all.push((name, vec![rank])),
            }
        }
        all
    }

    /// What a user of these devices expects.
    pub fn dtype(&self, asked: Option<Dtype>) -> FloatDType {
        let all_cuda = self.0.iter().all(|device| matches!(device, DeviceArg::Cuda(_) | DeviceArg::EveryCuda));
        match asked {
            Some(Dtype::F32) => FloatDType::F32,
            Some(Dtype::Bf16) => FloatDType::BF16,
            Some(Dtype::F16) => FloatDType::F16,
            None if all_cuda => FloatDType::BF16,
            None => FloatDType::F32,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DeviceArg {
    Cpu,
    Cuda(usize),
    /// One for each rank, as far as there are so many.
    EveryCuda,
    Wgpu,
}

impl FromStr for DeviceArg {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s.split_once(':') {
            None if s == "cpu" => Ok(Self::Cpu),
            None if s == "wgpu" => Ok(Self::Wgpu),
            None if s == "cuda" => Ok(Self::EveryCuda),
            Some(("cuda", n)) => n.parse().map(Self::Cuda).map_err(|_| format!("{n} is no device number")),
            _ => Err(format!("{s:?} is none of cpu, cuda, cuda:N and wgpu")),
        }
    }
}

impl DeviceArg {
    fn name(self) -> String {
        match self {
            Self::Cpu => "cpu".into(),
            Self::Cuda(index) => format!("cuda:{index}"),
            Self::EveryCuda => "cuda".into(),
            Self::Wgpu => "wgpu".into(),
        }
    }

    fn open(self) -> Result<Device> {
        match self {
            Self::Cpu => Ok(Device::flex()),
            Self::Cuda(index) => cuda(index),
            Self::EveryCuda => cuda(0),
            Self::Wgpu => wgpu(),
        }
    }
}

#[cfg(feature = "cuda")]
fn n_gpus() -> Result<usize> {
    Ok(xdit_core::cuda::devices()?.len())
}

#[cfg(not(feature = "cuda"))]
fn n_gpus() -> Result<usize> {
    Ok(0)
}

#[cfg(feature = "cuda")]
fn cuda(index: usize) -> Result<Device> {
    let n = n_gpus()?;
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
