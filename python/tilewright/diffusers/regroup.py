"""Tokens of a model regrouped into cubes: once where they enter it, and back where they leave it.

Everything happens in forward hooks around the modules where the tokens pass, one class for each family. Hooks sit outside the
transformer blocks, so that gradient checkpointing, which runs blocks again, does not regroup again.
"""

from __future__ import annotations

from functools import partial

import torch
from diffusers import (
    ChronoEditTransformer3DModel,
    CogVideoXTransformer3DModel,
    HunyuanVideoTransformer3DModel,
    LTXVideoTransformer3DModel,
    SkyReelsV2Transformer3DModel,
    WanTransformer3DModel,
    WanVACETransformer3DModel,
)

import tilewright

from .arguments import Arguments, names_of
from .options import AUTO


class Regrouping:
    """The grid of the forward pass under way, and the hooks. `remove` takes them away, as it does a hook."""

    def __init__(self, model, options, steps):
        self.options, self.steps = options, steps
        self.fixed = None if options.grid == AUTO else options.grid
        self.current = None
        self._names = names_of(model)
        self._hooks = [
            model.register_forward_pre_hook(self._enter, with_kwargs=True),
            *self.hooks(model),
            model.register_forward_hook(self._leave),
        ]

    def __getstate__(self):
        # Between calls no grid is current.
        return {**self.__dict__, "current": None}

    def remove(self):
        """Removes the hooks."""
        for hook in self._hooks:
            hook.remove()

    def sizes(self, model, arguments):
        """The (t, h, w) of the forward pass with these arguments."""
        raise NotImplementedError

    def hooks(self, model):
        """Registers the family's hooks and lists them."""
        raise NotImplementedError

    def inputs(self, arguments):
        """Regroups what the model is called with."""

    def leading(self, sizes):
        """How many frames stay in raster order at the front."""
        return 0

    def _enter(self, model, args, kwargs):
        arguments = Arguments(self._names, args, kwargs)
        self.current = self._grid(model, arguments)
        if self.current is not None:
            self.inputs(arguments)
        return arguments.args, arguments.kwargs

    def _leave(self, _, args, output):
        # The modules that the hooks are at may be called by themselves.
        self.current = None

    def _grid(self, model, arguments):
        sizes = self.sizes(model, arguments)
        if sizes is None:
            if self.fixed is None:
                return None  # raster order
            sizes = self.fixed
        elif self.fixed is not None and sizes != self.fixed:
            raise ValueError(f'grid is {self.fixed}, the model was called with {sizes} tokens: pass that, or grid="auto"')
        frames, height, width = sizes
        leading = self.leading(sizes)
        # Dense attention needs no order.
        if self.steps.skipping or frames * height * width < self.options.min_tokens or frames == leading:
            return None
        # Equal grids share what is made of them.
        return tilewright.TokenGrid(
            (frames - leading, height, width),
            self.options.tile,
            before=leading * height * width,
            block_size=self.options.block_size,
        )

    # What the families' hooks are made of. Methods, not closures: a copy of the model must reach its own regrouping.

    def regroup_output(self, module, dim):
        """After `module`, whose output (a tensor or a tuple of them) counts tokens along `dim`."""
        return module.register_forward_hook(partial(self._regroup_output, dim))

    def restore_input(self, module, dim):
        """Before `module`, whose first argument counts tokens along `dim`."""
        return module.register_forward_pre_hook(partial(self._restore_input, dim))

    def restore_output(self, module, dim):
        """After `module`."""
        return module.register_forward_hook(partial(self._restore_output, dim))

    def _regroup_output(self, dim, _, args, output):
        if self.current is None:
            return output
        if isinstance(output, tuple):
            return tuple(self.current.regroup(tensor, dim) for tensor in output)
        return self.current.regroup(output, dim)

    def plain_input(self, module):
        """Before `module`, whose first argument is `[batch, tokens, channels]`: with the strides that its output has, so that one
        compiled graph serves it and the blocks that follow."""
        return module.register_forward_pre_hook(self._plain_input)

    def _plain_input(self, _, args):
        tokens, *rest = args
        # Of a batch of one, views leave any stride, and `contiguous` leaves it as well.
        if self.current is None or tokens.stride(0) == tokens.shape[1] * tokens.shape[2] or not tokens.is_contiguous():
            return args
        return tokens.flatten(0, 1).unflatten(0, tokens.shape[:2]), *rest

    def _restore_input(self, dim, _, args):
        return args if self.current is None else (self.current.restore(args[0], dim), *args[1:])

    def _restore_output(self, dim, _, args, output):
        return output if self.current is None else self.current.restore(output, dim)


