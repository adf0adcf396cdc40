"""What families share: timm's interface around features and head, and around a stem, stages and head; the stage."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from timm.layers import get_device_dtype
from timm.models import checkpoint_seq
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from ._intermediates import IntermediatesMixin
from ._state_dict import StrictLoadMixin


class Stage(nn.Module):
    """The blocks of one resolution; the first one strides."""

    def __init__(self, blocks: Iterable[nn.Module]) -> None:
        super().__init__()
        self.grad_checkpointing = False
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq(self.blocks, x)
        return self.blocks(x)


class Classifier(IntermediatesMixin, StrictLoadMixin, nn.Module):
    """Features -> head: what every image classifier has of timm's interface.

    The constructor of a subclass sets the attributes below, and the subclass has `forward_features`. The head has
    timm's interface of one: `reset`, `num_features`, `fc`, and `pre_logits=` in its forward.

    Attributes:
        feature_info: Of every map that can be taken out: num_chs, reduction, module.
        num_classes: Classes; 0 without a classifier.
        num_features: Channels of the last map.
        head_hidden_size: Channels before the classifier.
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
        """Names of the parameters that are not decayed besides norms and biases."""
        return set()

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """The last linear layer, or Identity."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None, reset_other: bool = False) -> None:
        """Puts in a new classifier, on the model's device and in its dtype and mode.

        Args:
            num_classes: Its classes; 0 for none.
            global_pool: New pooling; None keeps the present one.
            reset_other: Drop the head's norm and hidden layer too.
        """
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool, reset_other=reset_other, in_features=self.num_features)
        # The head itself knows device and dtype only where it had parameters.
        self.head.to(**get_device_dtype(self)).train(self.training)
        self.head_hidden_size = self.head.num_features
        if global_pool is not None:
            self.global_pool = global_pool

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) -> features (B, C, h, w)."""
        raise NotImplementedError

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Features -> logits (B, num_classes), or the head's hidden activations if pre_logits."""
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


class StagedClassifier(Classifier):
    """stem -> stages -> norm -> head: image classifier and feature extractor.

    The constructor of a subclass sets the four modules; `feature_info` is of the stem and of each stage.
    """

    stem: nn.Module
    stages: nn.Sequential
    norm: nn.Module

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that group parameters by depth, for layer-wise rates: per stage if coarse, else per block."""
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
        """Removes the stages behind the last index, and the head.

        Returns:
            The indices as non-negative numbers.
        """
        take_indices, max_index = feature_take_indices(len(self.stages) + 1, indices)
        cut = max_index < len(self.stages)
        self.stages = nn.Sequential(*list(self.stages)[:max_index])
        if cut:
            self.num_features = self.head_hidden_size = self.feature_info[max_index]["num_chs"]
        if prune_head or cut:
            self.reset_classifier(0, "", reset_other=True)
        return take_indices

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) -> the last stage's features (B, C, h, w)."""
        return self.norm(self.stages(self.stem(x)))


__all__ = ["Classifier", "Stage", "StagedClassifier"]
