"""Everything that a denoiser may be told beside the noisy example and its time."""

from typing import Any

import flax.struct
import jax


@flax.struct.dataclass
class Condition:
    """The condition of a denoiser; a pytree whose absent parts are None.

    Attributes:
      label: class of each example, integers "batch"; the number of classes itself is the null class, which
        classifier-free guidance (Ho & Salimans 2022, 2207.12598) gives the network in place of a label.
      tokens: a text encoder's states, "batch time width".
      mask: which of them are real, booleans "batch time"; None is all.
      pooled: one vector for the whole text, "batch width".
      image: an image of the size of the example that is concatenated or added, "batch height width channels".
      size: numbers about the image's size and crop, "batch numbers".
      augmentation: numbers about the transformation that the example underwent, 0 for none, "batch numbers" (Karras et
        al. 2022, 2206.00364, appendix F.2).
    """

    label: Any = None
    tokens: Any = None
    mask: Any = None
    pooled: Any = None
    image: Any = None
    size: Any = None
    augmentation: Any = None

    @property
    def empty(self) -> bool:
        """True if nothing is given."""
        return not jax.tree.leaves(self)