def _patches(latents, patch):
    return tuple(size // side for size, side in zip(latents, patch))


class _Wan(Regrouping):
    def sizes(self, model, arguments):
        return _patches(arguments["hidden_states"].shape[2:], model.config.patch_size)

    def hooks(self, model):
        return [
            self.regroup_output(model.rope, 1),
            model.patch_embedding.register_forward_hook(self._patches),
            model.condition_embedder.register_forward_hook(self._conditions),
            self.plain_input(model.blocks[0]),
            self.restore_input(model.norm_out, 1),
        ]

    def _patches(self, _, args, output):
        """`[batch, channels, t, h, w]`: the model flattens t, h and w to tokens next, which finds them in the new order."""
        if self.current is None:
            return output
        tokens = self.current.regroup(output.flatten(2).transpose(1, 2), 1)
        return tokens.transpose(1, 2).unflatten(2, output.shape[2:])

    def _conditions(self, _, args, output):
        """Wan 2.2's timesteps can be per token: what modulates the blocks moves along, what modulates the restored output does not."""
        embedding, projection, *rest = output
        if self.current is None or projection.dim() != 3:
            return output
        return embedding, self.current.regroup(projection, 1), *rest


class _WanVACE(_Wan):
    """The blocks of the control run over its tokens and the video's, one by one."""

    def sizes(self, model, arguments):
        latents, control = arguments["hidden_states"], arguments["control_hidden_states"]
        return super().sizes(model, arguments) if control.shape[2:] == latents.shape[2:] else None

    def hooks(self, model):
        return [*super().hooks(model), model.vace_patch_embedding.register_forward_hook(self._patches)]


class _SkyReelsV2(_Wan):
    def sizes(self, model, arguments):
        # A timestep for each frame (diffusion forcing) is spread over the frames' tokens where no hook is.
        return super().sizes(model, arguments) if arguments["timestep"].dim() == 1 else None


class _CogVideoX(Regrouping):
    def sizes(self, model, arguments):
        _, frames, _, height, width = arguments["hidden_states"].shape
        patch, patch_t = model.config.patch_size, model.config.patch_size_t or 1
        return -(-frames // patch_t), height // patch, width // patch

    def inputs(self, arguments):
        tables = arguments["image_rotary_emb"]
        if tables is not None:
            arguments["image_rotary_emb"] = tuple(self.current.regroup(table, 0) for table in tables)

    def hooks(self, model):
        return [model.patch_embed.register_forward_hook(self._embedded), self.restore_input(model.norm_final, 1)]

    def _embedded(self, _, args, output):
        """Text first, then the video."""
        if self.current is None:
            return output
        text = output.shape[1] - len(self.current)
        video = self.current.regroup(output[:, text:], 1)
        return torch.cat([output[:, :text], video], dim=1)


class _HunyuanVideo(Regrouping):
    def __init__(self, model, options, steps):
        self.token_replace = model.config.image_condition_type == "token_replace"
        super().__init__(model, options, steps)

    def sizes(self, model, arguments):
        patch, patch_t = model.config.patch_size, model.config.patch_size_t
        return _patches(arguments["hidden_states"].shape[2:], (patch_t, patch, patch))

    def leading(self, sizes):
        # The blocks modulate the first frame's tokens, the given image, apart from the others: they have to stay first.
        return 1 if self.token_replace else 0

    def hooks(self, model):
        return [
            self.regroup_output(model.rope, 0),
            self.regroup_output(model.x_embedder, 1),
            self.restore_input(model.norm_out, 1),
        ]


class _Ltx(Regrouping):
    def sizes(self, model, arguments):
        sizes = tuple(arguments[name] for name in ("num_frames", "height", "width"))
        return None if None in sizes else sizes

    def inputs(self, arguments):
        arguments["hidden_states"] = self.current.regroup(arguments["hidden_states"], 1)
        timestep = arguments["timestep"]
        if timestep.dim() > 1 and timestep.shape[1] == len(self.current):  # per token, for conditioning on images
            arguments["timestep"] = self.current.regroup(timestep, 1)

    def hooks(self, model):
        return [self.regroup_output(model.rope, 1), self.restore_output(model.proj_out, 1)]


_FAMILIES = {
    WanTransformer3DModel: _Wan,
    WanVACETransformer3DModel: _WanVACE,
    ChronoEditTransformer3DModel: _Wan,
    SkyReelsV2Transformer3DModel: _SkyReelsV2,
    CogVideoXTransformer3DModel: _CogVideoX,
    HunyuanVideoTransformer3DModel: _HunyuanVideo,
    LTXVideoTransformer3DModel: _Ltx,
}


def regrouping_for(model, options):
    """The class that regroups the tokens of this model, or `None` where they stay in raster order, and which of the two in words.

    Raises:
        ValueError: none does, or not as the model runs, and a grid is insisted on.
    """
    if options.grid is None:
        return None, "tokens in raster order"
    # By exact type: a subclass may look at its tokens' order in places of its own.
    family = _FAMILIES.get(type(model))
    name = type(model).__name__
    why = None
    if getattr(model, "_parallel_config", None) is not None:
        why = f"{name} runs context-parallel, on a part of its tokens"
    elif family is None:
        why = f"where {name} has its tokens in order is not known"
    if why is None:
        return family, "tokens in cubes"
    if options.grid == AUTO:
        return None, f"tokens in raster order ({why})"
    known = ", ".join(sorted(known.__name__ for known in _FAMILIES))
    raise ValueError(f"a token grid was asked for, and {why}: leave grid out, or take one of {known}, not context-parallel")
