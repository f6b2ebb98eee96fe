//! A block mask as a picture: one panel for each head, a cell for each block, side by side.

use tilewright::mask::EMPTY;
use tilewright::{BlockMask, Error};

/// Colours by index: what lies between panels, dropped blocks, kept blocks, guide lines over what is dropped.
const PALETTE: [[u8; 3]; 4] = [[255, 255, 255], [233, 237, 242], [24, 92, 148], [207, 214, 223]];
const PAPER: u8 = 0;
const DROPPED: u8 = 1;
const KEPT: u8 = 2;
const GUIDE: u8 = 3;

/// A panel has about as many pixels along its longer side.
const PANEL: usize = 640;
/// Pixels around and between the panels.
const MARGIN: usize = 24;

/// One head.
struct Panel {
    rows: usize,
    columns: usize,
    kept: Vec<bool>,
    /// Pixels of a block.
    cell: (usize, usize),
    /// Pixels from one guide line to the next, down and across.
    guides: Option<(f64, f64)>,
}

/// A PNG of every head of every mask, from left to right. Beside a mask stands a number of tokens after which a thin line is
/// drawn: the length of a video frame, say.
pub fn png(masks: &[(BlockMask, Option<usize>)]) -> Result<Vec<u8>, ImageError> {
    let mut panels = Vec::new();
    for (mask, guide) in masks {
        panels.extend(panels_of(mask, *guide)?);
    }
    let height = panels.iter().map(Panel::height).max().unwrap_or(0) + 2 * MARGIN;
    let width = panels.iter().map(|panel| panel.width() + MARGIN).sum::<usize>() + MARGIN;
    let mut pixels = vec![PAPER; width * height];
    let mut left = MARGIN;
    for panel in &panels {
        panel.draw(&mut pixels[MARGIN * width + left..], width);
        left += panel.width() + MARGIN;
    }
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, width as u32, height as u32);
    encoder.set_color(png::ColorType::Indexed);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_palette(PALETTE.concat());
    let mut writer = encoder.write_header()?;
    writer.write_image_data(&pixels)?;
    writer.finish()?;
    Ok(file)
}

/// Why there is no picture.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error(transparent)]
    Mask(#[from] Error),
    #[error(transparent)]
    Png(#[from] png::EncodingError),
}

fn panels_of(mask: &BlockMask, guide: Option<usize>) -> Result<Vec<Panel>, Error> {
    let map = mask.to_dense()?;
    let [batch, heads, rows, columns] = map.shape;
    // A whole number of pixels for so many tokens, and every block a multiple of them: blocks keep their proportions.
    let longest = mask.seq_q().max(mask.seq_kv()).max(1);
    let unit = mask.block_q().min(mask.block_kv()).max(1);
    let pixels = ((PANEL * unit) as f64 / longest as f64).round().max(1.0) as usize;
    let cell = (mask.block_q() / unit * pixels, mask.block_kv() / unit * pixels);
    let step = |cell: usize, block: usize| cell as f64 / block as f64;
    let guides = guide.map(|tokens| {
        let tokens = tokens as f64;
        (tokens * step(cell.0, mask.block_q()), tokens * step(cell.1, mask.block_kv()))
    });
    let panel = |head: usize| {
        let classes = &map.classes[head * rows * columns..][..rows * columns];
        Panel { rows, columns, kept: classes.iter().map(|&class| class != EMPTY).collect(), cell, guides }
    };
    Ok((0..batch * heads).map(panel).collect())
}

impl Panel {
    fn width(&self) -> usize {
        self.columns * self.cell.1
    }

    fn height(&self) -> usize {
        self.rows * self.cell.0
    }

    fn draw(&self, pixels: &mut [u8], stride: usize) {
        for y in 0..self.height() {
            for x in 0..self.width() {
                let kept = self.kept[y / self.cell.0 * self.columns + x / self.cell.1];
                let guide =
                    self.guides.is_some_and(|(down, across)| on_guide(y, down) || on_guide(x, across));
                pixels[y * stride + x] = match (kept, guide) {
                    (true, _) => KEPT,
                    (false, false) => DROPPED,
                    (false, true) => GUIDE,
                };
            }
        }
    }
}

/// Whether a multiple of `step`, other than 0, falls on this pixel.
fn on_guide(pixel: usize, step: f64) -> bool {
    let nearest = (pixel as f64 / step).round();
    nearest >= 1.0 && (nearest * step).round() as usize == pixel
}
