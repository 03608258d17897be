"""Sources of models, and how a model gets its weights, its input size and its last layer.

`names` reads the name of a model, and `loading` puts it together; `sources` (timm, torchvision, our own),
`userfile` and `weights` bring the parts; `inputs` and `head` fit the network to the data.
"""

from afina.models.loading import Loaded, load_model
from afina.models.names import check_model
from afina.models.preprocessing import Preprocessing, parse_preprocessing

__all__ = ["Loaded", "Preprocessing", "check_model", "load_model", "parse_preprocessing"]
