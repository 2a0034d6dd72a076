//! Parts that stay where they are in a GPU's memory, and how other GPUs of the process fetch them.

use burn::tensor::{Device, Tensor};

use super::parts::{Data, Form, Part};
use crate::cuda::copies::copy;
use crate::cuda::peers::{self, Mark};
use crate::cuda::raw::DeviceTensor;

/// Blocks of a GPU's memory, perhaps with gaps between their rows, that follow each other along a dimension.
#[derive(Debug, Clone)]
pub struct Views {
    blocks: Vec<DeviceTensor>,
    along: usize,
}

impl Views {
    /// `None` for tensors that are not on an NVIDIA GPU, and for one that is a run of memory anyway.
    pub fn of<const D: usize>(blocks: &[Tensor<D>], along: usize) -> Option<Self> {
        let blocks: Vec<DeviceTensor> = blocks.iter().map(DeviceTensor::of).collect::<Option<_>>()?;
        let is_run = blocks.len() == 1 && blocks[0].strides() == packed(&blocks[0].dims());
        (!is_run).then_some(Self { blocks, along })
    }

    fn dims(&self) -> Vec<usize> {
        let mut dims = self.blocks[0].dims();
        dims[self.along] = self.blocks.iter().map(|block| block.dims()[self.along]).sum();
        dims
    }

    /// The blocks as one tensor: where they are if they lie so, else copied.
    fn whole(mut self) -> DeviceTensor {
        if let Some(joined) = DeviceTensor::joined(&self.blocks, self.along) {
            return joined;
        }
        if self.blocks.len() == 1 {
            return self.blocks.remove(0);
        }
        let whole = self.blocks[0].empty(&self.dims(), self.blocks[0].dtype());
        for (block, place) in self.blocks.iter().zip(cut(&whole, self.along, &self.blocks)) {
            copy(block, &place);
        }
        whole
    }

    /// One run of memory.
    pub fn flat(self) -> Tensor<1> {
        let n: usize = self.dims().iter().product();
        self.whole().contiguous().view(0, &[n], &[1]).tensor()
    }

    /// - `shape`: the part's
    pub fn into_tensor<const D: usize>(self, shape: [usize; D]) -> Tensor<D> {
        let whole = self.whole();
        match whole.dims() == shape {
            true => whole.tensor(),
            false => whole.contiguous().view(0, &shape, &packed(&shape)).tensor(),
        }
    }
}

/// The strides of what lies without gaps.
fn packed(dims: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; dims.len()];
    for i in (1..dims.len()).rev() {
        strides[i - 1] = strides[i] * dims[i];
    }
    strides
}

/// The places of blocks like `blocks`, one after the other along a dimension of `whole`.
fn cut<'a>(
    whole: &'a DeviceTensor,
    along: usize,
    blocks: &'a [DeviceTensor],
) -> impl Iterator<Item = DeviceTensor> + 'a {
    let strides = whole.strides();
    let mut at = 0;
    blocks.iter().map(move |block| {
        let place = whole.view(at * strides[along], &block.dims(), &strides);
        at += block.dims()[along];
        place
    })
}

/// A part that other devices of the process may fetch from where it is.
#[derive(Debug)]
pub struct Offer {
    form: Form,
    views: Views,
    offer: peers::Offer,
}

impl Part {
    /// Lets other devices fetch it; `None` if it is not on an NVIDIA GPU, or if there is nothing.
    pub fn offer(&self) -> Option<Offer> {
        let views = match self.data.as_ref()? {
            Data::Views(views) => views.clone(),
            Data::Flat(data) => {
                let strides = packed(&self.form.shape);
                let block = DeviceTensor::of(data)?.contiguous().view(0, &self.form.shape, &strides);
                Views { blocks: vec![block], along: 0 }
            }
        };
        let offer = peers::Offer::of(views.blocks.clone());
        Some(Offer { form: self.form.clone(), views, offer })
    }
}

/// Memory that was set aside for a part.
#[derive(Debug)]
pub struct Place {
    part: Part,
    free: Mark,
}

impl Place {
    /// For a part of this form; `None` where the device's memory is nobody else's to fill.
    pub fn new(form: &Form, device: &Device) -> Option<Self> {
        if form.n() == 0 || crate::cuda::raw::number(device).is_none() {
            return None;
        }
        let data = Tensor::<1>::empty([form.n()], (device, form.dtype));
        Self::of(Part::of_flat(form.clone(), Some(data)))
    }

    /// Where this part is, not yet written. What the device was told to do so far may still use it.
    pub fn of(part: Part) -> Option<Self> {
        let free = match part.data.as_ref()? {
            Data::Views(views) => Mark::of(views.blocks.first()?),
            Data::Flat(data) => Mark::of(&DeviceTensor::of(data)?),
        };
        Some(Self { part, free })
    }

    /// What is there.
    pub fn part(self) -> Part {
        self.part
    }

    fn blocks(&self) -> Option<Vec<DeviceTensor>> {
        match self.part.data.as_ref()? {
            Data::Views(views) => Some(views.blocks.clone()),
            Data::Flat(data) => {
                let shape = &self.part.form.shape;
                Some(vec![DeviceTensor::of(data)?.view(0, shape, &packed(shape))])
            }
        }
    }
}

impl Offer {
    /// What was offered.
    pub fn form(&self) -> &Form {
        &self.form
    }

    /// Brings it to a device.
    ///
    /// - `place`: memory there for blocks of the same shapes; `None` is returned if it is in there now
    pub fn fetch(self, place: Option<&Place>, device: &Device) -> Option<Part> {
        if let Some(place) = place
            && let Some(blocks) = place.blocks().filter(|blocks| same_shapes(blocks, &self.views.blocks))
        {
            self.offer.fetch(&blocks, &place.free);
            return None;
        }
        let n = self.form.n();
        let data = Tensor::<1>::empty([n], (device, self.form.dtype));
        let whole = DeviceTensor::of(&data)?.view(0, &self.form.shape, &packed(&self.form.shape));
        let free = Mark::of(&whole);
        let places: Vec<_> = cut(&whole, self.views.along, &self.views.blocks).collect();
        self.offer.fetch(&places, &free);
        Some(Part::of_flat(self.form, Some(data)))
    }
}

fn same_shapes(a: &[DeviceTensor], b: &[DeviceTensor]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.dims() == b.dims())
}

/// Whether these are NVIDIA GPUs of which each reads every other's memory.
pub fn reach_each_other(devices: &[Device]) -> bool {
    let numbers: Option<Vec<i32>> = devices.iter().map(crate::cuda::raw::number).collect();
    numbers.is_some_and(|numbers| peers::reach_each_other(&numbers))
}
