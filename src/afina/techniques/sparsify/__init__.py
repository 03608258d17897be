"""Weight sparsity: zeros in the weights of layers, free or in an N:M pattern; shapes stay as they are.

`technique` chooses how many weights each layer loses and goes through the layers, `elimination` chooses which ones.
"""

from afina.techniques.sparsify.config import SparsifyConfig
from afina.techniques.sparsify.sensitivity import layer_sensitivities
from afina.techniques.sparsify.technique import TECHNIQUE, apply, readers_of

__all__ = ["TECHNIQUE", "SparsifyConfig", "apply", "layer_sensitivities", "readers_of"]
