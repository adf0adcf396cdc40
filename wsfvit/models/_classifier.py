"""timm's model interface, shared by the families: intermediate features, classifier, stages of blocks."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from timm.layers import get_device_dtype
from timm.models import checkpoint_seq
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from ._state_dict import StrictLoadMixin


class IntermediatesMixin:
    """`forward_intermediates` of a model that is a sequence of steps."""

    def _embed(self, x: Tensor) -> Tensor:
        """Input of the first step; by default the images."""
        return x

    def _steps(self) -> Sequence[Callable[[Tensor], Tensor]]:
        """The steps, whose outputs `feature_info` describes."""
        raise NotImplementedError

    def _to_map(self, x: Tensor, norm: bool) -> Tensor:
        """A step's output as (B, C, h, w), after the model's final norm if `norm` is set."""
        return x

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Intermediate features, those that `feature_info` describes.

        Args:
            x: Images (B, in_chans, H, W).
            indices: The last n if an int, all if None, else these.
            norm: Apply the model's final norm to each.
            stop_early: Stop after the last index.
            output_fmt: Only "NCHW" is supported.
            intermediates_only: Do not return the final features.

        Returns:
            The final features and the list of intermediates, each (B, C_i, h_i, w_i), or only the list.

        Raises:
            ValueError: Another output_fmt.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt must be NCHW, got {output_fmt!r}")
        steps = self._steps()
        take_indices, max_index = feature_take_indices(len(steps), indices)
        intermediates = []
        x = self._embed(x)
        for i, step in enumerate(steps[: max_index + 1] if stop_early else steps):
            x = step(x)
            if i in take_indices:
                intermediates.append(self._to_map(x, norm))
        return intermediates if intermediates_only else (self._to_map(x, norm=True), intermediates)


class Stage(nn.Module):
    """Blocks of one resolution; the first one strides."""

    def __init__(self, blocks: Iterable[nn.Module]) -> None:
        super().__init__()
        self.grad_checkpointing = False
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq(self.blocks, x)
        return self.blocks(x)


class Classifier(IntermediatesMixin, StrictLoadMixin, nn.Module):
    """Base class of image classifiers with timm's interface; a subclass adds the forward pass.

    The constructor of a subclass sets the attributes. Its arguments that timm's models have too: `in_chans` image
    channels; `num_classes`, 0 leaves the classifier out; `global_pool`, "avg", "max", ... or "" for none; `drop_rate`,
    dropout before the classifier; `drop_path_rate`, stochastic depth of the last block, which rises linearly from 0
    over all blocks. The head has timm's interface: `reset`, `num_features`, `fc`, and `pre_logits=` in its forward.

    Attributes:
        feature_info: num_chs, reduction and module of each intermediate map.
        num_classes: Classes; 0 without a classifier.
        num_features: Channels of the last map.
        head_hidden_size: Input channels of the classifier.
        global_pool: Type of the pooling, "" for none.
    """

    head: Any
    feature_info: list[dict[str, Any]]
    num_classes: int
    num_features: int
    head_hidden_size: int
    global_pool: str

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of the parameters without weight decay, besides norms and biases."""
        return set()

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """The last linear layer, or Identity."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None, reset_other: bool = False) -> None:
        """Replaces the classifier, keeping the model's device, dtype and mode.

        Args:
            num_classes: Classes; 0 for none.
            global_pool: New pooling; None keeps the present one.
            reset_other: Drop the head's norm and hidden layer too.
        """
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool, reset_other=reset_other, in_features=self.num_features)
        # A head without parameters does not know the device and dtype.
        self.head.to(**get_device_dtype(self)).train(self.training)
        self.head_hidden_size = self.head.num_features
        if global_pool is not None:
            self.global_pool = global_pool


class StagedClassifier(Classifier):
    """Base class of classifiers of the form stem -> stages -> norm -> head.

    The constructor of a subclass sets the four modules; `feature_info` describes the stem and each stage.
    """

    stem: nn.Module
    stages: nn.Sequential
    norm: nn.Module

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that group parameters by depth for layer-wise decay: per stage if coarse, else per block."""
        blocks = r"^stages\.(\d+)" if coarse else r"^stages\.(\d+)\.blocks\.(\d+)"
        return dict(stem=r"^stem", blocks=[(blocks, None), (r"^norm", (99999,))])

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recomputes each block in the backward pass instead of keeping its activations."""
        for module in self.modules():
            if isinstance(module, Stage):
                module.grad_checkpointing = enable

    def _steps(self) -> Sequence[nn.Module]:
        return [self.stem, *self.stages]

    def _to_map(self, x: Tensor, norm: bool) -> Tensor:
        return self.norm(x) if norm else x

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Removes the head and the stages after the last index; returns the indices as non-negative numbers."""
        take_indices, max_index = feature_take_indices(len(self.stages) + 1, indices)
        cut = max_index < len(self.stages)
        self.stages = nn.Sequential(*list(self.stages)[:max_index])
        if cut:
            self.num_features = self.head_hidden_size = self.feature_info[max_index]["num_chs"]
        if prune_head or cut:
            self.reset_classifier(0, "", reset_other=True)
        return take_indices
