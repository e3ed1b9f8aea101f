"""Sparse attention patterns by name, as settings of an attention layer."""

from typing import Annotated

from arch_jax.fields import Kind, component
from arch_jax.ops.attention import patterns as ops

component("sliding_window", kind="pattern")(ops.SlidingWindow)
component("strided", kind="pattern")(ops.Strided)
component("fixed", kind="pattern")(ops.Fixed)
component("longformer", kind="pattern")(ops.Longformer)
component("bigbird", kind="pattern")(ops.BigBird)

Pattern = Annotated[ops.SlidingWindow | ops.Strided | ops.Fixed | ops.Longformer | ops.BigBird, Kind("pattern")]
