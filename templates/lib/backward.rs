shared! {
    // What the two kernels of the backward have in common beside lib/attention.rs.
    functions { score_mod: ScoreMod + Gradient, mask_mod: MaskMod }
    require D != 192, "the backward has no tile of 192: heads of that run in that of 256";
    require D_V == D || (D == 256 && D_V == 128), "narrower values have a tile of their own for 256 and 128 alone";
}
