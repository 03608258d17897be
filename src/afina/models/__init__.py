"""Where models come from, and how they get their weights, their input size and their last layer.

`names` says what a user calls a model, and `loading` puts it together; `sources` (timm, torchvision, our own),
`userfile` and `weights` bring the parts; `inputs` and `head` fit the network to the data.
"""

from afina.models.loading import Loaded, load_model
from afina.models.names import check_model

__all__ = ["Loaded", "check_model", "load_model"]
