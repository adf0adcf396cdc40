"""Building blocks of the models: attention, token mixers, MBConv, stem, partitions."""

from .attention import ConvPosEnc, InterSubbandAttention, MultiHeadAttention, PartitionAttention
from .channel_attention import ChannelAttention
from .conv import GELU, StridedConv2dSame
from .layout import to_nchw, to_nhwc
from .mbconv import Downsample, MBConv
from .partition import grid_partition, grid_reverse, pad_to_multiple, padding_mask, window_partition, window_reverse
from .rel_pos import RelPosBias, resize_bias_table
from .spectral import AFNO2d, GlobalFilter, resample_filter
from .stem import PublishedHaarSWT2d, WaveletStem
from .subbands import NUM_SUBBANDS, SubbandLayerNorm, from_subbands, to_subbands
from .wavelet_attention import WaveletAttention, WaveletAttentionPool
from .wavelet_mixer import WaveletMixer

__all__ = [
    "GELU",
    "NUM_SUBBANDS",
    "AFNO2d",
    "ChannelAttention",
    "ConvPosEnc",
    "Downsample",
    "GlobalFilter",
    "InterSubbandAttention",
    "MBConv",
    "MultiHeadAttention",
    "PartitionAttention",
    "PublishedHaarSWT2d",
    "RelPosBias",
    "StridedConv2dSame",
    "SubbandLayerNorm",
    "WaveletAttention",
    "WaveletAttentionPool",
    "WaveletMixer",
    "WaveletStem",
    "from_subbands",
    "grid_partition",
    "grid_reverse",
    "pad_to_multiple",
    "padding_mask",
    "resample_filter",
    "resize_bias_table",
    "to_nchw",
    "to_nhwc",
    "to_subbands",
    "window_partition",
    "window_reverse",
]
