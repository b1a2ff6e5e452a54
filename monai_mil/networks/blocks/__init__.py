"""What several networks share: attention pooling, Nystrom attention, smooth operators, chunked tiles."""

from __future__ import annotations

from monai_mil.networks.blocks.attention_network import (
    AttentionNetwork,
    BagByBagNetwork,
    ChunkedAttentionNetwork,
    LongBagNetwork,
    ReadBag,
    is_long,
)
from monai_mil.networks.blocks.attention_pool import (
    PoolWeights,
    RunningPool,
    attention_pool,
    compute_dtype,
    pool_bags,
    split_rows,
    stream_pool,
)
from monai_mil.networks.blocks.columns import write_columns
from monai_mil.networks.blocks.dropping import dropped
from monai_mil.networks.blocks.gated_attention import GatedAttention
from monai_mil.networks.blocks.iat_block import RESIDUAL_SCALE, IATBlock
from monai_mil.networks.blocks.incidence import survival_curve, survival_risk
from monai_mil.networks.blocks.insight_input import (
    check_codes,
    check_token_mask,
    check_tokens,
    instance_mask,
    non_finite_message,
)
from monai_mil.networks.blocks.insight_tiles import InsightTiles
from monai_mil.networks.blocks.instance_branch import InstanceBranch, most_and_least_attended
from monai_mil.networks.blocks.moments import attention_moments
from monai_mil.networks.blocks.neighbours import nearest_instances, touching_instances
from monai_mil.networks.blocks.nystrom import NystromAttention
from monai_mil.networks.blocks.otsu import otsu_threshold
from monai_mil.networks.blocks.padding import among_padding, front_lengths, real_rows, restore_padding
from monai_mil.networks.blocks.phenotypes import phenotypes, row_parts
from monai_mil.networks.blocks.query_attention import QueryAttention, StackedLinear
from monai_mil.networks.blocks.slice_transformer import (
    AttentionLayer,
    DepthwisePositions,
    class_token_output,
    mask_with_token,
)
from monai_mil.networks.blocks.smooth import SmoothOperator
from monai_mil.networks.blocks.smooth_max import smooth_max
from monai_mil.networks.blocks.tile_chunks import TileBag, decode_tiles, map_tiles
from monai_mil.networks.blocks.token_sequence import Rows, TokenSequence
from monai_mil.networks.blocks.tree import child_rows, nested_rank, tree_sizes

__all__ = [
    "RESIDUAL_SCALE",
    "AttentionLayer",
    "AttentionNetwork",
    "BagByBagNetwork",
    "ChunkedAttentionNetwork",
    "DepthwisePositions",
    "GatedAttention",
    "IATBlock",
    "InsightTiles",
    "InstanceBranch",
    "LongBagNetwork",
    "NystromAttention",
    "PoolWeights",
    "QueryAttention",
    "ReadBag",
    "Rows",
    "RunningPool",
    "SmoothOperator",
    "StackedLinear",
    "TileBag",
    "TokenSequence",
    "among_padding",
    "attention_moments",
    "attention_pool",
    "check_codes",
    "check_token_mask",
    "check_tokens",
    "child_rows",
    "class_token_output",
    "compute_dtype",
    "decode_tiles",
    "dropped",
    "front_lengths",
    "instance_mask",
    "is_long",
    "map_tiles",
    "mask_with_token",
    "most_and_least_attended",
    "nearest_instances",
    "nested_rank",
    "non_finite_message",
    "otsu_threshold",
    "phenotypes",
    "pool_bags",
    "real_rows",
    "restore_padding",
    "row_parts",
    "smooth_max",
    "split_rows",
    "stream_pool",
    "survival_curve",
    "survival_risk",
    "touching_instances",
    "tree_sizes",
    "write_columns",
]
