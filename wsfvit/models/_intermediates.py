"""Features on the way through a model: timm's `forward_intermediates`, for every family."""

from collections.abc import Callable, Sequence

from timm.models._features import feature_take_indices
from torch import Tensor


class IntermediatesMixin:
    """`forward_intermediates` of a model whose features come from one step after the other."""

    def _embed(self, x: Tensor) -> Tensor:
        """Images -> what the first step takes; themselves unless the model says otherwise."""
        return x

    def _steps(self) -> Sequence[Callable[[Tensor], Tensor]]:
        """What follows, step after step; `feature_info` is of their outputs."""
        raise NotImplementedError

    def _to_map(self, x: Tensor, norm: bool) -> Tensor:
        """A step's output as (B, C, h, w), behind the model's final norm if there is one and `norm` is set."""
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
        """Features on the way, those that `feature_info` describes.

        Args:
            x: Images (B, in_chans, H, W).
            indices: The last n if an int, all if None, else these.
            norm: Apply the final norm to each, in models that have one before their head.
            stop_early: Stop after the last index asked for.
            output_fmt: "NCHW" only.
            intermediates_only: Leave the final features out of the result.

        Returns:
            The list of intermediates, each (B, C_i, h_i, w_i); with the final features before it unless told otherwise.

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
