"""The networks as torch modules."""

import logging

# transformers imports torchao where it is installed, which then warns of those of its extensions that were
# built for other machines, and torch of how it registers its types: neither concerns what is used here.
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)
