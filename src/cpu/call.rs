//! What the forward and the backward share: a mask's lists and the user's functions.

use crate::mask::{BlockIndex, HostLists};
use crate::user_code::UserCode;
use crate::{Error, MaskMod, ScoreMod};

/// Numbers of the functions in [`UserCode`].
pub(super) const SCORE_MOD: usize = 0;
pub(super) const MASK_MOD: usize = 1;

#[derive(Clone, Copy)]
pub(super) struct Functions<'a> {
    pub(super) score_mod: Option<&'a dyn ScoreMod>,
    pub(super) mask_mod: Option<&'a dyn MaskMod>,
}

impl<'a> Functions<'a> {
    pub(super) fn code(&self) -> UserCode<'a> {
        UserCode::new([self.score_mod.map_or("", |f| f.name()), self.mask_mod.map_or("", |f| f.name())])
    }
}

/// The lists of a mask on the host, of query blocks or of key blocks: those with the mask function, then those without.
pub(super) struct Lists {
    lists: Vec<HostLists>,
    /// Of a mask's dimensions that are 1, the stride is 0.
    strides: [usize; 2],
}

impl Lists {
    pub(super) fn of(index: &BlockIndex, full: Option<&BlockIndex>) -> Result<Self, Error> {
        let shape = index.counts.shape();
        let (batch, heads, rows) = (shape[0], shape[1], shape[2]);
        let lists = [Some(index), full].into_iter().flatten();
        Ok(Lists {
            lists: lists.map(HostLists::read).collect::<Result<_, _>>()?,
            strides: [if batch == 1 { 0 } else { heads * rows }, if heads == 1 { 0 } else { rows }],
        })
    }

    /// The blocks that `block` lists, each with whether the mask function applies to it.
    pub(super) fn row(&self, b: usize, h: usize, block: usize) -> impl Iterator<Item = (usize, bool)> {
        let row = b * self.strides[0] + h * self.strides[1] + block;
        self.lists
            .iter()
            .enumerate()
            .flat_map(move |(i, list)| list.row(row).iter().map(move |&block| (block as usize, i == 0)))
    }
}
