"""Small video transformers of diffusers with random weights, and inputs for them: what the tests of `tilewright.diffusers` share.

Each family is a function `family(batch=2, grid=GRID, **options)` of the model's options, that gives the model and its inputs.
"""

import math

import torch
from diffusers import (
    ChronoEditTransformer3DModel,
    CogVideoXTransformer3DModel,
    CogView3PlusTransformer2DModel,
    ConsisIDTransformer3DModel,
    HunyuanVideoFramepackTransformer3DModel,
    HunyuanVideoTransformer3DModel,
    LTXVideoTransformer3DModel,
    SkyReelsV2Transformer3DModel,
    WanAnimateTransformer3DModel,
    WanTransformer3DModel,
    WanVACETransformer3DModel,
)

# (t, h, w) of tokens: neither a multiple of the tile nor, together, of a block.
GRID = (5, 11, 14)
# The same, for tests of many models.
SMALL = (3, 5, 11)
TEXT = 24
HEADS = {"num_attention_heads": 2, "attention_head_dim": 64}
WAN = {**HEADS, "in_channels": 4, "out_channels": 4, "text_dim": 32, "freq_dim": 32, "ffn_dim": 128}


def latents(batch, channels, grid, frames_first=False):
    t, h, w = grid
    sizes = (t, channels) if frames_first else (channels, t)
    return torch.randn(batch, *sizes, 2 * h, 2 * w)


def timesteps(batch, timestep=900):
    return torch.full((batch,), timestep)


def texts(batch, tokens=TEXT):
    return torch.randn(batch, tokens, 32)


def text_mask(lengths, tokens=TEXT):
    """The mask of prompts padded behind."""
    return (torch.arange(tokens) < torch.tensor(lengths)[:, None]).long()


def wan(batch=2, grid=GRID, num_layers=3, **options):
    model = WanTransformer3DModel(**WAN, num_layers=num_layers, **options)
    return model, {
        "hidden_states": latents(batch, 4, grid),
        "timestep": timesteps(batch),
        "encoder_hidden_states": texts(batch),
    }


def wan_per_token(batch=2, grid=GRID, **options):
    """Wan 2.2's image conditioning: a timestep for each token."""
    model, inputs = wan(batch, grid, **options)
    return model, {**inputs, "timestep": torch.randint(1, 999, (batch, math.prod(grid)))}


def wan_from_image(batch=2, grid=GRID, num_layers=3, **options):
    """Wan 2.1's image conditioning: tokens of an image before the 512 of the text, which cross-attention tells apart."""
    model, inputs = wan(batch, grid, num_layers, image_dim=16, added_kv_proj_dim=128, **options)
    return model, {
        **inputs,
        "encoder_hidden_states": texts(batch, 512),
        "encoder_hidden_states_image": torch.randn(batch, 7, 16),
    }


def wan_vace(batch=2, grid=GRID, num_layers=2, **options):
    model = WanVACETransformer3DModel(**WAN, num_layers=num_layers, vace_layers=[0], vace_in_channels=6, **options)
    inputs = wan(batch, grid)[1]
    return model, {**inputs, "control_hidden_states": latents(batch, 6, grid)}


def chronoedit(batch=2, grid=GRID, num_layers=2, **options):
    """Wan's model, with a processor and a rotary embedding of its own under other names."""
    return ChronoEditTransformer3DModel(**WAN, num_layers=num_layers, **options), wan(batch, grid)[1]


def skyreels(batch=2, grid=GRID, num_layers=2, **options):
    return SkyReelsV2Transformer3DModel(**WAN, num_layers=num_layers, **options), wan(batch, grid)[1]


def skyreels_per_frame(batch=2, grid=GRID, **options):
    """Diffusion forcing: a timestep for each frame, which the model spreads over the frame's tokens."""
    model, inputs = skyreels(batch, grid, **options)
    return model, {**inputs, "timestep": torch.randint(1, 999, (batch, grid[0])), "enable_diffusion_forcing": True}


