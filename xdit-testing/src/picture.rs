//! How far pictures are from each other.

use std::fmt;

/// A picture of 8-bit colours.
pub struct Picture {
    /// In pixels.
    pub width: usize,
    /// In pixels.
    pub height: usize,
    /// `[height, width, 3]`
    pub rgb: Vec<u8>,
}

impl Picture {
    /// Rec. 601, 0 to 255.
    fn luma(&self) -> Vec<f64> {
        let weigh = |p: &[u8]| 0.299 * f64::from(p[0]) + 0.587 * f64::from(p[1]) + 0.114 * f64::from(p[2]);
        self.rgb.chunks(3).map(weigh).collect()
    }
}

/// Of all channels, in decibels; 99 for equal pictures.
pub fn psnr(a: &Picture, b: &Picture) -> f64 {
    let square = |(a, b): (&u8, &u8)| (f64::from(*a) - f64::from(*b)).powi(2);
    let error = a.rgb.iter().zip(&b.rgb).map(square).sum::<f64>() / a.rgb.len() as f64;
    (10.0 * (255.0 * 255.0 / error).log10()).min(99.0)
}

/// Structural similarity (Wang et al. 2004) of the luma, in windows of 8 by 8 pixels, every fourth pixel one.
pub fn ssim(a: &Picture, b: &Picture) -> f64 {
    const SIDE: usize = 8;
    let (x, y) = (a.luma(), b.luma());
    let (c1, c2) = ((0.01_f64 * 255.0).powi(2), (0.03_f64 * 255.0).powi(2));
    let (mut sum, mut n) = (0.0, 0.0);
    for top in (0..=a.height - SIDE).step_by(4) {
        for left in (0..=a.width - SIDE).step_by(4) {
            let at = (0..SIDE * SIDE).map(|i| (top + i / SIDE) * a.width + left + i % SIDE);
            let [mut mx, mut my, mut xx, mut yy, mut xy] = [0.0; 5];
            for i in at {
                mx += x[i];
                my += y[i];
                xx += x[i] * x[i];
                yy += y[i] * y[i];
                xy += x[i] * y[i];
            }
            let k = (SIDE * SIDE) as f64;
            let (mx, my) = (mx / k, my / k);
            let (vx, vy, cov) = (xx / k - mx * mx, yy / k - my * my, xy / k - mx * my);
            sum += (2.0 * mx * my + c1) * (2.0 * cov + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2));
            n += 1.0;
        }
    }
    sum / n
}

/// How far pictures are from those that they should be; shown as two cells of a table, the means and the worst.
pub struct Likeness {
    psnr: Vec<f64>,
    ssim: Vec<f64>,
}

impl Likeness {
    /// Picture by picture.
    pub fn of(got: &[Picture], want: &[Picture]) -> Self {
        let (psnr, ssim) = got.iter().zip(want).map(|(a, b)| (psnr(a, b), ssim(a, b))).unzip();
        Self { psnr, ssim }
    }
}

impl fmt::Display for Likeness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ((psnr, worst_psnr), (ssim, worst_ssim)) = (mean_and_worst(&self.psnr), mean_and_worst(&self.ssim));
        write!(f, "{psnr:.1} ({worst_psnr:.1}) | {ssim:.4} ({worst_ssim:.4})")
    }
}

fn mean_and_worst(x: &[f64]) -> (f64, f64) {
    (x.iter().sum::<f64>() / x.len() as f64, x.iter().copied().fold(f64::INFINITY, f64::min))
}
