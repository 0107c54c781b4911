"""The experts: where a pseudo-label comes from. One module an expert; see `cliptex.experts.base`."""