def wan_animate(batch=2, grid=GRID, num_layers=2, **options):
    """Wan with the motion of a face, whose attention takes the tokens frame by frame."""
    t, h, w = grid
    model = WanAnimateTransformer3DModel(
        **{**WAN, "in_channels": 12},
        latent_channels=4,
        num_layers=num_layers,
        motion_encoder_channel_sizes={"4": 8, "8": 8, "16": 8},
        motion_encoder_size=16,
        motion_style_dim=8,
        motion_dim=4,
        motion_encoder_dim=8,
        face_encoder_hidden_dim=16,
        face_encoder_num_heads=2,
        inject_face_latents_blocks=2,
        image_dim=16,
        added_kv_proj_dim=128,
        **options,
    )
    return model, {
        **wan(batch, grid)[1],
        "hidden_states": latents(batch, 12, grid),
        "encoder_hidden_states": texts(batch, 512),
        "encoder_hidden_states_image": torch.randn(batch, 7, 16),
        "pose_hidden_states": latents(batch, 4, (t - 1, h, w)),
        "face_pixel_values": torch.randn(batch, 3, 4 * (t - 1), 16, 16),
    }


def cogvideox(batch=2, grid=GRID, num_layers=2, **options):
    options = {"use_rotary_positional_embeddings": True, **options}
    model = CogVideoXTransformer3DModel(
        **HEADS,
        in_channels=4,
        out_channels=4,
        time_embed_dim=32,
        text_embed_dim=32,
        num_layers=num_layers,
        max_text_seq_length=TEXT,
        **options,
    )
    return model, _cogvideox_inputs(batch, grid)


def cogvideox_in_place(batch=2, grid=GRID, **options):
    """CogVideoX 2B: positions are added to the tokens, and no table comes along."""
    t, h, w = grid
    sizes = {"sample_frames": 4 * (t - 1) + 1, "sample_height": 2 * h, "sample_width": 2 * w}
    model, inputs = cogvideox(batch, grid, use_rotary_positional_embeddings=False, **sizes, **options)
    return model, {**inputs, "image_rotary_emb": None}


def consisid(batch=2, grid=GRID, num_layers=2, **options):
    """Built of CogVideoX's attention."""
    model = ConsisIDTransformer3DModel(
        **HEADS,
        in_channels=4,
        out_channels=4,
        time_embed_dim=32,
        text_embed_dim=32,
        num_layers=num_layers,
        max_text_seq_length=TEXT,
        use_rotary_positional_embeddings=True,
        **options,
    )
    return model, _cogvideox_inputs(batch, grid)


def _cogvideox_inputs(batch, grid):
    angles = torch.randn(math.prod(grid), 32).repeat_interleave(2, dim=1)
    return {
        "hidden_states": latents(batch, 4, grid, frames_first=True),
        "timestep": timesteps(batch),
        "encoder_hidden_states": texts(batch),
        "image_rotary_emb": (angles.cos(), angles.sin()),
    }


def cogview3(batch=2, grid=GRID, num_layers=2, **options):
    """Images, with CogVideoX's attention."""
    model = CogView3PlusTransformer2DModel(
        **HEADS, in_channels=4, out_channels=4, time_embed_dim=32, text_embed_dim=32, condition_dim=8, num_layers=num_layers, **options
    )
    t, h, w = grid
    return model, {
        "hidden_states": torch.randn(batch, 4, 2 * t * h, 2 * w),
        "timestep": timesteps(batch),
        "encoder_hidden_states": texts(batch),
        "original_size": torch.tensor([[64.0, 64.0]] * batch),
        "target_size": torch.tensor([[64.0, 64.0]] * batch),
        "crop_coords": torch.zeros(batch, 2),
    }


