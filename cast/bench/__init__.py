"""`cast bench`: what models cost on this machine, superpixels included, beside the models that they replace."""