HUNYUAN = {
    **HEADS,
    "in_channels": 4,
    "out_channels": 4,
    "num_refiner_layers": 1,
    "text_embed_dim": 32,
    "pooled_projection_dim": 16,
    "rope_axes_dim": (16, 24, 24),
    "guidance_embeds": False,
}


def _hunyuan_inputs(batch, grid, lengths):
    return {
        "hidden_states": latents(batch, 4, grid),
        "timestep": timesteps(batch),
        "encoder_hidden_states": texts(batch),
        "encoder_attention_mask": text_mask(lengths or (9, 17, TEXT)[:batch]),
        "pooled_projections": torch.randn(batch, 16),
    }


def hunyuan(batch=2, grid=GRID, lengths=None, num_single_layers=2, **options):
    model = HunyuanVideoTransformer3DModel(**HUNYUAN, num_layers=1, num_single_layers=num_single_layers, **options)
    return model, _hunyuan_inputs(batch, grid, lengths)


def hunyuan_one_length(batch=2, grid=GRID, **options):
    return hunyuan(batch, grid, (13,) * batch, **options)


def hunyuan_from_image(batch=2, grid=GRID, lengths=None, **options):
    """The first frame's tokens are modulated apart: they have to stay in front."""
    return hunyuan(batch, grid, lengths, image_condition_type="token_replace", **options)


def framepack(batch=2, grid=GRID, lengths=None, num_single_layers=1, **options):
    """HunyuanVideo with frames of the past before the video, and tokens of an image before the text."""
    model = HunyuanVideoFramepackTransformer3DModel(
        **HUNYUAN,
        num_layers=1,
        num_single_layers=num_single_layers,
        has_image_proj=True,
        image_proj_dim=16,
        has_clean_x_embedder=True,
        **options,
    )
    past = lambda frames: latents(batch, 4, (frames, *grid[1:]))  # noqa: E731
    return model, {
        **_hunyuan_inputs(batch, grid, lengths),
        "image_embeds": torch.randn(batch, 10, 16),
        "indices_latents": torch.arange(grid[0]),
        "latents_clean": past(2),
        "indices_latents_clean": torch.arange(2),
        "latents_history_2x": past(2),
        "indices_latents_history_2x": torch.arange(2),
        "latents_history_4x": past(4),
        "indices_latents_history_4x": torch.arange(4),
    }


def ltx(batch=2, grid=GRID, lengths=None, num_layers=2, **options):
    model = LTXVideoTransformer3DModel(
        **HEADS, in_channels=8, out_channels=8, cross_attention_dim=128, num_layers=num_layers, caption_channels=32, **options
    )
    t, h, w = grid
    return model, {
        "hidden_states": torch.randn(batch, math.prod(grid), 8),
        "timestep": timesteps(batch),
        "encoder_hidden_states": texts(batch),
        "encoder_attention_mask": text_mask(lengths or (TEXT,) * batch),
        "num_frames": t,
        "height": h,
        "width": w,
    }


def ltx_per_token(batch=2, grid=GRID, **options):
    model, inputs = ltx(batch, grid, **options)
    return model, {**inputs, "timestep": torch.randint(1, 999, (batch, math.prod(grid)))}


def make(family, device, dtype=torch.float16, **options):
    torch.manual_seed(7)
    model, inputs = family(**options)
    model = model.to(device, dtype).eval()
    return model, {name: _to(value, device, dtype) for name, value in inputs.items()}


def _to(value, device, dtype):
    if isinstance(value, tuple):
        return tuple(tensor.to(device) for tensor in value)  # tables of the rotary embedding stay float32
    if not isinstance(value, torch.Tensor):
        return value
    return value.to(device, dtype if value.is_floating_point() else value.dtype)


@torch.no_grad()
def run(model, inputs, **changes):
    return model(**{**inputs, **changes}, return_dict=False)[0].double()


def error(found, expected):
    return float((found - expected).norm() / expected.norm())
